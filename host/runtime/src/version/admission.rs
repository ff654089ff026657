//! Limits the concurrent requests of a version, adapting the limit to how long requests wait for a
//! thread.
//!
//! A queue absorbs bursts, but under sustained overload every request waits for as long as the
//! queue is and then times out. So the limit of requests that wait or run is lowered while even the
//! shortest wait for a thread is too long, and raised while the limit is what holds requests back.
//! Requests above the limit are shed at once, which costs microseconds.
//!
//! Batches are shed first, then requests for candidates if the stable version is under load, then
//! all others. Shadow requests never get here: they only use idle processors.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ServableVersion;

/// The shortest measurement window. A window lasts for this time or for the current wait, whichever
/// is longer, so that the effect of a new limit shows before it is judged.
const WINDOW: Duration = Duration::from_millis(50);

/// The longest measurement window, so that far too long waits are corrected soon.
const LONGEST_WINDOW: Duration = Duration::from_millis(500);

/// The target wait, as a fraction of the time that requests have: a tenth leaves the rest for the
/// guest and the response, and absorbs bursts of ten times the usual load.
const WAIT_PART: u32 = 10;

/// The initial limit for each batch that may run at once: enough for a burst, but not seconds of
/// work for a slow version. A version with a larger batch size starts with that.
const START_PER_THREAD: usize = 16;

/// The percentage of the limit up to which batches are accepted.
const BATCH_PERCENT: usize = 60;

/// The percentage of the stable version's limit up to which requests for candidates are accepted.
const CANDIDATE_PERCENT: usize = 80;

/// The class of a request, which decides what is shed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestClass {
    /// A batch of many rows, whose caller can wait.
    Batch,
    /// A request for a candidate version.
    Candidate,
    /// Any other request.
    Stable,
}

impl RequestClass {
    /// How many requests may be in flight for one more of this class to be accepted. A request is
    /// never shed while a thread is free.
    fn share(self, limit: usize, threads: usize) -> usize {
        let percent = match self {
            Self::Batch => BATCH_PERCENT,
            Self::Candidate => CANDIDATE_PERCENT,
            Self::Stable => 100,
        };
        (limit * percent / 100).max(threads)
    }
}

/// Why a request was shed; each reason is a time series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShedReason {
    /// The version has as many requests as it can answer in time.
    Limit,
    /// The request is a batch, and the remaining capacity is reserved for other requests.
    Batch,
    /// The request is for a candidate, and the stable version is under load.
    Candidate,
    /// The request would miss its deadline.
    Late,
}

impl ShedReason {
    /// All reasons.
    pub const ALL: [Self; 4] = [Self::Limit, Self::Batch, Self::Candidate, Self::Late];

    /// The value of the metrics label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Batch => "batch",
            Self::Candidate => "candidate",
            Self::Late => "late",
        }
    }
}

/// The admission control of one version.
#[derive(Debug)]
pub struct Admission {
    bounds: Bounds,
    limit: AtomicUsize,
    in_flight: AtomicUsize,
    /// The shortest wait in the last window, in microseconds.
    wait_us: AtomicU64,
    /// Whether the limit was reached in the current window.
    was_reached: AtomicBool,
    window: Mutex<Window>,
    shed: [AtomicU64; ShedReason::ALL.len()],
}

/// The bounds of the limit.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    threads: usize,
    floor: usize,
    ceiling: usize,
    target: Duration,
}

impl Bounds {
    /// The limit after a window with this shortest wait, in which the limit was or was not reached.
    fn next(self, limit: usize, least_wait: Duration, was_reached: bool) -> usize {
        let next = if least_wait > self.target {
            // At most halved at once: a single window may be an outlier.
            let part = self.target.as_secs_f64() / least_wait.as_secs_f64();
            scale(limit, part.max(0.5))
        } else if was_reached {
            // In steps that grow with the limit.
            limit + limit.isqrt().max(1)
        } else {
            limit
        };
        next.clamp(self.floor, self.ceiling)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a part of a limit of some thousand at most"
)]
fn scale(limit: usize, part: f64) -> usize {
    (limit as f64 * part) as usize
}

/// The measurements of the current window.
#[derive(Debug)]
struct Window {
    since: Instant,
    least_wait: Option<Duration>,
}

impl Admission {
    /// Create the admission control of a version that runs `threads` batches at once, of which
    /// `queued` jobs may wait, whose callers wait for `patience` by default, and of which
    /// `together` requests of one row can share a batch.
    pub(super) fn new(threads: usize, queued: usize, patience: Duration, together: usize) -> Self {
        let ceiling = threads.saturating_add(queued);
        // One waiting request for each thread, so that a thread is not idle while the next request
        // arrives.
        let floor = (2 * threads).min(ceiling);
        let start = (START_PER_THREAD.max(together) * threads).clamp(floor, ceiling);
        let bounds = Bounds { threads, floor, ceiling, target: patience / WAIT_PART };
        let window = Window { since: Instant::now(), least_wait: None };
        Self {
            bounds,
            limit: AtomicUsize::new(start),
            in_flight: AtomicUsize::new(0),
            wait_us: AtomicU64::new(0),
            was_reached: AtomicBool::new(false),
            window: Mutex::new(window),
            shed: Default::default(),
        }
    }

    /// The current limit of requests in flight.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// The requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The number of shed requests by reason.
    pub fn refusals(&self) -> [(ShedReason, u64); ShedReason::ALL.len()] {
        ShedReason::ALL.map(|reason| (reason, self.shed[reason as usize].load(Ordering::Relaxed)))
    }

    /// Record how long a batch has waited for a thread.
    pub(crate) fn record_wait(&self, wait: Duration, now: Instant) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let least = window.least_wait.map_or(wait, |least| least.min(wait));
        window.least_wait = Some(least);
        let before = Duration::from_micros(self.wait_us.load(Ordering::Relaxed));
        if now.saturating_duration_since(window.since) < before.clamp(WINDOW, LONGEST_WINDOW) {
            return;
        }
        let was_reached = self.was_reached.swap(false, Ordering::Relaxed);
        let limit = self.bounds.next(self.limit(), least, was_reached);
        self.limit.store(limit, Ordering::Relaxed);
        let micros = u64::try_from(least.as_micros()).unwrap_or(u64::MAX);
        self.wait_us.store(micros, Ordering::Relaxed);
        *window = Window { since: now, least_wait: None };
    }

    /// Whether a request of this class has to be shed because of the requests in flight.
    fn is_full_for(&self, class: RequestClass) -> bool {
        let is_full = self.in_flight() >= class.share(self.limit(), self.bounds.threads);
        if is_full {
            // The limit is reached, so it may be too low.
            self.was_reached.store(true, Ordering::Relaxed);
        }
        is_full
    }

    /// Decide whether a request is accepted, given the stable version's own requests.
    fn decide(
        &self,
        stable: Option<&Self>,
        class: RequestClass,
        time: Duration,
    ) -> Result<(), ShedReason> {
        match class {
            RequestClass::Batch if stable.is_some_and(|stable| stable.is_full_for(class)) => {
                return Err(ShedReason::Batch);
            }
            RequestClass::Candidate if stable.is_some_and(|stable| stable.is_full_for(class)) => {
                return Err(ShedReason::Candidate);
            }
            RequestClass::Batch | RequestClass::Candidate | RequestClass::Stable => {}
        }
        if self.is_full_for(class) {
            let has_room = self.in_flight() < self.limit();
            return Err(if has_room && class == RequestClass::Batch {
                ShedReason::Batch
            } else {
                ShedReason::Limit
            });
        }
        // The measured wait applies only while requests wait.
        let must_wait = self.in_flight() >= 2 * self.bounds.threads;
        if must_wait && time < Duration::from_micros(self.wait_us.load(Ordering::Relaxed)) {
            return Err(ShedReason::Late);
        }
        Ok(())
    }

    fn count_shed(&self, reason: ShedReason) -> ShedReason {
        self.shed[reason as usize].fetch_add(1, Ordering::Relaxed);
        reason
    }
}

/// A request that was admitted; it counts as in flight until this is dropped.
#[must_use]
pub struct AdmissionGuard(Arc<ServableVersion>);

impl Drop for AdmissionGuard {
    fn drop(&mut self) {
        self.0.admission().in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that asks for admission.
#[derive(Clone, Copy)]
pub struct AdmissionRequest<'a> {
    /// The version that would answer.
    pub version: &'a Arc<ServableVersion>,
    /// The model's stable version, if it is a different one.
    pub stable: Option<&'a Arc<ServableVersion>>,
    /// The class of the request.
    pub class: RequestClass,
    /// The time until the request's deadline.
    pub time: Duration,
}

impl AdmissionRequest<'_> {
    /// Check whether the request would be admitted now. A request that would not be counts as shed.
    ///
    /// # Errors
    /// [`ShedReason`].
    pub fn check(&self) -> Result<(), ShedReason> {
        let own = self.version.admission();
        let stable = self.stable.map(|stable| stable.admission());
        own.decide(stable, self.class, self.time).map_err(|reason| own.count_shed(reason))
    }

    /// Admit the request.
    ///
    /// # Errors
    /// [`ShedReason`].
    pub fn admit(&self) -> Result<AdmissionGuard, ShedReason> {
        self.check()?;
        // Other requests may have been admitted meanwhile. Exceeding the limit by a few is
        // harmless, and the queue has a bound of its own.
        self.version.admission().in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(AdmissionGuard(Arc::clone(self.version)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    proptest! {
        /// Whatever is measured, the limit stays within its bounds, is at most halved at once, and
        /// is lowered only if requests waited too long.
        #[test]
        fn the_limit_stays_within_its_bounds(
            threads in 1_usize..8,
            queued in 1_usize..1000,
            windows in prop::collection::vec((0_u64..10_000, any::<bool>()), 1..50),
        ) {
            let admission = Admission::new(threads, queued, 2000 * MILLISECOND, 1);
            let bounds = admission.bounds;
            let mut limit = admission.limit();
            for (wait, was_reached) in windows {
                let next = bounds.next(limit, Duration::from_millis(wait), was_reached);
                prop_assert!((bounds.floor..=bounds.ceiling).contains(&next));
                prop_assert!(next >= limit / 2);
                prop_assert!(next >= limit || Duration::from_millis(wait) > bounds.target);
                prop_assert!(next <= limit || was_reached);
                limit = next;
            }
        }

        /// A class with a higher priority is never shed where a lower one is accepted.
        #[test]
        fn requests_of_higher_classes_are_shed_last(
            limit in 1_usize..1000, threads in 1_usize..8, in_flight in 0_usize..1000,
        ) {
            let [batch, candidate, stable] = [RequestClass::Batch, RequestClass::Candidate, RequestClass::Stable]
                .map(|class| in_flight < class.share(limit, threads));
            prop_assert!(batch <= candidate && candidate <= stable);
        }
    }

    /// The outcome of the second half of a simulation.
    struct Outcome {
        answered: usize,
        late: usize,
        limit: usize,
    }

    /// Simulate requests at regular intervals for two threads, in virtual time.
    fn simulate(service: Duration, load: f64, patience: Duration) -> Outcome {
        let admission = Admission::new(2, 256, patience, 1);
        let start = Instant::now();
        let step = service.div_f64(2.0 * load);
        let end = Duration::from_secs(20);
        let mut queue: VecDeque<Duration> = VecDeque::new();
        let mut free_at = [Duration::ZERO; 2];
        let mut running: VecDeque<Duration> = VecDeque::new();
        let mut outcome = Outcome { answered: 0, late: 0, limit: 0 };
        let mut now = Duration::ZERO;
        while now < end {
            // Threads take the requests that arrived before now.
            while let Some(arrival) = queue.front().copied() {
                let thread = usize::from(free_at[1] < free_at[0]);
                let begin = free_at[thread].max(arrival);
                if begin > now {
                    break;
                }
                queue.pop_front();
                admission.record_wait(begin - arrival, start + begin);
                if begin - arrival >= patience {
                    admission.in_flight.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                free_at[thread] = begin + service;
                running.push_back(free_at[thread]);
                if now > end / 2 {
                    let in_time = free_at[thread] - arrival <= patience;
                    outcome.answered += usize::from(in_time);
                    outcome.late += usize::from(!in_time);
                }
            }
            while running.front().is_some_and(|done| *done <= now) {
                running.pop_front();
                admission.in_flight.fetch_sub(1, Ordering::Relaxed);
            }
            match admission.decide(None, RequestClass::Stable, patience) {
                Ok(()) => {
                    admission.in_flight.fetch_add(1, Ordering::Relaxed);
                    queue.push_back(now);
                }
                Err(reason) => {
                    admission.count_shed(reason);
                }
            }
            now += step;
        }
        outcome.limit = admission.limit();
        outcome
    }

    #[test]
    fn admitted_requests_are_in_time_under_tenfold_overload() {
        for (service, patience) in [(1, 2000), (5, 2000), (100, 2000), (400, 2000), (20, 100)] {
            let (service, patience) = (MILLISECOND * service, MILLISECOND * patience);
            let outcome = simulate(service, 10.0, patience);
            // The capacity of two threads in the second half.
            let capacity = 2 * 10_000 / usize::try_from(service.as_millis()).unwrap();
            assert_eq!(outcome.late, 0, "{service:?}, limit {}", outcome.limit);
            assert!(
                outcome.answered * 100 >= capacity * 95,
                "{service:?}: {} of {capacity}, limit {}",
                outcome.answered,
                outcome.limit
            );
        }
    }

    #[test]
    fn the_limit_adapts_to_batches_alone() {
        let admission = Admission::new(2, 256, 2000 * MILLISECOND, 1);
        let (start, mut now) = (admission.limit(), Instant::now());
        admission.in_flight.store(start, Ordering::Relaxed);
        let refused = admission.decide(None, RequestClass::Batch, MILLISECOND).unwrap_err();
        assert_eq!(refused, ShedReason::Limit);
        for _ in 0..100 {
            admission.in_flight.store(admission.limit() * 7 / 10, Ordering::Relaxed);
            let refused = admission.decide(None, RequestClass::Batch, MILLISECOND).unwrap_err();
            assert_eq!(admission.count_shed(refused), ShedReason::Batch);
            now += WINDOW;
            admission.record_wait(MILLISECOND, now);
        }
        assert_eq!(admission.limit(), admission.bounds.ceiling);
    }

    #[test]
    fn candidates_are_shed_only_while_the_stable_version_waits() {
        let (stable, candidate) = (0, 1);
        let versions = [(); 2].map(|()| Admission::new(2, 256, 2000 * MILLISECOND, 1));
        let decide =
            |class| versions[candidate].decide(Some(&versions[stable]), class, MILLISECOND);
        // Above 80 % of the initial limit, and without waits.
        versions[stable].in_flight.store(versions[stable].limit() * 9 / 10, Ordering::Relaxed);
        let mut now = Instant::now();
        for class in [RequestClass::Candidate, RequestClass::Batch] {
            assert!(decide(class).is_err());
            let mut windows = 0;
            while decide(class).is_err() {
                now += WINDOW;
                versions[stable].record_wait(MILLISECOND, now);
                windows += 1;
                assert!(windows < 20, "{class:?} is never taken");
            }
        }
        // While requests for the stable version wait, its limit does not grow.
        versions[stable].in_flight.store(versions[stable].limit() * 9 / 10, Ordering::Relaxed);
        for _ in 0..20 {
            assert_eq!(decide(RequestClass::Candidate), Err(ShedReason::Candidate));
            now += WINDOW;
            versions[stable].record_wait(1000 * MILLISECOND, now);
        }
    }

    #[test]
    fn requests_below_capacity_are_not_shed() {
        let outcome = simulate(5 * MILLISECOND, 0.9, 2000 * MILLISECOND);
        assert_eq!(outcome.late, 0);
        assert!(outcome.answered >= 3550, "{}", outcome.answered);
    }
}
