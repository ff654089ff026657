//! Quarantines inputs on which a version has failed several times: they are rejected for a while.
//!
//! Guests are deterministic, so a client that retries such a request would cost an instance each
//! time. Inputs are hashed only while some are recorded here. Inputs that succeed are removed.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guesthouse_model::Tensor;

/// The failures after which inputs are quarantined: the first two may have been caused by the
/// instance's earlier requests.
const FAILURES_TO_QUARANTINE: u32 = 3;

/// How long inputs are quarantined after their last failure. Then they may run once more.
const QUARANTINE: Duration = Duration::from_secs(60);

/// Failures are forgotten after this time without another.
const MEMORY: Duration = Duration::from_secs(600);

/// The most inputs that are recorded, a few dozen bytes each.
const MAX_INPUTS: usize = 256;

/// A hash of inputs with a random key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InputFingerprint(u64);

/// The inputs on which a version has failed recently.
#[derive(Debug)]
pub struct Quarantine {
    created: Instant,
    /// When the last record expires, in milliseconds since `created`; 0 before any failure.
    until_ms: AtomicU64,
    hasher: RandomState,
    entries: Mutex<HashMap<InputFingerprint, FailureHistory>>,
}

#[derive(Debug)]
struct FailureHistory {
    failures: u32,
    last: Instant,
}

impl Default for Quarantine {
    fn default() -> Self {
        let (until_ms, entries) = (AtomicU64::new(0), Mutex::default());
        Self { created: Instant::now(), until_ms, hasher: RandomState::new(), entries }
    }
}

impl Quarantine {
    /// The fingerprint of the inputs, if anything is recorded; `None` otherwise.
    pub fn fingerprint_if_needed(
        &self,
        inputs: &[Tensor],
        now: Instant,
    ) -> Option<InputFingerprint> {
        let is_needed = self.since_creation(now) < self.until_ms.load(Ordering::Relaxed);
        is_needed.then(|| self.fingerprint(inputs))
    }

    /// The fingerprint of the inputs.
    pub fn fingerprint(&self, inputs: &[Tensor]) -> InputFingerprint {
        let mut hasher = self.hasher.build_hasher();
        for Tensor { name, datatype, shape, data } in inputs {
            (name, datatype, shape, data).hash(&mut hasher);
        }
        InputFingerprint(hasher.finish())
    }

    /// Whether the inputs may run. When their quarantine ends, this returns true once.
    pub fn admits(&self, inputs: InputFingerprint, now: Instant) -> bool {
        let mut entries = self.lock();
        match entries.get_mut(&inputs) {
            Some(entry) if entry.failures >= FAILURES_TO_QUARANTINE => {
                let is_over = now.saturating_duration_since(entry.last) >= QUARANTINE;
                if is_over {
                    entry.last = now;
                }
                is_over
            }
            _ => true,
        }
    }

    /// Record that the version failed on these inputs, which ran alone.
    pub fn record_failure(&self, inputs: InputFingerprint, now: Instant) {
        let mut entries = self.lock();
        if !entries.contains_key(&inputs) && entries.len() >= MAX_INPUTS {
            let oldest = entries.iter().min_by_key(|(_, entry)| entry.last).map(|(key, _)| *key);
            oldest.and_then(|oldest| entries.remove(&oldest));
        }
        let entry = entries.entry(inputs).or_insert(FailureHistory { failures: 0, last: now });
        if now.saturating_duration_since(entry.last) >= MEMORY {
            entry.failures = 0;
        }
        entry.failures = entry.failures.saturating_add(1);
        entry.last = now;
        self.until_ms.fetch_max(self.since_creation(now + MEMORY), Ordering::Relaxed);
    }

    /// Record that the version succeeded on these inputs, which removes them.
    pub fn record_success(&self, inputs: InputFingerprint) {
        self.lock().remove(&inputs);
    }

    fn since_creation(&self, time: Instant) -> u64 {
        let elapsed = time.saturating_duration_since(self.created).as_millis();
        u64::try_from(elapsed).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InputFingerprint, FailureHistory>> {
        // No code panics in the middle of an update, so a poisoned map is consistent.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guesthouse_model::Datatype;

    fn inputs(value: u8) -> Vec<Tensor> {
        let (name, shape) = ("x".to_owned(), vec![1]);
        vec![Tensor { name, datatype: Datatype::Uint8, shape, data: vec![value].into() }]
    }

    #[test]
    fn inputs_are_hashed_only_after_a_recent_failure() {
        let (quarantine, now) = (Quarantine::default(), Instant::now());
        assert_eq!(quarantine.fingerprint_if_needed(&inputs(1), now), None);
        let one = quarantine.fingerprint(&inputs(1));
        quarantine.record_failure(one, now);
        assert_eq!(quarantine.fingerprint_if_needed(&inputs(1), now), Some(one));
        assert_ne!(quarantine.fingerprint_if_needed(&inputs(2), now), Some(one));
        let later = now + MEMORY + Duration::from_secs(1);
        assert_eq!(quarantine.fingerprint_if_needed(&inputs(1), later), None);
    }

    #[test]
    fn quarantined_inputs_run_once_when_the_quarantine_ends() {
        let (quarantine, now) = (Quarantine::default(), Instant::now());
        let [bad, good] = [1, 2].map(|value| quarantine.fingerprint(&inputs(value)));
        for _ in 0..FAILURES_TO_QUARANTINE {
            assert!(quarantine.admits(bad, now));
            quarantine.record_failure(bad, now);
        }
        assert!(!quarantine.admits(bad, now) && quarantine.admits(good, now));
        let later = now + QUARANTINE;
        assert!(quarantine.admits(bad, later));
        assert!(!quarantine.admits(bad, later));
        quarantine.record_failure(bad, later);
        assert!(!quarantine.admits(bad, later + QUARANTINE / 2));
        quarantine.record_success(bad);
        assert!(quarantine.admits(bad, later));
    }

    #[test]
    fn old_failures_are_forgotten() {
        let (quarantine, now) = (Quarantine::default(), Instant::now());
        let bad = quarantine.fingerprint(&inputs(1));
        for round in 0..10 {
            let now = now + MEMORY * round;
            assert!(quarantine.admits(bad, now));
            quarantine.record_failure(bad, now);
        }
    }

    #[test]
    fn records_are_bounded_and_the_oldest_is_evicted() {
        let (quarantine, start) = (Quarantine::default(), Instant::now());
        let first = InputFingerprint(0);
        (0..FAILURES_TO_QUARANTINE).for_each(|_| quarantine.record_failure(first, start));
        for index in 1..=2 * MAX_INPUTS as u64 {
            quarantine
                .record_failure(InputFingerprint(index), start + Duration::from_millis(index));
        }
        assert_eq!(quarantine.lock().len(), MAX_INPUTS);
        assert!(quarantine.admits(first, start));
    }
}
