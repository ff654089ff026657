//! `guesthouse inspect --profile`: where the time of a model's calls goes, with the host's arithmetic
//! and without.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use guesthouse_artifact::Artifact;
use guesthouse_model::terminal::{printable, printable_json};
use guesthouse_runtime::embed::{Runtime, RuntimeOptions};
use guesthouse_runtime::guest::Backend;
use guesthouse_runtime::profile::Profile;
use serde::Serialize;

/// How long the calls are repeated.
const TIME: Duration = Duration::from_secs(2);

/// The functions of the guest that are printed for people.
const PRINTED_FUNCTIONS: usize = 12;

/// The profiles of a model. The JSON form is stable.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    version: String,
    rows: usize,
    /// Absent if the guest does not import arithmetic.
    #[serde(skip_serializing_if = "Option::is_none")]
    with_arithmetic: Option<Calls>,
    without_arithmetic: Calls,
}

/// A profile, as milliseconds of a call and shares from 0 to 1.
#[derive(Debug, Serialize)]
struct Calls {
    calls: u64,
    median_ms: f64,
    mean_ms: f64,
    /// What the host executed.
    arithmetic: Vec<Operation>,
    guest_ms: f64,
    /// The functions of the guest by their share of its own time.
    guest: Vec<Function>,
}

#[derive(Debug, Serialize)]
struct Operation {
    function: &'static str,
    executions: f64,
    ms: f64,
    share: f64,
}

#[derive(Debug, Serialize)]
struct Function {
    function: String,
    share: f64,
}

pub(super) fn run(artifact: &Artifact, file: &Path, rows: usize, json: bool) -> anyhow::Result<()> {
    let backend = Some(Backend::fastest()).filter(|_| artifact.imports_arithmetic());
    let report = Report {
        model: artifact.id().name.to_string(),
        version: artifact.id().version.to_string(),
        rows,
        with_arithmetic: backend.map(|_| measure(file, rows, backend)).transpose()?,
        without_arithmetic: measure(file, rows, None)?,
    };
    if json {
        println!("{}", printable_json(&serde_json::to_string_pretty(&report)?));
    } else {
        print_for_people(&report);
    }
    Ok(())
}

fn measure(file: &Path, rows: usize, arithmetic: Option<Backend>) -> anyhow::Result<Calls> {
    let state = tempfile::tempdir().context("cannot create a temporary folder")?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut options = RuntimeOptions::for_one_artifact(program);
    options.model.instance.arithmetic = arithmetic;
    let runtime = Runtime::open(state.path(), options)?;
    let profile = runtime.profile(file, rows, TIME).context("failed to measure a profile")?;
    Ok(Calls::new(&profile))
}

impl Calls {
    #[expect(clippy::cast_precision_loss, reason = "figures need few digits")]
    fn new(profile: &Profile) -> Self {
        let calls = profile.calls as f64;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let total = profile.total.as_secs_f64();
        let mut arithmetic: Vec<_> = profile
            .arithmetic
            .iter()
            .map(|usage| Operation {
                function: usage.function,
                executions: usage.calls as f64 / calls,
                ms: milliseconds(usage.time) / calls,
                share: usage.time.as_secs_f64() / total,
            })
            .collect();
        arithmetic.sort_by(|one, other| other.ms.total_cmp(&one.ms));
        let in_guest = profile.total.saturating_sub(profile.arithmetic_time());
        let functions = profile.guest.iter();
        Self {
            calls: profile.calls,
            median_ms: milliseconds(profile.median),
            mean_ms: milliseconds(profile.total) / calls,
            arithmetic,
            guest_ms: milliseconds(in_guest) / calls,
            guest: functions
                .map(|function| Function { function: function.name.clone(), share: function.share })
                .collect(),
        }
    }
}

fn print_for_people(report: &Report) {
    let Report { model, version, rows, with_arithmetic, without_arithmetic } = report;
    println!("{} {}, {rows} rows a call", printable(model), printable(version));
    if let Some(calls) = with_arithmetic {
        println!("with the host's arithmetic");
        print_calls(calls);
        println!("without the host's arithmetic");
    }
    print_calls(without_arithmetic);
}

fn print_calls(calls: &Calls) {
    let Calls { calls: count, median_ms, mean_ms, arithmetic, guest_ms, guest } = calls;
    println!("  a call: median {median_ms:.3} ms, mean {mean_ms:.3} ms, {count} calls");
    for Operation { function, executions, ms, share } in arithmetic {
        println!("  {:>5.1} % {ms:>9.3} ms  {function} ({executions:.0} times)", share * 100.0);
    }
    println!("  {:>5.1} % {guest_ms:>9.3} ms  guest, of which", guest_ms / mean_ms * 100.0);
    for Function { function, share } in guest.iter().take(PRINTED_FUNCTIONS) {
        println!("          {:>5.1} %  {}", share * 100.0, printable(function));
    }
}
