//! How much a version uses the host's arithmetic.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The arithmetic of all instances of a version since it was loaded.
#[derive(Debug, Default)]
pub struct ArithmeticUsage {
    calls: AtomicU64,
    nanoseconds: AtomicU64,
}

impl ArithmeticUsage {
    /// The operations that were executed.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The time that they took.
    pub fn time(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    pub(super) fn add(&self, time: Duration) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}
