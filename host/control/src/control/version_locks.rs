//! One lock for each version: a version is loaded by one thread at a time, and different versions in
//! parallel.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use guesthouse_model::VersionId;

/// The versions that are locked: at most as many as there are threads that load.
#[derive(Debug, Default)]
pub(super) struct VersionLocks {
    locked: Mutex<BTreeSet<VersionId>>,
    unlocked: Condvar,
}

/// The right to load a version, until it is dropped.
#[derive(Debug)]
pub(super) struct VersionLock<'a> {
    locks: &'a VersionLocks,
    id: VersionId,
}

impl VersionLocks {
    /// Wait until nobody else loads the version. A thread that holds a lock must not wait for another
    /// one, or two of them may deadlock; it uses [`VersionLocks::try_lock`].
    pub(super) fn lock(&self, id: &VersionId) -> VersionLock<'_> {
        let is_locked = |locked: &mut BTreeSet<VersionId>| locked.contains(id);
        let waited = self.unlocked.wait_while(self.locked(), is_locked);
        waited.unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        VersionLock { locks: self, id: id.clone() }
    }

    /// The lock, unless somebody else has it.
    pub(super) fn try_lock(&self, id: &VersionId) -> Option<VersionLock<'_>> {
        self.locked().insert(id.clone()).then(|| VersionLock { locks: self, id: id.clone() })
    }

    fn locked(&self) -> MutexGuard<'_, BTreeSet<VersionId>> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for VersionLock<'_> {
    fn drop(&mut self) {
        self.locks.locked().remove(&self.id);
        self.locks.unlocked.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_locked_once_and_others_independently() {
        let id = |name: &str| VersionId {
            name: name.parse().unwrap(),
            version: "1.0.0".parse().unwrap(),
        };
        let locks = VersionLocks::default();
        let lock = locks.lock(&id("one"));
        assert!(locks.try_lock(&id("one")).is_none());
        drop(locks.lock(&id("other")));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(locks.lock(&id("one"))));
            assert!(!waiting.is_finished());
            drop(lock);
        });
        assert!(locks.try_lock(&id("one")).is_some());
    }
}
