//! The circuit breaker of a version: decides whose requests are accepted while some of them fail.
//!
//! Failures count against the caller that caused them. There are three levels, and each is
//! suspended only on evidence of its own (see [`evidence`]): a caller, because of its own requests;
//! an API key, because of several callers that its sticky key distinguishes; and the version,
//! because of several API keys. A caller whose requests succeeded recently is always accepted.
//!
//! Evidence is kept for a window of time after the last failure, and is bounded. Without evidence,
//! a check costs one atomic load.

mod evidence;
mod suspension;
mod window;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use self::evidence::{BreakerRefusal, SuspensionScope};
use self::evidence::{Evidence, WINDOW};
use super::CallerId;

/// Which callers a version accepts.
#[derive(Debug)]
pub struct Breaker {
    created: Instant,
    /// Until when there may be evidence, in milliseconds since `created`; 0 before any failure.
    watch_until_ms: AtomicU64,
    evidence: Mutex<Evidence>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            created: Instant::now(),
            watch_until_ms: AtomicU64::new(0),
            evidence: Mutex::default(),
        }
    }
}

impl Breaker {
    /// Whether an unknown caller would be accepted: false while the version as a whole is
    /// suspended.
    pub fn allows(&self, now: Instant) -> bool {
        self.refusal(now).is_none()
    }

    /// Why an unknown caller would be refused, if it would.
    pub fn refusal(&self, now: Instant) -> Option<BreakerRefusal> {
        if self.is_watching(now) { self.lock().refusal(now) } else { None }
    }

    /// Check whether a request of the caller would be accepted, without counting it as a probe.
    ///
    /// # Errors
    /// [`BreakerRefusal`], with the time after which the caller may try again.
    pub fn check(&self, caller: CallerId, now: Instant) -> Result<(), BreakerRefusal> {
        if self.is_watching(now) { self.lock().check(caller, now) } else { Ok(()) }
    }

    /// Accept a request of the caller, perhaps as a probe of a suspension.
    ///
    /// # Errors
    /// [`BreakerRefusal`], with the time after which the caller may try again.
    pub fn admit(&self, caller: CallerId, now: Instant) -> Result<(), BreakerRefusal> {
        if !self.is_watching(now) {
            return Ok(());
        }
        let mut evidence = self.lock();
        let outcome = evidence.admit(caller, now);
        // A probe extends its suspension.
        self.watch_until(evidence.end(now));
        outcome
    }

    /// Record that the version answered a request of the caller, or rejected its rows.
    pub fn record_success(&self, caller: CallerId, now: Instant) {
        if self.is_watching(now) {
            self.lock().record_success(caller, now);
        }
    }

    /// Record that the version failed on a request of the caller. Returns what this suspends, if
    /// anything.
    pub fn record_failure(&self, caller: CallerId, now: Instant) -> Option<SuspensionScope> {
        let was_watching = self.is_watching(now);
        let mut evidence = self.lock();
        if !was_watching {
            *evidence = Evidence::default();
        }
        let suspended = evidence.record_failure(caller, now);
        self.watch_until(evidence.end(now));
        suspended
    }

    /// Record that a request of the caller made a shared batch run again, without a fault of the
    /// version. A caller that does so with most of its requests runs alone for a while.
    pub fn isolate(&self, caller: CallerId, now: Instant) {
        let was_watching = self.is_watching(now);
        let mut evidence = self.lock();
        if !was_watching {
            *evidence = Evidence::default();
        }
        evidence.isolate(caller, now);
        self.watch_until(now + WINDOW);
    }

    /// Whether requests of the caller must run alone.
    pub fn is_isolated(&self, caller: CallerId, now: Instant) -> bool {
        self.is_watching(now) && self.lock().is_isolated(caller, now)
    }

    fn is_watching(&self, now: Instant) -> bool {
        self.since_creation(now) < self.watch_until_ms.load(Ordering::Relaxed)
    }

    fn watch_until(&self, end: Instant) {
        self.watch_until_ms.fetch_max(self.since_creation(end), Ordering::Relaxed);
    }

    fn since_creation(&self, time: Instant) -> u64 {
        let elapsed: Duration = time.saturating_duration_since(self.created);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Evidence> {
        // No code panics in the middle of an update, so poisoned evidence is consistent.
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
