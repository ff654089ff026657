//! Choosing the first stable version of a model from the repository folder: the highest release of those
//! that were found together. A lower release that is ready does not wait long for a higher one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use semver::Version;

use super::state::Control;
use guesthouse_model::{ModelName, VersionId};

/// How long a release that is ready waits for a higher one that was found with it. Small artifacts are
/// compiled in parallel and are ready within seconds of each other.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// The deployments of versions that were found together.
pub(super) struct Adoption {
    models: Mutex<BTreeMap<ModelName, Deployments>>,
    changed: Condvar,
}

/// The deployments of one model without a stable version.
#[derive(Default)]
struct Deployments {
    running: BTreeSet<Version>,
    /// The highest release that is ready, and when the first one became ready.
    ready: Option<(Version, Instant)>,
}

impl Deployments {
    /// When the highest release that is ready becomes the stable version; none while none is ready.
    fn due(&self) -> Option<Instant> {
        let (best, since) = self.ready.as_ref()?;
        let is_higher = |version: &Version| version.pre.is_empty() && version > best;
        let is_higher_running = self.running.iter().any(is_higher);
        Some(if is_higher_running { *since + MAX_WAIT } else { *since })
    }

    fn end(&mut self, version: &Version, is_ready: bool, now: Instant) {
        self.running.remove(version);
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
    /// For versions whose deployments are about to start.
    pub(super) fn new<'a>(ids: impl IntoIterator<Item = &'a VersionId>) -> Self {
        let mut models = BTreeMap::<ModelName, Deployments>::new();
        for id in ids {
            models.entry(id.name.clone()).or_default().running.insert(id.version.clone());
        }
        Self { models: Mutex::new(models), changed: Condvar::new() }
    }

    /// The deployment of a version has ended.
    pub(super) fn end(&self, id: &VersionId, is_ready: bool) {
        if let Some(deployments) = self.lock().get_mut(&id.name) {
            deployments.end(&id.version, is_ready, Instant::now());
        }
        self.changed.notify_all();
    }

    /// All deployments have ended.
    pub(super) fn end_all(&self) {
        self.lock().values_mut().for_each(|deployments| deployments.running.clear());
        self.changed.notify_all();
    }

    /// Give each model its stable version when it is due, until all deployments have ended.
    pub(super) fn run(&self, control: &Control) {
        while let Some(model) = self.next() {
            control.adopt(&model);
        }
    }

    /// Wait for the next model that is due; none if there will be no more.
    fn next(&self) -> Option<ModelName> {
        let mut models = self.lock();
        loop {
            // Nothing more is expected of the other models.
            models.retain(|_, deployments| {
                deployments.ready.is_some() || !deployments.running.is_empty()
            });
            if models.is_empty() {
                return None;
            }
            let due = models
                .iter()
                .filter_map(|(name, deployments)| Some((deployments.due()?, name.clone())));
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ModelName, Deployments>> {
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
        let mut deployments = Deployments::default();
        let all = ["1.0.0", "1.1.0", "1.2.0", "2.0.0-rc.1"];
        deployments.running.extend(all.map(version));
        assert_eq!(deployments.due(), None);
        deployments.end(&version("2.0.0-rc.1"), true, start);
        assert_eq!(deployments.due(), None, "a pre-release is nobody's default");
        deployments.end(&version("1.1.0"), true, start);
        assert_eq!(deployments.due(), Some(start + MAX_WAIT));
        deployments.end(&version("1.0.0"), true, start + MAX_WAIT);
        assert_eq!(deployments.due(), Some(start + MAX_WAIT), "a lower one changes nothing");
        deployments.end(&version("1.2.0"), false, start + MAX_WAIT);
        assert_eq!(deployments.due(), Some(start), "nothing higher can come");
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
