//! How many requests a version takes at once, found out from how long they wait.
//!
//! A queue helps with what comes in bursts and harms with what does not end: then every request waits
//! for as long as the queue is, and gives up. So the number of requests that may wait or run is
//! lowered while even the quickest to get a thread has waited too long, and raised again while it is
//! what holds requests back. Whoever comes beyond it is told so at once, which costs microseconds.
//!
//! What is refused first is what can wait or was a trial: batches, then the candidates of a model
//! whose stable version is pressed, then all others. Shadows never get this far: they run only when
//! nobody else wants the processor.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ServableVersion;

/// A window ends when this much time has passed, or as much as requests wait for, and something was
/// measured in it: a new limit shows its effect before it is judged.
const WINDOW: Duration = Duration::from_millis(50);

/// The longest window, so that a wait that is far too long does not last for as long.
const LONGEST_WINDOW: Duration = Duration::from_millis(500);

/// What requests may wait, as a part of the time they have: a tenth leaves the rest for the guest and
/// for the way back, and hides bursts of ten times what is usual.
const WAIT_PART: u32 = 10;

/// Where the limit begins, for each batch that may run at once: enough for a burst, and not so many
/// that a slow version begins with seconds of work. A version that takes more rows in one call begins with
/// as many.
const START_PER_THREAD: usize = 16;

/// How far a limit may be used, in percent, before batches are refused, so that room is left.
const BATCH_PERCENT: usize = 60;

/// The same for candidates, and the limit of the stable version.
const CANDIDATE_PERCENT: usize = 80;

/// What a request is worth when there are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Many rows for somebody who can wait.
    Batch,
    /// For a version on trial.
    Candidate,
    /// For a version that is relied on.
    Stable,
}

impl Class {
    /// How many of a limit's requests may be there when one more of this class comes. Where a thread
    /// is free, nobody is refused.
    fn share(self, limit: usize, threads: usize) -> usize {
        let percent = match self {
            Self::Batch => BATCH_PERCENT,
            Self::Candidate => CANDIDATE_PERCENT,
            Self::Stable => 100,
        };
        (limit * percent / 100).max(threads)
    }
}

/// Why a request was not taken. Each is a series of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The version has as many as it can answer in time.
    Limit,
    /// It is a batch, and there is room only for what is more urgent.
    Batch,
    /// It is for a candidate, and the stable version is pressed.
    Candidate,
    /// It would not be answered in the time that its caller gives it.
    Late,
}

impl Refused {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Limit, Self::Batch, Self::Candidate, Self::Late];

    /// The word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Batch => "batch",
            Self::Candidate => "candidate",
            Self::Late => "late",
        }
    }
}

/// The door of one version.
#[derive(Debug)]
pub struct Admission {
    bounds: Bounds,
    limit: AtomicUsize,
    in_flight: AtomicUsize,
    /// What the last window found that a request has to wait at least, in microseconds.
    wait_us: AtomicU64,
    /// Whether somebody was held back by the limit since it was last looked at.
    was_reached: AtomicBool,
    window: Mutex<Window>,
    refused: [AtomicU64; Refused::ALL.len()],
}

/// Between which the limit moves, and by what.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    threads: usize,
    floor: usize,
    ceiling: usize,
    target: Duration,
}

impl Bounds {
    /// The limit after a window in which nobody waited for less than `least_wait`, and in which it
    /// was or was not what held requests back.
    fn next(self, limit: usize, least_wait: Duration, was_reached: bool) -> usize {
        let next = if least_wait > self.target {
            // Never by more than half at once: one window may have been an accident.
            let part = self.target.as_secs_f64() / least_wait.as_secs_f64();
            scale(limit, part.max(0.5))
        } else if was_reached {
            // More quickly far from the bottom, where a step means less.
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

/// What was measured since the limit was last looked at.
#[derive(Debug)]
struct Window {
    since: Instant,
    least_wait: Option<Duration>,
}

impl Admission {
    /// For a version of which `threads` batches run at once and `queued` may wait, and whose callers
    /// wait for `patience` unless they say otherwise.
    /// `together` requests of one row can share a call.
    pub(super) fn new(threads: usize, queued: usize, patience: Duration, together: usize) -> Self {
        let ceiling = threads.saturating_add(queued);
        // One that waits for each thread: it is never idle while the next request is on its way.
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
            refused: Default::default(),
        }
    }

    /// How many requests it takes at once, now.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// How many it has.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// How many it has refused, by reason.
    pub fn refusals(&self) -> [(Refused, u64); Refused::ALL.len()] {
        Refused::ALL.map(|reason| (reason, self.refused[reason as usize].load(Ordering::Relaxed)))
    }

    /// A batch got a thread after it had waited for that long.
    pub(crate) fn waited(&self, wait: Duration, now: Instant) {
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

    /// Whether there are as many requests as one of this class may find.
    fn is_full_for(&self, class: Class) -> bool {
        let is_full = self.in_flight() >= class.share(self.limit(), self.bounds.threads);
        if is_full {
            // Whoever is held back by it: a limit that is too low grows.
            self.was_reached.store(true, Ordering::Relaxed);
        }
        is_full
    }

    /// Whether a request of the class is taken, beside the stable version's own.
    fn judge(&self, stable: Option<&Self>, class: Class, time: Duration) -> Result<(), Refused> {
        match class {
            Class::Batch if stable.is_some_and(|stable| stable.is_full_for(class)) => {
                return Err(Refused::Batch);
            }
            Class::Candidate if stable.is_some_and(|stable| stable.is_full_for(class)) => {
                return Err(Refused::Candidate);
            }
            Class::Batch | Class::Candidate | Class::Stable => {}
        }
        if self.is_full_for(class) {
            let has_room = self.in_flight() < self.limit();
            return Err(if has_room && class == Class::Batch {
                Refused::Batch
            } else {
                Refused::Limit
            });
        }
        // What was found out holds only as long as somebody waits.
        let must_wait = self.in_flight() >= 2 * self.bounds.threads;
        if must_wait && time < Duration::from_micros(self.wait_us.load(Ordering::Relaxed)) {
            return Err(Refused::Late);
        }
        Ok(())
    }

    fn refuse(&self, reason: Refused) -> Refused {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
        reason
    }
}

/// A request on its way through a version; counted until this is dropped.
#[must_use]
pub struct Admitted(Arc<ServableVersion>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.admission().in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who knocks.
#[derive(Clone, Copy)]
pub struct Knock<'a> {
    /// The version that is to answer.
    pub version: &'a Arc<ServableVersion>,
    /// The model's stable version, if it is another one.
    pub stable: Option<&'a Arc<ServableVersion>>,
    /// What the request is worth.
    pub class: Class,
    /// How long its caller waits from now on.
    pub time: Duration,
}

impl Knock<'_> {
    /// Whether the request would be taken now. What would not is counted as refused.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check(&self) -> Result<(), Refused> {
        let own = self.version.admission();
        let stable = self.stable.map(|stable| stable.admission());
        own.judge(stable, self.class, self.time).map_err(|reason| own.refuse(reason))
    }

    /// Take the request.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn enter(&self) -> Result<Admitted, Refused> {
        self.check()?;
        // Between the two, others may have come in: a few more than the limit do no harm, and the
        // queue has a bound of its own.
        self.version.admission().in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(Admitted(Arc::clone(self.version)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    proptest! {
        /// Whatever is measured, the limit stays within its bounds, falls by half at most, and only
        /// if requests waited too long.
        #[test]
        fn a_limit_keeps_to_its_bounds(
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

        /// Of two classes, the more urgent one is never refused where the other is not.
        #[test]
        fn urgent_requests_are_refused_last(
            limit in 1_usize..1000, threads in 1_usize..8, in_flight in 0_usize..1000,
        ) {
            let [batch, candidate, stable] = [Class::Batch, Class::Candidate, Class::Stable]
                .map(|class| in_flight < class.share(limit, threads));
            prop_assert!(batch <= candidate && candidate <= stable);
        }
    }

    /// What became of the requests of a simulated second half: answered in time, and late.
    struct Outcome {
        answered: usize,
        late: usize,
        limit: usize,
    }

    /// Requests that come at even times to two threads, in virtual time.
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
            // Threads take what came before now.
            while let Some(arrival) = queue.front().copied() {
                let thread = usize::from(free_at[1] < free_at[0]);
                let begin = free_at[thread].max(arrival);
                if begin > now {
                    break;
                }
                queue.pop_front();
                admission.waited(begin - arrival, start + begin);
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
            match admission.judge(None, Class::Stable, patience) {
                Ok(()) => {
                    admission.in_flight.fetch_add(1, Ordering::Relaxed);
                    queue.push_back(now);
                }
                Err(reason) => {
                    admission.refuse(reason);
                }
            }
            now += step;
        }
        outcome.limit = admission.limit();
        outcome
    }

    #[test]
    fn ten_times_too_many_requests_leave_those_that_are_taken_in_time() {
        for (service, patience) in [(1, 2000), (5, 2000), (100, 2000), (400, 2000), (20, 100)] {
            let (service, patience) = (MILLISECOND * service, MILLISECOND * patience);
            let outcome = simulate(service, 10.0, patience);
            // Two threads for the second half.
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
    fn batches_alone_find_their_limit_as_well() {
        let admission = Admission::new(2, 256, 2000 * MILLISECOND, 1);
        let (start, mut now) = (admission.limit(), Instant::now());
        admission.in_flight.store(start, Ordering::Relaxed);
        let refused = admission.judge(None, Class::Batch, MILLISECOND).unwrap_err();
        assert_eq!(refused, Refused::Limit);
        for _ in 0..100 {
            admission.in_flight.store(admission.limit() * 7 / 10, Ordering::Relaxed);
            let refused = admission.judge(None, Class::Batch, MILLISECOND).unwrap_err();
            assert_eq!(admission.refuse(refused), Refused::Batch);
            now += WINDOW;
            admission.waited(MILLISECOND, now);
        }
        assert_eq!(admission.limit(), admission.bounds.ceiling);
    }

    #[test]
    fn a_candidate_is_held_back_only_as_long_as_the_stable_version_is_slow() {
        let (stable, candidate) = (0, 1);
        let versions = [(); 2].map(|()| Admission::new(2, 256, 2000 * MILLISECOND, 1));
        let judge = |class| versions[candidate].judge(Some(&versions[stable]), class, MILLISECOND);
        // More than four fifths of what it begins with, and answered without a wait.
        versions[stable].in_flight.store(versions[stable].limit() * 9 / 10, Ordering::Relaxed);
        let mut now = Instant::now();
        for class in [Class::Candidate, Class::Batch] {
            assert!(judge(class).is_err());
            let mut windows = 0;
            while judge(class).is_err() {
                now += WINDOW;
                versions[stable].waited(MILLISECOND, now);
                windows += 1;
                assert!(windows < 20, "{class:?} is never taken");
            }
        }
        // Where it makes others wait, there is no room to be made.
        versions[stable].in_flight.store(versions[stable].limit() * 9 / 10, Ordering::Relaxed);
        for _ in 0..20 {
            assert_eq!(judge(Class::Candidate), Err(Refused::Candidate));
            now += WINDOW;
            versions[stable].waited(1000 * MILLISECOND, now);
        }
    }

    #[test]
    fn what_is_not_too_much_is_not_refused() {
        let outcome = simulate(5 * MILLISECOND, 0.9, 2000 * MILLISECOND);
        assert_eq!(outcome.late, 0);
        assert!(outcome.answered >= 3550, "{}", outcome.answered);
    }
}
