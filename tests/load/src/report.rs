//! The report of a run: counters while it runs, and latencies and throughput afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::connection::Outcome;

/// The highest latency that the histogram distinguishes, in microseconds: ten minutes, the longest
/// timeout of a request.
const MAX_LATENCY_US: u64 = 600_000_000;

/// With three significant digits, a latency is recorded with an error of at most 0.1 %.
const SIGNIFICANT_DIGITS: u8 = 3;

/// A request that starts later than this after its scheduled time counts as a late start. Waking up
/// a thread usually takes much less.
const LATE_AFTER: Duration = Duration::from_millis(1);

/// The result of a run without its warm-up.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// All requests that were due: successes, tolerated responses and errors.
    pub requests: u64,
    /// Requests with the expected response.
    pub successes: u64,
    /// Responses with a tolerated status, by status.
    pub tolerated: BTreeMap<String, u64>,
    /// Other requests, by status (`503`), or `wrong_body`, `connection`, `timeout`, or `unsent` if
    /// no connection was free until the end of the run.
    pub errors: BTreeMap<String, u64>,
    /// Requests of an open loop that were sent more than a millisecond after their scheduled time,
    /// because all connections or this program were busy. Their latency includes the delay.
    pub late_starts: u64,
    /// Successes per second.
    pub requests_per_second: f64,
    /// The latencies of the successes, as pairs of a latency in microseconds and its count.
    /// Quantiles of several runs are computed from these.
    pub latency_counts: Vec<(u64, u64)>,
    /// The same for tolerated responses.
    pub tolerated_latency_counts: Vec<(u64, u64)>,
}

/// The counters of a running measurement.
#[derive(Debug)]
pub(crate) struct Tally {
    latencies: Histogram<u64>,
    tolerated_latencies: Histogram<u64>,
    tolerated: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    late_starts: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, MAX_LATENCY_US, SIGNIFICANT_DIGITS);
        let latencies = latencies.expect("constant bounds that a histogram can have");
        Self {
            tolerated_latencies: latencies.clone(),
            latencies,
            tolerated: BTreeMap::new(),
            errors: BTreeMap::new(),
            late_starts: 0,
        }
    }

    /// Counts a request that was sent `late` after its scheduled time and took `latency` since
    /// then.
    pub(crate) fn count(&mut self, outcome: Outcome, late: Duration, latency: Duration) {
        if late > LATE_AFTER {
            self.late_starts += 1;
        }
        let microseconds = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        match &outcome {
            Outcome::Success => self.latencies.saturating_record(microseconds),
            Outcome::Tolerated(_) => {
                self.tolerated_latencies.saturating_record(microseconds);
                increment(&mut self.tolerated, outcome.name());
            }
            _ => increment(&mut self.errors, outcome.name()),
        }
    }

    /// Counts a request that was due and is given up.
    pub(crate) fn count_unsent(&mut self) {
        increment(&mut self.errors, "unsent");
    }

    /// The report of a run that took `time` from the end of its warm-up.
    pub(crate) fn report(&self, time: Duration) -> Report {
        let successes = self.latencies.len();
        let others = self.tolerated.values().chain(self.errors.values()).sum::<u64>();
        let seconds = time.as_secs_f64();
        Report {
            requests: successes + others,
            successes,
            tolerated: self.tolerated.clone(),
            errors: self.errors.clone(),
            late_starts: self.late_starts,
            requests_per_second: if seconds > 0.0 { successes as f64 / seconds } else { 0.0 },
            latency_counts: counts(&self.latencies),
            tolerated_latency_counts: counts(&self.tolerated_latencies),
        }
    }
}

fn counts(latencies: &Histogram<u64>) -> Vec<(u64, u64)> {
    let steps = latencies.iter_recorded();
    steps.map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
}

fn increment(counts: &mut BTreeMap<String, u64>, name: &str) {
    // `get_mut` first: the name is new only once.
    match counts.get_mut(name) {
        Some(count) => *count += 1,
        None => {
            counts.insert(name.to_owned(), 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_count_successes_only() {
        let mut tally = Tally::new();
        for millisecond in 1..=100 {
            let latency = Duration::from_millis(millisecond);
            tally.count(Outcome::Success, Duration::ZERO, latency);
        }
        let refused = Outcome::Status(hyper::StatusCode::SERVICE_UNAVAILABLE);
        tally.count(refused, Duration::from_millis(2), Duration::from_secs(9));
        let failed = Outcome::Tolerated(hyper::StatusCode::INTERNAL_SERVER_ERROR);
        tally.count(failed, Duration::ZERO, Duration::from_secs(9));
        tally.count_unsent();
        tally.count_unsent();
        let report = tally.report(Duration::from_secs(10));

        assert_eq!((report.requests, report.successes), (104, 100));
        let errors: Vec<_> = report.errors.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        assert_eq!(errors, [("503", 1), ("unsent", 2)]);
        assert_eq!(report.tolerated["500"], 1);
        assert_eq!(report.tolerated_latency_counts.len(), 1);
        assert_eq!(report.latency_counts.iter().map(|(_, count)| count).sum::<u64>(), 100);
        assert_eq!(report.late_starts, 1);
        assert!((report.requests_per_second - 10.0).abs() < 1e-9);
        let (median, _) = report.latency_counts[49];
        assert!(median.abs_diff(50_000) <= 50, "{median}");
    }
}
