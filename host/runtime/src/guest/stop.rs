//! When a call has to stop: at its deadline, or when its caller disconnects. A call for several
//! callers stops when the last of them disconnects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The deadline and the cancellation of a call. A running guest checks it once per epoch tick.
#[derive(Debug, Clone)]
pub struct StopSignal {
    deadline: Instant,
    cancelled: Cancelled,
}

/// Whether the callers have cancelled.
#[derive(Debug, Clone)]
enum Cancelled {
    One(Arc<AtomicBool>),
    All(Arc<[Cancelled]>),
}

impl Cancelled {
    fn is_cancelled(&self) -> bool {
        match self {
            Self::One(cancelled) => cancelled.load(Ordering::Relaxed),
            Self::All(all) => all.iter().all(Self::is_cancelled),
        }
    }
}

/// Why a call has to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The deadline has passed.
    Deadline,
    /// All callers have disconnected.
    Cancelled,
}

/// Cancels the call when it is dropped; held by the caller.
#[derive(Debug)]
pub struct CancelOnDrop(Arc<AtomicBool>);

impl StopSignal {
    /// Stop at the deadline.
    pub fn at_deadline(deadline: Instant) -> Self {
        Self { deadline, cancelled: Cancelled::One(Arc::default()) }
    }

    /// Stop at the deadline, or when all of `others` are cancelled.
    pub fn until_all_cancel<'a>(deadline: Instant, others: impl Iterator<Item = &'a Self>) -> Self {
        let cancelled = others.map(|other| other.cancelled.clone()).collect();
        Self { deadline, cancelled: Cancelled::All(cancelled) }
    }

    /// The same cancellation with a different deadline.
    #[must_use]
    pub fn until(&self, deadline: Instant) -> Self {
        Self { deadline, cancelled: self.cancelled.clone() }
    }

    /// The same cancellation with the earlier of the deadline and `latest`.
    #[must_use]
    pub fn no_later_than(&self, latest: Instant) -> Self {
        self.until(self.deadline.min(latest))
    }

    /// Stop at the deadline, or when the guard is dropped.
    pub fn with_guard(deadline: Instant) -> (Self, CancelOnDrop) {
        let flag = Arc::default();
        let guard = CancelOnDrop(Arc::clone(&flag));
        (Self { deadline, cancelled: Cancelled::One(flag) }, guard)
    }

    /// Why the call has to stop at this time, if it has to.
    pub fn reason(&self, now: Instant) -> Option<StopReason> {
        if self.cancelled.is_cancelled() {
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
    fn a_call_stops_at_its_deadline_or_when_its_guard_drops() {
        let now = Instant::now();
        let (stop, guard) = StopSignal::with_guard(now + Duration::from_secs(1));
        assert_eq!(stop.reason(now), None);
        assert_eq!(stop.reason(now + Duration::from_secs(1)), Some(StopReason::Deadline));
        let sooner = stop.no_later_than(now);
        assert_eq!(sooner.reason(now), Some(StopReason::Deadline));
        assert_eq!(stop.no_later_than(now + Duration::from_secs(2)).reason(now), None);
        drop(guard);
        assert_eq!(stop.reason(now), Some(StopReason::Cancelled));
        assert_eq!(sooner.reason(now), Some(StopReason::Cancelled));
    }
    #[test]
    fn a_shared_call_stops_when_the_last_caller_disconnects() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let (stops, mut guards): (Vec<_>, Vec<_>) =
            (0..3).map(|_| StopSignal::with_guard(now)).collect();
        let stop = StopSignal::until_all_cancel(later, stops.iter());
        while let Some(guard) = guards.pop() {
            assert_eq!(stop.reason(now), None);
            drop(guard);
        }
        assert_eq!(stop.reason(now), Some(StopReason::Cancelled));
        let none_cancelled =
            StopSignal::until_all_cancel(later, [StopSignal::at_deadline(now)].iter());
        assert_eq!(none_cancelled.reason(later), Some(StopReason::Deadline));
    }
}
