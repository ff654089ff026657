//! Who may load which version now: each version is loaded by one thread at a time, and different
//! versions beside each other.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use guesthouse_model::VersionId;

/// The versions that are being loaded: as many as there are threads that load.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Mutex<BTreeSet<VersionId>>,
    given_back: Condvar,
}

/// The right to load a version, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    id: VersionId,
}

impl Turns {
    /// Wait until nobody else loads the version. Who holds a turn must not wait for another one: two
    /// who did would wait for each other. See [`Turns::try_take`].
    pub(super) fn take(&self, id: &VersionId) -> Turn<'_> {
        let taken = self.lock();
        let is_taken = |taken: &mut BTreeSet<VersionId>| taken.contains(id);
        let waited = self.given_back.wait_while(taken, is_taken);
        waited.unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        Turn { turns: self, id: id.clone() }
    }

    /// The turn, if nobody else loads the version.
    pub(super) fn try_take(&self, id: &VersionId) -> Option<Turn<'_>> {
        self.lock().insert(id.clone()).then(|| Turn { turns: self, id: id.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<VersionId>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.lock().remove(&self.id);
        self.turns.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_loaded_by_one_at_a_time_and_others_beside_it() {
        let id = |name: &str| VersionId {
            name: name.parse().unwrap(),
            version: "1.0.0".parse().unwrap(),
        };
        let turns = Turns::default();
        let turn = turns.take(&id("one"));
        assert!(turns.try_take(&id("one")).is_none());
        drop(turns.take(&id("other")));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(turns.take(&id("one"))));
            assert!(!waiting.is_finished());
            drop(turn);
        });
        assert!(turns.try_take(&id("one")).is_some());
    }
}
