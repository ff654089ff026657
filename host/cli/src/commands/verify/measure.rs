//! Runs golden examples under one policy, compares their outputs and measures the calls.

use std::time::{Duration, Instant};

use guesthouse_artifact::{GoldenExample, Tolerances};
use guesthouse_model::record;
use guesthouse_runtime::embed::{Trial, TrialCall};
use guesthouse_runtime::pool::Isolation;
use serde_json::{Map, Value};

/// How long calls are repeated to measure them.
const TIME: Duration = Duration::from_secs(2);

/// The calls after which measuring ends before that time: enough for a 99th percentile.
const ENOUGH_CALLS: usize = 1000;

/// The most elements that are listed for an example.
const MAX_ELEMENTS: usize = 20;

/// How a server may be configured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    pub(super) isolation: Isolation,
    /// Whether the guest is granted arithmetic; nothing if it does not import it.
    pub(super) arithmetic: Option<bool>,
    /// Whether a server does this by default.
    pub(super) is_default: bool,
}

/// What happened under a policy.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) policy: Policy,
    pub(super) starts_from_snapshot: bool,
    pub(super) examples: usize,
    pub(super) failures: Vec<ExampleFailure>,
    pub(super) latency: Option<Latency>,
    /// The largest memory of an instance after a call.
    pub(super) memory_bytes: usize,
}

/// An example that fails, and how.
#[derive(Debug)]
pub(super) struct ExampleFailure {
    /// The number of the example, from 1.
    pub(super) example: usize,
    /// Whether it passes where the examples run in the order of the artifact.
    pub(super) only_after_others: bool,
    /// A line for each element, or the error of the call.
    pub(super) reasons: Vec<String>,
}

/// The time of calls with one example each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    pub(super) calls: usize,
    pub(super) median: Duration,
    pub(super) p99: Duration,
}

/// Run every example in order, then in the reverse order, which shows a guest whose outputs depend on
/// earlier calls, and then as often as there is time.
pub(super) fn golden(
    trial: &Trial,
    policy: Policy,
    examples: &[GoldenExample],
    tolerances: &Tolerances,
) -> Outcome {
    let mut outcome = Outcome {
        policy,
        starts_from_snapshot: trial.starts_from_snapshot(),
        examples: examples.len(),
        failures: Vec::new(),
        latency: None,
        memory_bytes: 0,
    };
    let numbered = || examples.iter().enumerate();
    for (index, example) in numbered() {
        outcome.check(index, false, check(trial, example, tolerances));
    }
    if policy.isolation != Isolation::Fresh {
        for (index, example) in numbered().rev() {
            outcome.check(index, true, check(trial, example, tolerances));
        }
    }
    let failed = |index: usize| outcome.failures.iter().any(|one| one.example == index + 1);
    let good: Vec<_> =
        numbered().filter(|(index, _)| !failed(*index)).map(|(_, example)| example).collect();
    outcome.latency = latency(trial, &good);
    outcome
}

impl Outcome {
    fn check(&mut self, index: usize, repeated: bool, result: Result<TrialCall, Vec<String>>) {
        let example = index + 1;
        match result {
            Ok(call) => self.memory_bytes = self.memory_bytes.max(call.memory_bytes),
            Err(_) if self.failures.iter().any(|failure| failure.example == example) => {}
            Err(reasons) => {
                let failure = ExampleFailure { example, only_after_others: repeated, reasons };
                self.failures.push(failure);
            }
        }
    }
}

/// Predict for an example and compare the outputs.
pub(super) fn check(
    trial: &Trial,
    example: &GoldenExample,
    tolerances: &Tolerances,
) -> Result<TrialCall, Vec<String>> {
    let call = trial.predict(std::slice::from_ref(&example.inputs));
    let call = call.map_err(|error| vec![error.to_string()])?;
    let empty = Map::new();
    let outputs = call.outputs.first().unwrap_or(&empty);
    let reasons = differences(&example.outputs, outputs, tolerances);
    if reasons.is_empty() { Ok(call) } else { Err(reasons) }
}

/// A line for each element that differs too much.
pub(super) fn differences(
    wanted: &Map<String, Value>,
    is: &Map<String, Value>,
    tolerances: &Tolerances,
) -> Vec<String> {
    let mismatches = record::element_mismatches(wanted, is, tolerances);
    let mut reasons: Vec<_> =
        mismatches.iter().take(MAX_ELEMENTS).map(ToString::to_string).collect();
    if let Some(more) = mismatches.len().checked_sub(MAX_ELEMENTS).filter(|more| *more > 0) {
        reasons.push(format!("and {more} more elements"));
    }
    reasons
}

fn latency(trial: &Trial, examples: &[&GoldenExample]) -> Option<Latency> {
    let mut times = Vec::new();
    let end = Instant::now() + TIME;
    'measuring: while !examples.is_empty() {
        for example in examples {
            if let Ok(call) = trial.predict(std::slice::from_ref(&example.inputs)) {
                times.push(call.time);
            }
            if Instant::now() >= end {
                break 'measuring;
            }
        }
        if times.len() >= ENOUGH_CALLS {
            break;
        }
    }
    Latency::new(times)
}

impl Latency {
    fn new(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        // The nearest rank.
        let p99 = times[(times.len() * 99).div_ceil(100).saturating_sub(1).min(last)];
        Some(Self { calls: times.len(), median: times[times.len() / 2], p99 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        assert!(Latency::new(Vec::new()).is_none());
        let times = (1..=200).rev().map(Duration::from_millis).collect();
        let latency = Latency::new(times).unwrap();
        assert_eq!((latency.calls, latency.median.as_millis()), (200, 101));
        assert_eq!(latency.p99.as_millis(), 198);
        let one = Latency::new(vec![Duration::from_millis(7)]).unwrap();
        assert_eq!((one.median, one.p99), (Duration::from_millis(7), Duration::from_millis(7)));
    }
}
