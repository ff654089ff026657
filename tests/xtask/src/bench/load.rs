//! Runs the load generator and reads what it measured.
//!
//! It runs as a program of its own, built in release mode, which these tasks are not.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::run;
use crate::workspace::Workspace;

/// How long each load lasts before it is measured, in seconds: long enough for every instance to
/// have run and for the processor to have left its idle clock.
const WARM_UP_SECONDS: u64 = 2;

/// A load, as a benchmark wants it.
pub(crate) struct Load<'a> {
    pub(crate) url: &'a str,
    pub(crate) connections: usize,
    /// Requests that arrive in a second, whether the ones before are answered or not; without it,
    /// every connection sends the next one as soon as the last is answered.
    pub(crate) rate: Option<u32>,
    pub(crate) seconds: u64,
    /// The bodies to send in turn.
    pub(crate) bodies: &'a [Value],
    /// What is in every right answer.
    pub(crate) contains: &'a str,
}

/// What the load generator measured.
pub(crate) struct Measured {
    pub(crate) requests_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
}

/// Makes the load; fails if any request does.
pub(crate) fn make(workspace: &Workspace, load: &Load<'_>) -> Result<Measured> {
    let bodies = work_file(workspace, "bodies.jsonl")?;
    let lines: String = load.bodies.iter().map(|body| format!("{body}\n")).collect();
    fs::write(&bodies, lines).with_context(|| format!("cannot write {}", bodies.display()))?;
    let json = work_file(workspace, "report.json")?;

    let mut command = Command::new(workspace.load_binary());
    match load.rate {
        None => command.args(["closed", load.url]),
        Some(rate) => command.args(["open", load.url, "--rate", &rate.to_string()]),
    };
    command
        .args(["--connections", &load.connections.to_string()])
        .args(["--seconds", &load.seconds.to_string()])
        .args(["--warm-up-seconds", &WARM_UP_SECONDS.to_string()])
        // The key that `guesthouse serve --demo` accepts.
        .args(["--header", "x-api-key: local-demo-key"])
        .args(["--contains", load.contains])
        .arg("--bodies")
        .arg(&bodies)
        .arg("--json")
        .arg(&json);
    run::output(&mut command)?;

    let report =
        fs::read_to_string(&json).with_context(|| format!("cannot read {}", json.display()))?;
    measured(&serde_json::from_str(&report).context("the load generator's report is not JSON")?)
}

/// A file of the benchmarks' own, in a folder that is there.
pub(crate) fn work_file(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let folder = workspace.output().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder.join(name))
}

fn measured(report: &Value) -> Result<Measured> {
    let number = |pointer: &str| {
        let value = report.pointer(pointer).and_then(Value::as_f64);
        value.with_context(|| format!("the load generator's report has no {pointer}"))
    };
    let errors = report["errors"].as_object().context("the report has no errors")?;
    ensure!(errors.is_empty(), "requests failed: {}", report["errors"]);
    ensure!(number("/successes")? > 0.0, "no request was answered in time");
    Ok(Measured {
        requests_per_second: number("/requests_per_second")?,
        p50_ms: number("/latency_us/p50")? / 1e3,
        p95_ms: number("/latency_us/p95")? / 1e3,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_are_taken_only_if_every_request_was_answered() {
        let mut report = json!({
            "successes": 9,
            "errors": {},
            "requests_per_second": 3.0,
            "latency_us": {"p50": 1500, "p95": 2500},
        });
        let figures = measured(&report).unwrap();
        assert!((figures.p95_ms - 2.5).abs() < 1e-9);
        report["errors"]["503"] = json!(1);
        assert!(measured(&report).is_err());
    }
}
