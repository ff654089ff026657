//! When a call ends, whatever the guest does: at its deadline, or when nobody waits for it any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// When a call ends, whatever the guest does. A running guest looks at it once an epoch tick.
#[derive(Debug, Clone)]
pub struct Stop {
    deadline: Instant,
    cancelled: Arc<AtomicBool>,
}

/// Why a call has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// Its time is up.
    Deadline,
    /// Nobody waits for it any more.
    Cancelled,
}

/// Cancels the call when it is dropped: for the one who waits for the answer.
#[derive(Debug)]
pub struct CancelOnDrop(Arc<AtomicBool>);

impl Stop {
    /// At the deadline.
    pub fn at(deadline: Instant) -> Self {
        Self { deadline, cancelled: Arc::new(AtomicBool::new(false)) }
    }

    /// At the deadline, or when the guard is dropped.
    pub fn with_guard(deadline: Instant) -> (Self, CancelOnDrop) {
        let stop = Self::at(deadline);
        let guard = CancelOnDrop(Arc::clone(&stop.cancelled));
        (stop, guard)
    }

    /// Whether the call has ended, and why.
    pub fn reason(&self, now: Instant) -> Option<StopReason> {
        if self.cancelled.load(Ordering::Relaxed) {
            Some(StopReason::Cancelled)
        } else if now >= self.deadline {
            Some(StopReason::Deadline)
        } else {
            None
        }
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_call_ends_at_its_deadline_or_when_its_guard_goes() {
        let now = Instant::now();
        let (stop, guard) = Stop::with_guard(now + Duration::from_secs(1));
        assert_eq!(stop.reason(now), None);
        assert_eq!(stop.reason(now + Duration::from_secs(1)), Some(StopReason::Deadline));
        drop(guard);
        assert_eq!(stop.reason(now), Some(StopReason::Cancelled));
    }
}
