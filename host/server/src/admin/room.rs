//! How many bytes of artifacts deployments have in memory at once.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use guesthouse_artifact::MAX_ARTIFACT_BYTES;
use guesthouse_runtime::preinit::queue::SMALL_ARTIFACT_BYTES;

/// Room for one artifact of the largest size, or for as many as fit into the same. Small ones are not
/// counted, so that they wait for nobody: there are no more of them than operations.
#[derive(Default)]
pub(super) struct Room {
    used: Mutex<u64>,
    left: Condvar,
}

/// A part of the room, given back when it is dropped.
pub(super) struct Place<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Room {
    /// Wait until so many bytes fit.
    pub(super) fn enter(&self, bytes: u64) -> Place<'_> {
        let bytes = if bytes <= SMALL_ARTIFACT_BYTES { 0 } else { bytes.min(MAX_ARTIFACT_BYTES) };
        let is_full = |used: &mut u64| bytes > MAX_ARTIFACT_BYTES.saturating_sub(*used);
        let waited = self.left.wait_while(self.lock(), is_full);
        *waited.unwrap_or_else(PoisonError::into_inner) += bytes;
        Place { room: self, bytes }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.room.lock() -= self.bytes;
        self.room.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_artifacts_share_the_room_and_small_ones_wait_for_nobody() {
        let room = Room::default();
        let large = room.enter(MAX_ARTIFACT_BYTES - SMALL_ARTIFACT_BYTES - 1);
        let fits = room.enter(SMALL_ARTIFACT_BYTES + 1);
        drop(room.enter(SMALL_ARTIFACT_BYTES));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(room.enter(MAX_ARTIFACT_BYTES)));
            drop(fits);
            assert!(!waiting.is_finished());
            drop(large);
        });
        assert_eq!(*room.lock(), 0);
    }
}
