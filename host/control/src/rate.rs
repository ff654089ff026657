//! Rate limits: a token bucket, and the header fields that report its state to the caller.
//!
//! The governor crate does the counting, with one atomic number for each bucket. This module owns the
//! bounds of rates and computes the header fields `RateLimit` and `RateLimit-Policy`. The clock is a
//! parameter.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use serde::{Deserialize, Serialize};

/// The allowed requests per second: from one in a quarter of an hour to more than one machine answers.
/// Within these bounds and [`MAX_BURST`], the time that a bucket takes to fill fits into 64 bits of
/// nanoseconds.
const PER_SECOND: std::ops::RangeInclusive<f64> = 0.001..=1_000_000.0;

/// The largest burst.
const MAX_BURST: u32 = 1_000_000;

/// A rate limit: requests per second on average, and how many may come at once (the burst).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RateFields")]
pub struct Rate {
    per_second: f64,
    burst: NonZeroU32,
}

/// The fields of a rate in the configuration and in JSON. The default burst is that of one second.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RateFields {
    per_second: f64,
    burst: Option<u32>,
}

/// Numbers are out of the bounds of a [`Rate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`per_second` must be from 0.001 to 1000000, and `burst` from 1 to {MAX_BURST}")]
pub struct RateError;

impl TryFrom<RateFields> for Rate {
    type Error = RateError;

    fn try_from(fields: RateFields) -> Result<Self, RateError> {
        Self::new(fields.per_second, fields.burst)
    }
}

impl Rate {
    /// A rate. The default burst is the number of requests in one second, at least 1.
    ///
    /// # Errors
    /// [`RateError`] if a number is out of bounds.
    pub fn new(per_second: f64, burst: Option<u32>) -> Result<Self, RateError> {
        if !PER_SECOND.contains(&per_second) {
            return Err(RateError);
        }
        let burst = burst.unwrap_or_else(|| whole(per_second));
        let burst = NonZeroU32::new(burst).filter(|burst| burst.get() <= MAX_BURST);
        Ok(Self { per_second, burst: burst.ok_or(RateError)? })
    }

    /// The average requests per second.
    pub fn per_second(self) -> f64 {
        self.per_second
    }

    /// How many requests may come at once.
    pub fn burst(self) -> u32 {
        self.burst.get()
    }

    /// The rate as a value of the configuration file.
    pub fn to_toml(self) -> String {
        format!("{{ per_second = {:?}, burst = {} }}", self.per_second, self.burst)
    }

    /// The time in which one request is added to the bucket.
    fn interval(self) -> Duration {
        Duration::from_secs_f64(self.per_second.recip())
    }

    fn quota(self) -> Quota {
        let quota = Quota::with_period(self.interval()).expect("a rate is finite");
        quota.allow_burst(self.burst)
    }

    /// The seconds in which an empty bucket fills.
    fn window(self) -> u64 {
        seconds(self.interval().saturating_mul(self.burst.get()))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/s, {} at once", self.per_second, self.burst)
    }
}

/// The rate rounded up. It is within the bounds of [`PER_SECOND`].
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and a million"
)]
fn whole(per_second: f64) -> u32 {
    per_second.ceil() as u32
}

/// Whole seconds, rounded up, so that a caller that waits for them is not too early.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// A token bucket: the state of one rate limit.
#[derive(Debug)]
pub struct Bucket<C: Clock = DefaultClock> {
    rate: Rate,
    clock: C,
    limiter: RateLimiter<NotKeyed, InMemoryState, C, StateInformationMiddleware>,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate) -> Self {
        Self::with_clock(rate, DefaultClock::default())
    }
}

impl<C: Clock + Clone> Bucket<C> {
    fn with_clock(rate: Rate, clock: C) -> Self {
        let limiter = RateLimiter::direct_with_clock(rate.quota(), clock.clone());
        Self { rate, clock, limiter: limiter.with_middleware() }
    }
}

impl<C: Clock> Bucket<C> {
    /// The rate of the bucket.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Take one token, if there is one.
    pub fn take(&self) -> RateDecision {
        let Self { rate, clock, limiter } = self;
        match limiter.check() {
            Ok(state) => {
                let left = state.remaining_burst_capacity();
                let missing = rate.burst.get().saturating_sub(left);
                let time = if left == 0 {
                    rate.interval()
                } else {
                    rate.interval().saturating_mul(missing)
                };
                RateDecision { rate: *rate, left, seconds: seconds(time), is_refused: false }
            }
            Err(until) => {
                // The token may have come since the check, but the request was refused.
                let seconds = seconds(until.wait_time_from(clock.now())).max(1);
                RateDecision { rate: *rate, left: 0, seconds, is_refused: true }
            }
        }
    }
}

/// The decision of a bucket about one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateDecision {
    rate: Rate,
    left: u32,
    /// Until the bucket is full again; if it is empty, until the next token.
    seconds: u64,
    is_refused: bool,
}

impl RateDecision {
    /// After how many seconds to retry; none if the request is admitted.
    pub fn retry_after(&self) -> Option<u64> {
        self.is_refused.then_some(self.seconds)
    }

    /// A member of `RateLimit-Policy`: the burst `q`, and the `w` seconds in which the bucket fills. A caller
    /// that spreads `q` requests over every `w` seconds is never refused.
    pub fn policy(&self, name: &str) -> String {
        format!("\"{name}\";q={};w={}", self.rate.burst, self.rate.window())
    }

    /// A member of `RateLimit`: the tokens that are left, and after how many seconds the bucket is full (or
    /// has one token, if it is empty, as in `Retry-After`).
    pub fn state(&self, name: &str) -> String {
        format!("\"{name}\";r={};t={}", self.left, self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: f64, burst: u32) -> Rate {
        Rate::new(per_second, Some(burst)).unwrap()
    }

    #[test]
    fn a_burst_is_admitted_then_nothing_then_one_at_a_time() {
        let clock = FakeRelativeClock::default();
        let bucket = Bucket::with_clock(rate(0.5, 3), clock.clone());
        let take = || {
            let taken = bucket.take();
            (taken.policy("key"), taken.state("key"), taken.retry_after())
        };
        let policy = "\"key\";q=3;w=6".to_owned();
        let state = |text: &str| format!("\"key\";{text}");
        assert_eq!(take(), (policy.clone(), state("r=2;t=2"), None));
        assert_eq!(take(), (policy.clone(), state("r=1;t=4"), None));
        // The last one: the next is there in two seconds.
        assert_eq!(take(), (policy.clone(), state("r=0;t=2"), None));
        assert_eq!(take(), (policy.clone(), state("r=0;t=2"), Some(2)));
        clock.advance(Duration::from_millis(500));
        // Rounded up, so that a caller does not retry too early.
        assert_eq!(take().2, Some(2));
        clock.advance(Duration::from_millis(1499));
        assert_eq!(take().2, Some(1));
        clock.advance(Duration::from_millis(1));
        assert_eq!(take(), (policy.clone(), state("r=0;t=2"), None));
        clock.advance(Duration::from_secs(3600));
        assert_eq!(take(), (policy, state("r=2;t=2"), None));
    }

    #[test]
    fn windows_are_whole_seconds_rounded_up() {
        let window = |per_second, burst| rate(per_second, burst).window();
        assert_eq!(window(100.0, 100), 1);
        assert_eq!(window(100.0, 200), 2);
        assert_eq!(window(100.0, 10), 1);
        assert_eq!(window(100.0, 101), 2);
        assert_eq!(window(1.0 / 60.0, 2), 120);
        assert_eq!(window(0.001, MAX_BURST), 1_000_000_000);
    }

    #[test]
    fn rates_out_of_bounds_are_refused() {
        assert_eq!(Rate::new(2.5, None).unwrap(), rate(2.5, 3));
        assert_eq!(Rate::new(0.01, None).unwrap(), rate(0.01, 1));
        for (per_second, burst) in
            [(0.0, 1), (-1.0, 1), (f64::NAN, 1), (f64::INFINITY, 1), (1e7, 1), (1.0, 0)]
        {
            assert_eq!(Rate::new(per_second, Some(burst)), Err(RateError), "{per_second}");
        }
        assert!(Rate::new(1.0, Some(MAX_BURST + 1)).is_err());
        assert!(serde_json::from_str::<Rate>(r#"{"per_second": 1, "burst": 2}"#).is_ok());
        assert!(serde_json::from_str::<Rate>(r#"{"per_second": 1, "bursts": 2}"#).is_err());
        let fields = serde_json::to_string(&rate(0.5, 3)).unwrap();
        assert_eq!(serde_json::from_str::<Rate>(&fields).unwrap(), rate(0.5, 3));
    }

    proptest! {
        /// A caller that waits for `Retry-After` is admitted, and no more requests than the burst and the
        /// tokens added since are admitted.
        #[test]
        fn a_caller_that_waits_for_retry_after_is_admitted(
            per_second in 0.001..100_000_f64,
            burst in 1..1000_u32,
            pauses in prop::collection::vec(0..5000_u64, 1..60),
        ) {
            let clock = FakeRelativeClock::default();
            let bucket = Bucket::with_clock(rate(per_second, burst), clock.clone());
            let (mut passed, mut time) = (0_u32, Duration::ZERO);
            for pause in pauses {
                let pause = Duration::from_millis(pause);
                clock.advance(pause);
                time += pause;
                if let Some(seconds) = bucket.take().retry_after() {
                    let wait = Duration::from_secs(seconds);
                    clock.advance(wait);
                    time += wait;
                    prop_assert_eq!(bucket.take().retry_after(), None);
                }
                passed += 1;
            }
            let most = f64::from(burst) + time.as_secs_f64() * per_second * 1.001 + 1.0;
            prop_assert!(f64::from(passed) <= most, "{} passed, at most {}", passed, most);
        }
    }
}
