//! Inputs on which a version broke down several times, and which it is not run on again for a while.
//!
//! A guest does the same with the same inputs, so a request that is repeated would cost an instance
//! each time. Inputs are hashed only while there is one of them here. Whatever succeeds is forgotten.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guesthouse_model::Tensor;

/// After so many breakdowns, inputs are not run again at once: the first two may have been the fault of
/// what the instance went through before.
const BREAKDOWNS: u32 = 3;

/// For how long, after the last breakdown; then they are tried once more.
const QUARANTINE: Duration = Duration::from_secs(60);

/// Breakdowns are forgotten after so much time without another.
const MEMORY: Duration = Duration::from_secs(600);

/// Inputs that are remembered, a few dozen bytes each.
const MAX_INPUTS: usize = 256;

/// Stands for inputs: a hash with a key that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(u64);

/// What a version does not take.
#[derive(Debug)]
pub struct Quarantine {
    created: Instant,
    /// When all of it is forgotten, in milliseconds since the creation; 0 before any breakdown.
    until_ms: AtomicU64,
    hasher: RandomState,
    entries: Mutex<HashMap<Fingerprint, Entry>>,
}

#[derive(Debug)]
struct Entry {
    breakdowns: u32,
    last: Instant,
}

impl Default for Quarantine {
    fn default() -> Self {
        let (until_ms, entries) = (AtomicU64::new(0), Mutex::default());
        Self { created: Instant::now(), until_ms, hasher: RandomState::new(), entries }
    }
}

impl Quarantine {
    /// The fingerprint of these inputs, if one is needed: none while nothing is remembered.
    pub fn fingerprint_if_needed(&self, inputs: &[Tensor], now: Instant) -> Option<Fingerprint> {
        let is_needed = self.since_creation(now) < self.until_ms.load(Ordering::Relaxed);
        is_needed.then(|| self.fingerprint(inputs))
    }

    /// The fingerprint of these inputs.
    pub fn fingerprint(&self, inputs: &[Tensor]) -> Fingerprint {
        let mut hasher = self.hasher.build_hasher();
        for Tensor { name, datatype, shape, data } in inputs {
            (name, datatype, shape, data).hash(&mut hasher);
        }
        Fingerprint(hasher.finish())
    }

    /// Whether these inputs may be run. When their time is over, they may once.
    pub fn admits(&self, inputs: Fingerprint, now: Instant) -> bool {
        let mut entries = self.lock();
        match entries.get_mut(&inputs) {
            Some(entry) if entry.breakdowns >= BREAKDOWNS => {
                let is_over = now.saturating_duration_since(entry.last) >= QUARANTINE;
                if is_over {
                    entry.last = now;
                }
                is_over
            }
            _ => true,
        }
    }

    /// The version broke down on these inputs, which were alone.
    pub fn broke_down(&self, inputs: Fingerprint, now: Instant) {
        let mut entries = self.lock();
        if !entries.contains_key(&inputs) && entries.len() >= MAX_INPUTS {
            let oldest = entries.iter().min_by_key(|(_, entry)| entry.last).map(|(key, _)| *key);
            oldest.and_then(|oldest| entries.remove(&oldest));
        }
        let entry = entries.entry(inputs).or_insert(Entry { breakdowns: 0, last: now });
        if now.saturating_duration_since(entry.last) >= MEMORY {
            entry.breakdowns = 0;
        }
        entry.breakdowns = entry.breakdowns.saturating_add(1);
        entry.last = now;
        self.until_ms.fetch_max(self.since_creation(now + MEMORY), Ordering::Relaxed);
    }

    /// The version did what it should with these inputs.
    pub fn succeeded(&self, inputs: Fingerprint) {
        self.lock().remove(&inputs);
    }

    fn since_creation(&self, time: Instant) -> u64 {
        let elapsed = time.saturating_duration_since(self.created).as_millis();
        u64::try_from(elapsed).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Fingerprint, Entry>> {
        // Nothing panics between two changes that belong together.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guesthouse_model::Datatype;

    fn inputs(value: u8) -> Vec<Tensor> {
        let (name, shape) = ("x".to_owned(), vec![1]);
        vec![Tensor { name, datatype: Datatype::Uint8, shape, data: vec![value] }]
    }

    #[test]
    fn nothing_is_hashed_before_a_breakdown_and_long_after_it() {
        let (quarantine, now) = (Quarantine::default(), Instant::now());
        assert_eq!(quarantine.fingerprint_if_needed(&inputs(1), now), None);
        let one = quarantine.fingerprint(&inputs(1));
        quarantine.broke_down(one, now);
        assert_eq!(quarantine.fingerprint_if_needed(&inputs(1), now), Some(one));
        assert_ne!(quarantine.fingerprint_if_needed(&inputs(2), now), Some(one));
        let later = now + MEMORY + Duration::from_secs(1);
        assert_eq!(quarantine.fingerprint_if_needed(&inputs(1), later), None);
    }

    #[test]
    fn the_same_inputs_do_not_run_a_fourth_time_until_a_while_later_and_then_once() {
        let (quarantine, now) = (Quarantine::default(), Instant::now());
        let [bad, good] = [1, 2].map(|value| quarantine.fingerprint(&inputs(value)));
        for _ in 0..BREAKDOWNS {
            assert!(quarantine.admits(bad, now));
            quarantine.broke_down(bad, now);
        }
        assert!(!quarantine.admits(bad, now) && quarantine.admits(good, now));
        let later = now + QUARANTINE;
        assert!(quarantine.admits(bad, later));
        assert!(!quarantine.admits(bad, later));
        quarantine.broke_down(bad, later);
        assert!(!quarantine.admits(bad, later + QUARANTINE / 2));
        quarantine.succeeded(bad);
        assert!(quarantine.admits(bad, later));
    }

    #[test]
    fn breakdowns_age() {
        let (quarantine, now) = (Quarantine::default(), Instant::now());
        let bad = quarantine.fingerprint(&inputs(1));
        for round in 0..10 {
            let now = now + MEMORY * round;
            assert!(quarantine.admits(bad, now));
            quarantine.broke_down(bad, now);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes_first() {
        let (quarantine, start) = (Quarantine::default(), Instant::now());
        let first = Fingerprint(0);
        (0..BREAKDOWNS).for_each(|_| quarantine.broke_down(first, start));
        for index in 1..=2 * MAX_INPUTS as u64 {
            quarantine.broke_down(Fingerprint(index), start + Duration::from_millis(index));
        }
        assert_eq!(quarantine.lock().len(), MAX_INPUTS);
        assert!(quarantine.admits(first, start));
    }
}
