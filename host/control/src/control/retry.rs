//! Trying again what failed by accident, with pauses that grow, and not what is wrong with the artifact.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Control;
use super::many::Item;
use crate::registry::{Cause, Slot};
use guesthouse_model::VersionId;
use guesthouse_runtime::preinit::queue::CompilePriority;

/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause: an attempt can take half a minute of both cores.
const LONGEST_PAUSE: Duration = Duration::from_secs(10 * 60);

/// The part of a pause that is up to chance, so that what failed together is not tried together.
const JITTER: f64 = 0.25;

/// How often a version is tried whose failure can be the artifact's own fault.
const UNCLEAR_ATTEMPTS: u32 = 5;

/// The pause after so many failures; `chance` is between 0 and 1.
pub(super) fn pause(failures: u32, chance: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
    pause.mul_f64(1.0 - JITTER * chance)
}

/// When versions that failed are tried again. There is an entry for each version that is shown as
/// failed, and none for others.
#[derive(Debug, Default)]
pub(super) struct Retries(Mutex<BTreeMap<VersionId, Attempts>>);

#[derive(Debug, Clone, Copy)]
struct Attempts {
    failures: u32,
    next: Instant,
}

impl Retries {
    /// A version has failed: when it is tried again, if it is.
    pub(super) fn note(&self, id: &VersionId, cause: Cause, now: Instant) -> Option<Instant> {
        let mut all = self.lock();
        let failures = all.get(id).map_or(0, |attempts| attempts.failures).saturating_add(1);
        let is_over = match cause {
            Cause::Artifact => true,
            Cause::Accident => false,
            Cause::Unclear => failures >= UNCLEAR_ATTEMPTS,
        };
        if is_over {
            all.remove(id);
            return None;
        }
        let next = now + pause(failures, rand::random());
        all.insert(id.clone(), Attempts { failures, next });
        Some(next)
    }

    /// Forget those that are not to be tried again.
    fn retain(&self, is_wanted: impl Fn(&VersionId) -> bool) {
        self.lock().retain(|id, _| is_wanted(id));
    }

    fn due(&self, now: Instant) -> Vec<VersionId> {
        let all = self.lock();
        all.iter().filter(|(_, attempts)| attempts.next <= now).map(|(id, _)| id.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VersionId, Attempts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// Load deployed versions again whose pause is over. Those that were never deployed are tried again
    /// with their files.
    ///
    /// # Errors
    /// The machine gives no more threads.
    pub(super) fn retry_deployed(&self) -> io::Result<()> {
        if self.due_items().is_empty() {
            return Ok(());
        }
        let _loading = self.begin_loading();
        // Somebody may have loaded or undeployed them while this waited.
        let items = self.due_items();
        items.iter().for_each(|item| self.registry.set_slot(&item.id, Slot::Loading));
        let ids: Vec<_> = items.iter().map(|item| item.id.clone()).collect();
        self.load_many(items, CompilePriority::Restore, &|item, tried| {
            self.publish_loaded(item, tried)
        })?;
        // One that was undeployed meanwhile was left out.
        for id in ids {
            let is_deployed = self.registry.state(&id.name).versions.contains_key(&id.version);
            if !is_deployed && matches!(self.registry.slot(&id), Some(Slot::Loading)) {
                self.registry.reset_slot(&id, None);
            }
        }
        Ok(())
    }

    /// Deployed versions whose pause is over.
    fn due_items(&self) -> Vec<Item> {
        self.retries
            .retain(|id| matches!(self.registry.slot(id), Some(Slot::Failed(_) | Slot::Loading)));
        let due = self.retries.due(Instant::now()).into_iter();
        due.filter_map(|id| {
            let is_failed = matches!(self.registry.slot(&id), Some(Slot::Failed(_)));
            let state = self.registry.state(&id.name);
            let digest = state.loaded().find(|(version, _)| **version == id.version)?.1;
            let is_stable = state.routing.stable.as_ref() == Some(&id.version);
            is_failed.then_some(Item { id, digest, is_stable })
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> VersionId {
        VersionId { name: "real".parse().unwrap(), version: "1.0.0".parse().unwrap() }
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let mut last = Duration::ZERO;
        for failures in 1..=100 {
            let (least, most) = (pause(failures, 1.0), pause(failures, 0.0));
            assert!(least >= FIRST_PAUSE / 2 && most <= LONGEST_PAUSE && least < most);
            assert!(most >= last, "{failures}");
            last = most;
        }
        assert_eq!((last, pause(u32::MAX, 0.0)), (LONGEST_PAUSE, LONGEST_PAUSE));
        assert_eq!([1, 2, 3].map(|n| pause(n, 0.0).as_secs()), [1, 2, 4]);
    }

    #[test]
    fn only_what_may_work_the_next_time_is_tried_again() {
        let (retries, now) = (Retries::default(), Instant::now());
        assert_eq!(retries.note(&id(), Cause::Artifact, now), None);
        for _ in 0..50 {
            assert!(retries.note(&id(), Cause::Accident, now).unwrap() > now);
        }
        assert_eq!(retries.due(now), []);
        assert_eq!(retries.due(now + LONGEST_PAUSE), [id()]);
        // An artifact that proves bad is not tried any more.
        assert_eq!(retries.note(&id(), Cause::Artifact, now), None);
        assert_eq!(retries.due(now + LONGEST_PAUSE), []);
        let tried = (1..=50).take_while(|_| retries.note(&id(), Cause::Unclear, now).is_some());
        assert_eq!(tried.count(), 4);
        retries.note(&id(), Cause::Accident, now);
        retries.retain(|_| false);
        assert_eq!(retries.due(now + LONGEST_PAUSE), []);
    }
}
