//! When a deployment that failed is tried again: with pauses that grow, if it may succeed later, and
//! never if something is wrong with its artifact.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::registry::FailureCause;
use guesthouse_model::VersionId;

/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause: an attempt can take half a minute of both cores.
const LONGEST_PAUSE: Duration = Duration::from_secs(10 * 60);

/// The random part of a pause, so that versions that failed together are not tried together.
const JITTER: f64 = 0.25;

/// How often a version is tried whose failure may be the fault of its artifact.
const UNCLEAR_ATTEMPTS: u32 = 5;

/// The pause after this many failures; `chance` is a random number between 0 and 1.
pub(super) fn pause(failures: u32, chance: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
    pause.mul_f64(1.0 - JITTER * chance)
}

/// When versions that failed are tried again. Only versions that are shown as failed have an entry.
#[derive(Debug, Default)]
pub(super) struct Retries(Mutex<BTreeMap<VersionId, Attempts>>);

#[derive(Debug, Clone, Copy)]
struct Attempts {
    failures: u32,
    next: Instant,
}

impl Retries {
    /// Note that a version has failed; returns when it is tried again, if it is.
    pub(super) fn note(
        &self,
        id: &VersionId,
        cause: FailureCause,
        now: Instant,
    ) -> Option<Instant> {
        let mut all = self.lock();
        let failures = all.get(id).map_or(0, |attempts| attempts.failures).saturating_add(1);
        let is_over = match cause {
            FailureCause::Artifact => true,
            FailureCause::Transient => false,
            FailureCause::Unknown => failures >= UNCLEAR_ATTEMPTS,
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
    pub(super) fn retain(&self, is_wanted: impl Fn(&VersionId) -> bool) {
        self.lock().retain(|id, _| is_wanted(id));
    }

    pub(super) fn due(&self, now: Instant) -> Vec<VersionId> {
        let all = self.lock();
        all.iter().filter(|(_, attempts)| attempts.next <= now).map(|(id, _)| id.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VersionId, Attempts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> VersionId {
        VersionId { name: "real".parse().unwrap(), version: "1.0.0".parse().unwrap() }
    }

    #[test]
    fn retry_delays_grow_to_a_limit() {
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
    fn only_transient_failures_are_retried() {
        let (retries, now) = (Retries::default(), Instant::now());
        assert_eq!(retries.note(&id(), FailureCause::Artifact, now), None);
        for _ in 0..50 {
            assert!(retries.note(&id(), FailureCause::Transient, now).unwrap() > now);
        }
        assert_eq!(retries.due(now), []);
        assert_eq!(retries.due(now + LONGEST_PAUSE), [id()]);
        // An artifact that proves bad is not tried any more.
        assert_eq!(retries.note(&id(), FailureCause::Artifact, now), None);
        assert_eq!(retries.due(now + LONGEST_PAUSE), []);
        let tried =
            (1..=50).take_while(|_| retries.note(&id(), FailureCause::Unknown, now).is_some());
        assert_eq!(tried.count(), 4);
        retries.note(&id(), FailureCause::Transient, now);
        retries.retain(|_| false);
        assert_eq!(retries.due(now + LONGEST_PAUSE), []);
    }
}
