//! When a call ends, whatever the guest does: at its deadline, or when nobody waits for it any more.
//! A call for several callers ends when the last of them has gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// When a call ends, whatever the guest does. A running guest looks at it once an epoch tick.
#[derive(Debug, Clone)]
pub struct Stop {
    deadline: Instant,
    cancelled: Cancelled,
}

/// Who has gone.
#[derive(Debug, Clone)]
enum Cancelled {
    One(Arc<AtomicBool>),
    All(Arc<[Cancelled]>),
}

impl Cancelled {
    fn is_so(&self) -> bool {
        match self {
            Self::One(cancelled) => cancelled.load(Ordering::Relaxed),
            Self::All(all) => all.iter().all(Self::is_so),
        }
    }
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
        Self { deadline, cancelled: Cancelled::One(Arc::default()) }
    }

    /// At the deadline, or when nobody waits any more of those who wait for one of the others.
    pub fn of_all<'a>(deadline: Instant, others: impl Iterator<Item = &'a Self>) -> Self {
        let cancelled = others.map(|other| other.cancelled.clone()).collect();
        Self { deadline, cancelled: Cancelled::All(cancelled) }
    }

    /// The same cancellation with another deadline.
    #[must_use]
    pub fn until(&self, deadline: Instant) -> Self {
        Self { deadline, cancelled: self.cancelled.clone() }
    }

    /// The same cancellation, and a deadline that is not later than `latest`.
    #[must_use]
    pub fn no_later_than(&self, latest: Instant) -> Self {
        self.until(self.deadline.min(latest))
    }

    /// At the deadline, or when the guard is dropped.
    pub fn with_guard(deadline: Instant) -> (Self, CancelOnDrop) {
        let flag = Arc::default();
        let guard = CancelOnDrop(Arc::clone(&flag));
        (Self { deadline, cancelled: Cancelled::One(flag) }, guard)
    }

    /// Whether the call has ended, and why.
    pub fn reason(&self, now: Instant) -> Option<StopReason> {
        if self.cancelled.is_so() {
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
        let sooner = stop.no_later_than(now);
        assert_eq!(sooner.reason(now), Some(StopReason::Deadline));
        assert_eq!(stop.no_later_than(now + Duration::from_secs(2)).reason(now), None);
        drop(guard);
        assert_eq!(stop.reason(now), Some(StopReason::Cancelled));
        assert_eq!(sooner.reason(now), Some(StopReason::Cancelled));
    }
    #[test]
    fn a_call_for_several_callers_goes_on_until_the_last_has_gone() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let (stops, mut guards): (Vec<_>, Vec<_>) = (0..3).map(|_| Stop::with_guard(now)).collect();
        let stop = Stop::of_all(later, stops.iter());
        while let Some(guard) = guards.pop() {
            assert_eq!(stop.reason(now), None);
            drop(guard);
        }
        assert_eq!(stop.reason(now), Some(StopReason::Cancelled));
        let none_has_gone = Stop::of_all(later, [Stop::at(now)].iter());
        assert_eq!(none_has_gone.reason(later), Some(StopReason::Deadline));
    }
}
