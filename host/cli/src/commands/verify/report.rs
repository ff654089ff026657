//! What a verification found, for people and for programs.

use guesthouse_artifact::Artifact;
use guesthouse_model::terminal::{printable, printable_json};
use guesthouse_runtime::embed::OpenError;
use guesthouse_runtime::pool::Isolation;
use serde::Serialize;

use super::measure::{ExampleFailure, Latency, Outcome, Policy};
use super::recorded::Skew;

/// A verification. The JSON form is stable.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    model: String,
    version: String,
    digest: String,
    size_bytes: usize,
    passed: bool,
    policies: Vec<PolicyReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recorded: Option<RecordedReport>,
    failures: Vec<FailureReport>,
}

#[derive(Debug, Serialize)]
struct PolicyReport {
    isolation: &'static str,
    arithmetic: &'static str,
    /// Whether instances start from a snapshot; if not, `init` runs in each.
    snapshot: bool,
    examples: usize,
    failed: usize,
    /// The calls of the figures below; they are not measured if all examples fail.
    calls: usize,
    median_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// The largest linear memory of an instance after a call.
    instance_memory_bytes: usize,
}

#[derive(Debug, Serialize)]
struct RecordedReport {
    file: String,
    isolation: &'static str,
    rows: usize,
    failed: usize,
    outputs: Vec<OutputReport>,
}

#[derive(Debug, Serialize)]
struct OutputReport {
    output: String,
    tolerance: f64,
    elements: u64,
    equal: u64,
    largest_difference: f64,
    mean_difference: f64,
}

/// An example that fails under a policy.
#[derive(Debug, Serialize)]
struct FailureReport {
    /// `golden` or `recorded`.
    set: &'static str,
    /// The number of the example, from 1; 0 if the artifact cannot be loaded under this policy.
    example: usize,
    isolation: &'static str,
    arithmetic: &'static str,
    /// Whether the example passes if the examples run in the order of the artifact.
    only_after_others: bool,
    /// A line for each element, or the error of the call.
    reasons: Vec<String>,
}

/// Whether the artifact passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    /// So many examples fail, counted once for each policy.
    Failed {
        failures: usize,
        examples: usize,
    },
}

impl Policy {
    fn isolation(self) -> &'static str {
        match self.isolation {
            Isolation::Fresh => "fresh",
            Isolation::Reuse(_) => "reuse",
        }
    }

    fn arithmetic(self) -> &'static str {
        match self.arithmetic {
            Some(true) => "granted",
            Some(false) => "denied",
            None => "not used",
        }
    }
}

impl Report {
    pub(super) fn new(artifact: &Artifact) -> Self {
        Self {
            model: artifact.id().name.to_string(),
            version: artifact.id().version.to_string(),
            digest: artifact.digest().to_string(),
            size_bytes: artifact.size_bytes(),
            passed: true,
            policies: Vec::new(),
            recorded: None,
            failures: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, outcome: Outcome) {
        let Outcome { policy, starts_from_snapshot, examples, failures, latency, memory_bytes } =
            outcome;
        let milliseconds = |time: fn(&Latency) -> std::time::Duration| {
            latency.as_ref().map(|latency| time(latency).as_secs_f64() * 1e3)
        };
        self.policies.push(PolicyReport {
            isolation: policy.isolation(),
            arithmetic: policy.arithmetic(),
            snapshot: starts_from_snapshot,
            examples,
            failed: failures.len(),
            calls: latency.map_or(0, |latency| latency.calls),
            median_ms: milliseconds(|latency| latency.median),
            p99_ms: milliseconds(|latency| latency.p99),
            instance_memory_bytes: memory_bytes,
        });
        self.add_failures("golden", policy, failures);
    }

    /// None of its examples can run.
    pub(super) fn add_unloadable(&mut self, policy: Policy, examples: usize, error: &OpenError) {
        let reasons = vec![format!("the artifact cannot be loaded: {error}")];
        let failure = ExampleFailure { example: 0, only_after_others: false, reasons };
        self.policies.push(PolicyReport {
            isolation: policy.isolation(),
            arithmetic: policy.arithmetic(),
            snapshot: false,
            examples,
            failed: examples,
            calls: 0,
            median_ms: None,
            p99_ms: None,
            instance_memory_bytes: 0,
        });
        self.add_failures("golden", policy, vec![failure]);
    }

    pub(super) fn set_recorded(&mut self, policy: Policy, skew: Skew) {
        let Skew { file, rows, failures, outputs } = skew;
        let outputs = outputs.iter().map(|skew| OutputReport {
            output: skew.output.clone(),
            tolerance: skew.tolerance,
            elements: skew.elements,
            equal: skew.equal,
            largest_difference: skew.largest,
            mean_difference: skew.mean(),
        });
        self.recorded = Some(RecordedReport {
            file: file.display().to_string(),
            isolation: policy.isolation(),
            rows,
            failed: failures.len(),
            outputs: outputs.collect(),
        });
        self.add_failures("recorded", policy, failures);
    }

    fn add_failures(&mut self, set: &'static str, policy: Policy, failures: Vec<ExampleFailure>) {
        self.passed &= failures.is_empty();
        self.failures.extend(failures.into_iter().map(|failure| FailureReport {
            set,
            example: failure.example,
            isolation: policy.isolation(),
            arithmetic: policy.arithmetic(),
            only_after_others: failure.only_after_others,
            reasons: failure.reasons,
        }));
    }

    pub(super) fn verdict(&self) -> Verdict {
        let recorded = self.recorded.iter().map(|recorded| (recorded.failed, recorded.rows));
        let golden = self.policies.iter().map(|policy| (policy.failed, policy.examples));
        let (failures, examples) = golden
            .chain(recorded)
            .fold((0, 0), |(failures, all), (failed, of)| (failures + failed, all + of));
        if self.passed { Verdict::Passed } else { Verdict::Failed { failures, examples } }
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", printable_json(&serde_json::to_string_pretty(self)?));
            return Ok(());
        }
        println!("{} {}, {}", printable(&self.model), printable(&self.version), self.digest);
        println!("isolation  arithmetic    passed  calls     median        p99     memory");
        self.policies.iter().for_each(print_policy);
        if let Some(recorded) = &self.recorded {
            print_recorded(recorded);
        }
        self.failures.iter().for_each(print_failure);
        Ok(())
    }
}

fn print_policy(policy: &PolicyReport) {
    let PolicyReport { isolation, arithmetic, examples, failed, calls, .. } = policy;
    let passed = format!("{}/{examples}", examples - failed);
    let time = |time: Option<f64>| time.map_or("-".to_owned(), |time| format!("{time:.3} ms"));
    let (median, p99) = (time(policy.median_ms), time(policy.p99_ms));
    let memory = policy.instance_memory_bytes.div_ceil(1 << 10);
    println!(
        "{isolation:<10} {arithmetic:<10} {passed:>9} {calls:>6} {median:>10} {p99:>10} {memory:>6} KiB{}",
        if policy.snapshot { "" } else { "  (init runs in each instance)" }
    );
}

fn print_recorded(recorded: &RecordedReport) {
    let RecordedReport { file, isolation, rows, failed, outputs } = recorded;
    let (file, passed) = (printable(file), rows - failed);
    println!("{file}: {passed} of {rows} rows within the tolerances, isolation {isolation}");
    println!("  output               tolerance  elements     equal    largest       mean");
    for output in outputs {
        println!(
            "  {:<20} {:>9} {:>9} {:>9} {:>10.3e} {:>10.3e}",
            printable(&output.output),
            output.tolerance,
            output.elements,
            output.equal,
            output.largest_difference,
            output.mean_difference
        );
    }
}

/// A line for each element.
fn print_failure(failure: &FailureReport) {
    let FailureReport { set, example, isolation, arithmetic, only_after_others, reasons } = failure;
    let order = if *only_after_others { ", only after other examples" } else { "" };
    let what =
        if *example == 0 { "no example".to_owned() } else { format!("{set} example {example}") };
    for reason in reasons {
        println!("{what} ({isolation}, arithmetic {arithmetic}{order}): {}", printable(reason));
    }
}
