//! When a model of which nothing was ever promoted gets its stable version from the folder: the highest
//! release of those found together, but without waiting for long for one that takes long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use semver::Version;

use super::state::Control;
use guesthouse_model::{ModelName, VersionId};

/// How long a version that is ready waits for a higher one that was found with it. Small ones, which
/// are compiled beside each other, are ready within seconds of each other.
const PATIENCE: Duration = Duration::from_secs(10);

/// The versions that were found together.
pub(super) struct Adoption {
    models: Mutex<BTreeMap<ModelName, Found>>,
    changed: Condvar,
}

/// Those of one model that nobody has decided about.
#[derive(Default)]
struct Found {
    on_the_way: BTreeSet<Version>,
    /// The highest release that is ready, and since when there is any.
    ready: Option<(Version, Instant)>,
}

impl Found {
    /// From when on the best release is taken; none while none is ready.
    fn due(&self) -> Option<Instant> {
        let (best, since) = self.ready.as_ref()?;
        let is_higher = |version: &Version| version.pre.is_empty() && version > best;
        let is_waited_for = self.on_the_way.iter().any(is_higher);
        Some(if is_waited_for { *since + PATIENCE } else { *since })
    }

    fn end(&mut self, version: &Version, is_ready: bool, now: Instant) {
        self.on_the_way.remove(version);
        if !is_ready || !version.pre.is_empty() {
            return;
        }
        let (best, _) = self.ready.get_or_insert_with(|| (version.clone(), now));
        if *best < *version {
            best.clone_from(version);
        }
    }
}

impl Adoption {
    /// For versions that are about to be loaded.
    pub(super) fn new<'a>(ids: impl IntoIterator<Item = &'a VersionId>) -> Self {
        let mut models = BTreeMap::<ModelName, Found>::new();
        for id in ids {
            models.entry(id.name.clone()).or_default().on_the_way.insert(id.version.clone());
        }
        Self { models: Mutex::new(models), changed: Condvar::new() }
    }

    /// It is known what has become of a version.
    pub(super) fn end(&self, id: &VersionId, is_ready: bool) {
        if let Some(found) = self.lock().get_mut(&id.name) {
            found.end(&id.version, is_ready, Instant::now());
        }
        self.changed.notify_all();
    }

    /// No version is on its way any more.
    pub(super) fn end_all(&self) {
        self.lock().values_mut().for_each(|found| found.on_the_way.clear());
        self.changed.notify_all();
    }

    /// Give each model its stable version when it is time, until nothing is on its way.
    pub(super) fn run(&self, control: &Control) {
        while let Some(model) = self.next() {
            control.adopt(&model);
        }
    }

    /// Wait for the next model that is due; none when there will be none.
    fn next(&self) -> Option<ModelName> {
        let mut models = self.lock();
        loop {
            // Of others there is nothing to come.
            models.retain(|_, found| found.ready.is_some() || !found.on_the_way.is_empty());
            if models.is_empty() {
                return None;
            }
            let due = models.iter().filter_map(|(name, found)| Some((found.due()?, name.clone())));
            let first = due.min();
            let now = Instant::now();
            models = match first {
                Some((due, name)) if due <= now => {
                    models.remove(&name);
                    return Some(name);
                }
                Some((due, _)) => {
                    let waited = self.changed.wait_timeout(models, due - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(models).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ModelName, Found>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_waits_for_a_higher_one_with_a_limit() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        let start = Instant::now();
        let mut found = Found::default();
        let all = ["1.0.0", "1.1.0", "1.2.0", "2.0.0-rc.1"];
        found.on_the_way.extend(all.map(version));
        assert_eq!(found.due(), None);
        found.end(&version("2.0.0-rc.1"), true, start);
        assert_eq!(found.due(), None, "a pre-release is nobody's default");
        found.end(&version("1.1.0"), true, start);
        assert_eq!(found.due(), Some(start + PATIENCE));
        found.end(&version("1.0.0"), true, start + PATIENCE);
        assert_eq!(found.due(), Some(start + PATIENCE), "a lower one changes nothing");
        found.end(&version("1.2.0"), false, start + PATIENCE);
        assert_eq!(found.due(), Some(start), "nothing higher can come");
    }

    #[test]
    fn models_are_adopted_once_and_only_with_a_release() {
        let id = |name: &str, version: &str| VersionId {
            name: name.parse().unwrap(),
            version: version.parse().unwrap(),
        };
        let ids = [id("a", "1.0.0"), id("b", "1.0.0"), id("c", "1.0.0-rc.1")];
        let adoption = Adoption::new(&ids);
        adoption.end(&ids[1], true);
        assert_eq!(adoption.next(), Some(ids[1].name.clone()));
        adoption.end(&ids[0], false);
        adoption.end(&ids[2], true);
        adoption.end_all();
        assert_eq!(adoption.next(), None);
    }
}
