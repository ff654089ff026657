//! What came of a run: counts while it lasts, quantiles and throughput after it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::connection::Outcome;

/// The longest latency that is told apart from longer ones, in microseconds: ten minutes, more
/// than any request is given.
const MAX_LATENCY_US: u64 = 600_000_000;

/// Three significant digits: no figure is off by more than a thousandth.
const SIGNIFICANT_DIGITS: u8 = 3;

/// A start counts as late after this; waking a thread up takes mostly much less.
const LATE_AFTER: Duration = Duration::from_millis(1);

/// Latencies of successful requests, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "quantiles name themselves")]
pub struct Latency {
    pub p50: u64,
    pub p90: u64,
    pub p95: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub max: u64,
}

/// The result of a run. Requests of the warm-up are in no figure.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `closed` or `open`.
    pub mode: &'static str,
    /// How many connections there were.
    pub connections: usize,
    /// The rate that was asked for, in requests per second, if there was one.
    pub rate: Option<u32>,
    /// From the end of the warm-up to the last answer.
    pub seconds: f64,
    /// All requests that were due: the successes, those answered as was also expected, the errors.
    pub requests: u64,
    /// Requests with the expected answer.
    pub successes: u64,
    /// Requests with an answer that was expected as well, by status.
    pub also: BTreeMap<String, u64>,
    /// Other requests, by status (`503`), or `wrong_body`, `connection`, `timeout`, or `unsent`
    /// for those that had no free connection until the run was over.
    pub errors: BTreeMap<String, u64>,
    /// Requests that were sent more than a millisecond after they were due, which only an open
    /// loop can have: the connections, or this program, were busy. Their latency has the wait.
    pub late_starts: u64,
    /// Successes per second.
    pub requests_per_second: f64,
    /// Latencies of the successes, in microseconds; without a success all are 0.
    pub latency_us: Latency,
    /// The same latencies one by one, as pairs of a latency and how many had it: what the quantiles
    /// of several runs together are made from.
    pub latency_counts: Vec<(u64, u64)>,
    /// The same of answers with a status that is expected as well.
    pub also_latency_counts: Vec<(u64, u64)>,
}

/// The counts of a run under way.
#[derive(Debug)]
pub(crate) struct Tally {
    latencies: Histogram<u64>,
    also_latencies: Histogram<u64>,
    also: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    late_starts: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, MAX_LATENCY_US, SIGNIFICANT_DIGITS);
        let latencies = latencies.expect("constant bounds that a histogram can have");
        Self {
            also_latencies: latencies.clone(),
            latencies,
            also: BTreeMap::new(),
            errors: BTreeMap::new(),
            late_starts: 0,
        }
    }

    /// Counts a request that was sent `late` after it was due and took `latency` since then.
    pub(crate) fn count(&mut self, outcome: Outcome, late: Duration, latency: Duration) {
        if late > LATE_AFTER {
            self.late_starts += 1;
        }
        let microseconds = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        match &outcome {
            Outcome::Success => self.latencies.saturating_record(microseconds),
            Outcome::Also(_) => {
                self.also_latencies.saturating_record(microseconds);
                increment(&mut self.also, outcome.name());
            }
            _ => increment(&mut self.errors, outcome.name()),
        }
    }

    /// Counts a request that was due and is not going to be sent.
    pub(crate) fn count_unsent(&mut self) {
        increment(&mut self.errors, "unsent");
    }

    /// The figures, for a run that took `time` from the end of its warm-up.
    pub(crate) fn report(&self, connections: usize, rate: Option<u32>, time: Duration) -> Report {
        let quantile = |quantile| self.latencies.value_at_quantile(quantile);
        let latency_us = Latency {
            p50: quantile(0.5),
            p90: quantile(0.9),
            p95: quantile(0.95),
            p99: quantile(0.99),
            p99_9: quantile(0.999),
            max: self.latencies.max(),
        };
        let successes = self.latencies.len();
        let seconds = time.as_secs_f64();
        Report {
            mode: if rate.is_some() { "open" } else { "closed" },
            connections,
            rate,
            seconds,
            requests: successes
                + self.also.values().sum::<u64>()
                + self.errors.values().sum::<u64>(),
            successes,
            also: self.also.clone(),
            errors: self.errors.clone(),
            late_starts: self.late_starts,
            requests_per_second: if seconds > 0.0 { successes as f64 / seconds } else { 0.0 },
            latency_us,
            latency_counts: counts(&self.latencies),
            also_latency_counts: counts(&self.also_latencies),
        }
    }
}

fn counts(latencies: &Histogram<u64>) -> Vec<(u64, u64)> {
    let steps = latencies.iter_recorded();
    steps.map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
}

fn increment(counts: &mut BTreeMap<String, u64>, name: &str) {
    // Looked up first: the name is a new one only once.
    match counts.get_mut(name) {
        Some(count) => *count += 1,
        None => {
            counts.insert(name.to_owned(), 1);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, connections, seconds, .. } = self;
        write!(formatter, "{mode} loop, {connections} connections")?;
        if let Some(rate) = self.rate {
            write!(formatter, ", {rate} requests/s asked for")?;
        }
        writeln!(formatter, ", {seconds:.2} s")?;
        let mut line =
            |name: &str, value: &dyn fmt::Display| writeln!(formatter, "  {name:<14} {value:>12}");
        line("requests", &self.requests)?;
        line("successes", &self.successes)?;
        for (status, count) in &self.also {
            line(&format!("also {status}"), count)?;
        }
        for (error, count) in &self.errors {
            line(&format!("error {error}"), count)?;
        }
        if self.rate.is_some() {
            line("late starts", &self.late_starts)?;
        }
        line("requests/s", &format!("{:.1}", self.requests_per_second))?;
        let Latency { p50, p90, p95, p99, p99_9, max } = self.latency_us;
        line("p50 us", &p50)?;
        line("p90 us", &p90)?;
        line("p95 us", &p95)?;
        line("p99 us", &p99)?;
        line("p99.9 us", &p99_9)?;
        line("max us", &max)
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
        let failed = Outcome::Also(hyper::StatusCode::INTERNAL_SERVER_ERROR);
        tally.count(failed, Duration::ZERO, Duration::from_secs(9));
        tally.count_unsent();
        tally.count_unsent();
        let report = tally.report(1, None, Duration::from_secs(10));

        assert_eq!((report.requests, report.successes), (104, 100));
        let errors: Vec<_> = report.errors.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        assert_eq!(errors, [("503", 1), ("unsent", 2)]);
        assert_eq!(report.also["500"], 1);
        assert_eq!(report.also_latency_counts.len(), 1);
        assert_eq!(report.latency_counts.iter().map(|(_, count)| count).sum::<u64>(), 100);
        assert_eq!(report.late_starts, 1);
        assert!((report.requests_per_second - 10.0).abs() < 1e-9);
        let near = |value: u64, expected: u64| value.abs_diff(expected) <= expected / 1000;
        assert!(near(report.latency_us.p50, 50_000), "{report}");
        assert!(near(report.latency_us.p95, 95_000), "{report}");
        assert!(near(report.latency_us.max, 100_000), "{report}");
    }
}
