//! Decides whose requests a version accepts while some of them make it fail.
//!
//! Failures are held against whoever caused them. There are three levels, and each is suspended only
//! on its own evidence (see [`evidence`]): a caller, by its own requests; an API key, by several of
//! the callers that its sticky key tells apart; the version, by several API keys. A caller that was
//! answered recently is accepted whatever befalls the others.
//!
//! Evidence is kept from a failure until a window has passed without another, and is bounded. While
//! there is none, an answer costs one atomic load.

mod evidence;
mod suspension;
mod window;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::evidence::{Evidence, WINDOW};
pub use self::evidence::{Refusal, Suspended};
use super::CallerId;

/// Whose requests a version accepts.
#[derive(Debug)]
pub struct Breaker {
    created: Instant,
    /// Until when there may be evidence, in milliseconds since the creation; 0 before any failure.
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
    /// Whether a caller of which nothing is known could be accepted: false while the version as a
    /// whole is suspended.
    pub fn allows(&self, now: Instant) -> bool {
        self.refusal(now).is_none()
    }

    /// Why a caller of which nothing is known is not accepted.
    pub fn refusal(&self, now: Instant) -> Option<Refusal> {
        if self.is_watching(now) { self.lock().refusal(now) } else { None }
    }

    /// Whether a request of this caller would be accepted. Changes nothing.
    ///
    /// # Errors
    /// [`Refusal`], with the time after which the caller may try again.
    pub fn check(&self, caller: CallerId, now: Instant) -> Result<(), Refusal> {
        if self.is_watching(now) { self.lock().check(caller, now) } else { Ok(()) }
    }

    /// Accept a request of this caller, perhaps as one of the probes of a suspension.
    ///
    /// # Errors
    /// [`Refusal`], with the time after which the caller may try again.
    pub fn admit(&self, caller: CallerId, now: Instant) -> Result<(), Refusal> {
        if !self.is_watching(now) {
            return Ok(());
        }
        let mut evidence = self.lock();
        let outcome = evidence.admit(caller, now);
        // Probing prolongs a suspension.
        self.watch_until(evidence.end(now));
        outcome
    }

    /// The version answered a request of this caller, or rejected it for a good reason.
    pub fn succeeded(&self, caller: CallerId, now: Instant) {
        if self.is_watching(now) {
            self.lock().succeeded(caller, now);
        }
    }

    /// The version failed on a request of this caller. Returns what is suspended from now on, if
    /// anything is.
    pub fn failed(&self, caller: CallerId, now: Instant) -> Option<Suspended> {
        let was_watching = self.is_watching(now);
        let mut evidence = self.lock();
        if !was_watching {
            *evidence = Evidence::default();
        }
        let suspended = evidence.failed(caller, now);
        self.watch_until(evidence.end(now));
        suspended
    }

    /// A request of the caller cost its neighbours a second run, through no fault of the version. If most
    /// of its requests do, they are run by themselves for a while.
    pub fn isolate(&self, caller: CallerId, now: Instant) {
        let was_watching = self.is_watching(now);
        let mut evidence = self.lock();
        if !was_watching {
            *evidence = Evidence::default();
        }
        evidence.isolate(caller, now);
        self.watch_until(now + WINDOW);
    }

    /// Whether requests of this caller must not share a call of the guest with those of others.
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
        // Nothing panics between two changes that belong together.
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
