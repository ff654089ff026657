//! Stops routing to a version that keeps breaking down, and tries it again after a while.
//!
//! Faults count only in a row: a single success shows that the version works, so that one caller
//! with poisonous input does not take it away from the others.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Faults in a row until the version is suspended.
const FAULTS_IN_A_ROW: u32 = 10;

/// The first suspension; every further one in a row is twice as long.
const FIRST_SUSPENSION: Duration = Duration::from_secs(1);

/// The longest suspension.
const LONGEST_SUSPENSION: Duration = Duration::from_secs(60);

/// Whether a version may be asked.
#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

#[derive(Debug, Clone, Copy)]
enum State {
    /// It may.
    Closed { faults_in_a_row: u32 },
    /// It may not, until then.
    Suspended { until: Instant, round: u32 },
    /// One caller tries it; the others wait for the outcome, or until then if there is none.
    OnTrial { until: Instant, round: u32 },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { faults_in_a_row: 0 }
    }
}

impl Breaker {
    /// Whether a caller that asks now could be admitted.
    pub fn allows(&self, now: Instant) -> bool {
        match *self.lock() {
            State::Closed { .. } => true,
            State::Suspended { until, .. } | State::OnTrial { until, .. } => now >= until,
        }
    }

    /// Take the right to ask. After a suspension only one caller gets it, as a trial.
    pub fn admit(&self, now: Instant) -> bool {
        let mut state = self.lock();
        match *state {
            State::Closed { .. } => true,
            State::Suspended { until, .. } | State::OnTrial { until, .. } if now < until => false,
            State::Suspended { round, .. } | State::OnTrial { round, .. } => {
                *state = State::OnTrial { until: now + suspension(round), round };
                true
            }
        }
    }

    /// The version did what it should.
    pub fn succeeded(&self) {
        let mut state = self.lock();
        match *state {
            State::Closed { faults_in_a_row: 0 } => {}
            State::Closed { .. } | State::OnTrial { .. } => *state = State::default(),
            // A call from before the suspension.
            State::Suspended { .. } => {}
        }
    }

    /// The version broke down. Returns for how long it is suspended from now on, if it is.
    pub fn broke_down(&self, now: Instant) -> Option<Duration> {
        let mut state = self.lock();
        let round = match *state {
            State::Closed { faults_in_a_row } if faults_in_a_row + 1 < FAULTS_IN_A_ROW => {
                *state = State::Closed { faults_in_a_row: faults_in_a_row + 1 };
                return None;
            }
            // A call from before the suspension.
            State::Suspended { .. } => return None,
            State::Closed { .. } => 0,
            State::OnTrial { round, .. } => round.saturating_add(1),
        };
        let time = suspension(round);
        *state = State::Suspended { until: now + time, round };
        Some(time)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn suspension(round: u32) -> Duration {
    let factor = 2_u32.saturating_pow(round.min(16));
    FIRST_SUSPENSION.saturating_mul(factor).min(LONGEST_SUSPENSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn break_down(breaker: &Breaker, times: u32, now: Instant) -> Option<Duration> {
        (0..times).filter_map(|_| breaker.broke_down(now)).last()
    }

    #[test]
    fn only_faults_in_a_row_suspend() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(break_down(&breaker, FAULTS_IN_A_ROW - 1, now), None);
            breaker.succeeded();
        }
        assert!(breaker.admit(now));
        assert_eq!(break_down(&breaker, FAULTS_IN_A_ROW, now), Some(FIRST_SUSPENSION));
        assert!(!breaker.allows(now) && !breaker.admit(now));
    }

    #[test]
    fn one_trial_decides_and_failed_trials_take_longer_each_time() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        let mut time = break_down(&breaker, FAULTS_IN_A_ROW, now).unwrap();
        for round in 1..10 {
            // Calls from before change nothing.
            breaker.succeeded();
            assert_eq!(breaker.broke_down(now), None);
            now += time;
            assert!(breaker.allows(now) && breaker.admit(now));
            assert!(!breaker.admit(now), "there is one trial at a time");
            time = breaker.broke_down(now).unwrap();
            assert_eq!(time, suspension(round));
        }
        assert_eq!(time, LONGEST_SUSPENSION);
        now += time;
        assert!(breaker.admit(now));
        breaker.succeeded();
        assert!(breaker.admit(now) && breaker.admit(now));
    }

    #[test]
    fn a_trial_without_an_outcome_is_tried_again() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        break_down(&breaker, FAULTS_IN_A_ROW, now);
        let later = now + FIRST_SUSPENSION;
        assert!(breaker.admit(later) && !breaker.admit(later));
        assert!(breaker.admit(later + FIRST_SUSPENSION));
    }
}
