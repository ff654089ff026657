//! Bounds the bytes of artifacts that deployments hold in memory at the same time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use guesthouse_artifact::MAX_ARTIFACT_BYTES;
use guesthouse_runtime::preinit::queue::SMALL_ARTIFACT_BYTES;

/// A semaphore of bytes: one artifact of the largest size fits, or several smaller ones. Small artifacts
/// are not counted and never wait, because the number of operations bounds them.
#[derive(Default)]
pub(super) struct ArtifactMemory {
    used: Mutex<u64>,
    released: Condvar,
}

/// Bytes of [`ArtifactMemory`], released on drop.
pub(super) struct MemoryPermit<'a> {
    memory: &'a ArtifactMemory,
    bytes: u64,
}

impl ArtifactMemory {
    /// Wait until the bytes fit. Blocks the thread.
    pub(super) fn acquire(&self, bytes: u64) -> MemoryPermit<'_> {
        let bytes = if bytes <= SMALL_ARTIFACT_BYTES { 0 } else { bytes.min(MAX_ARTIFACT_BYTES) };
        let is_full = |used: &mut u64| bytes > MAX_ARTIFACT_BYTES.saturating_sub(*used);
        let waited = self.released.wait_while(self.lock(), is_full);
        *waited.unwrap_or_else(PoisonError::into_inner) += bytes;
        MemoryPermit { memory: self, bytes }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MemoryPermit<'_> {
    fn drop(&mut self) {
        *self.memory.lock() -= self.bytes;
        self.memory.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_artifacts_wait_for_memory_and_small_ones_do_not() {
        let memory = ArtifactMemory::default();
        let large = memory.acquire(MAX_ARTIFACT_BYTES - SMALL_ARTIFACT_BYTES - 1);
        let fits = memory.acquire(SMALL_ARTIFACT_BYTES + 1);
        drop(memory.acquire(SMALL_ARTIFACT_BYTES));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(memory.acquire(MAX_ARTIFACT_BYTES)));
            drop(fits);
            assert!(!waiting.is_finished());
            drop(large);
        });
        assert_eq!(*memory.lock(), 0);
    }
}
