//! Runs the load generator and reads its report.
//!
//! It is a program of its own, because it is built in release mode and xtask is not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::process::Process;
use super::server::KEY;
use crate::workspace::Workspace;

/// The time that the load generator may take beyond its measurement, for the last responses.
const GRACE: Duration = Duration::from_secs(60);

/// The parameters of a load.
#[derive(Clone, Copy)]
pub(crate) struct Load<'a> {
    pub(crate) url: &'a str,
    pub(crate) connections: usize,
    /// Requests per second of an open loop; without it, a closed loop.
    pub(crate) rate: Option<u32>,
    /// The seed of an open loop whose requests arrive at random intervals.
    pub(crate) poisson: Option<u64>,
    /// The duration of the warm-up.
    pub(crate) warm_up_seconds: f64,
    pub(crate) seconds: f64,
    /// The maximum number of requests, if any.
    pub(crate) requests: Option<usize>,
    /// The bodies, which are sent in turn.
    pub(crate) bodies: &'a [Value],
    /// Text that every correct response contains.
    pub(crate) contains: &'a str,
    /// The status of a success.
    pub(crate) status: u16,
    /// Statuses that are counted separately, neither as successes nor as errors.
    pub(crate) tolerated: &'a [u16],
    /// A single body instead of `bodies`.
    pub(crate) body: Option<&'a [u8]>,
    /// Whether the requests are gRPC calls with the body as their message.
    pub(crate) grpc: bool,
    /// Additional headers, as `name: value`.
    pub(crate) headers: &'a [&'a str],
    /// The file for the trace, if any.
    pub(crate) trace: Option<&'a Path>,
}

impl Default for Load<'_> {
    fn default() -> Self {
        Self {
            url: "",
            connections: 1,
            rate: None,
            poisson: None,
            // Long enough for every instance to have run and for the processor to have left its
            // idle frequency.
            warm_up_seconds: 2.0,
            seconds: 10.0,
            requests: None,
            bodies: &[],
            contains: "",
            status: 200,
            tolerated: &[],
            body: None,
            grpc: false,
            headers: &[],
            trace: None,
        }
    }
}

/// What the load generator measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) requests: u64,
    pub(crate) successes: u64,
    /// Responses with a tolerated status.
    pub(crate) tolerated: BTreeMap<String, u64>,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) requests_per_second: f64,
    pub(crate) latencies: Latencies,
    /// Latencies of responses with a tolerated status.
    pub(crate) tolerated_latencies: Latencies,
}

impl Measured {
    /// The number of failed requests.
    pub(crate) fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// The number of requests for each latency in microseconds.
#[derive(Debug, Default, Clone)]
pub(crate) struct Latencies(BTreeMap<u64, u64>);

impl Latencies {
    /// A quantile in milliseconds; 0 without requests.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        let count: u64 = self.0.values().sum();
        let mut left = quantile * count as f64;
        for (microseconds, count) in &self.0 {
            left -= *count as f64;
            if left <= 0.0 {
                return *microseconds as f64 / 1e3;
            }
        }
        self.0.last_key_value().map_or(0.0, |(microseconds, _)| *microseconds as f64 / 1e3)
    }

    /// The mean in microseconds; 0 without requests.
    pub(crate) fn mean_us(&self) -> f64 {
        let count: u64 = self.0.values().sum();
        let sum: f64 = self.0.iter().map(|(time, count)| *time as f64 * *count as f64).sum();
        sum / (count as f64).max(1.0)
    }

    pub(crate) fn p50_ms(&self) -> f64 {
        self.quantile_ms(0.5)
    }

    pub(crate) fn p95_ms(&self) -> f64 {
        self.quantile_ms(0.95)
    }

    pub(crate) fn p99_ms(&self) -> f64 {
        self.quantile_ms(0.99)
    }

    pub(crate) fn max_ms(&self) -> f64 {
        self.quantile_ms(1.0)
    }

    /// Merges the latencies of another run.
    pub(crate) fn add(&mut self, other: &Self) {
        for (microseconds, count) in &other.0 {
            *self.0.entry(*microseconds).or_default() += count;
        }
    }
}

/// A running load generator, which is killed when this is dropped.
pub(crate) struct Running {
    process: Process,
    limit: Duration,
    folder: TempDir,
}

/// Runs a load; fails if a request fails, because then the figures mean something else.
pub(crate) fn run_without_errors(workspace: &Workspace, load: &Load<'_>) -> Result<Measured> {
    let measured = run(workspace, load)?;
    ensure!(measured.errors.is_empty(), "requests failed: {:?}", measured.errors);
    ensure!(measured.successes > 0, "no request was answered in time");
    Ok(measured)
}

/// Runs a load, whether requests fail or not.
pub(crate) fn run(workspace: &Workspace, load: &Load<'_>) -> Result<Measured> {
    start(workspace, load)?.finish()
}

/// Starts a load.
pub(crate) fn start(workspace: &Workspace, load: &Load<'_>) -> Result<Running> {
    let folder = TempDir::new_in(bench_folder(workspace)?).context("cannot create a folder")?;
    let bodies = folder.path().join("bodies");
    let lines: String = load.bodies.iter().map(|body| format!("{body}\n")).collect();
    let (option, content) = match load.body {
        None => ("--bodies", lines.as_bytes()),
        Some(body) => ("--body", body),
    };
    fs::write(&bodies, content).with_context(|| format!("cannot write {}", bodies.display()))?;

    let mut command = Command::new(workspace.load_binary());
    match load.rate {
        None => command.args(["closed", load.url]),
        Some(rate) => command.args(["open", load.url, "--rate", &rate.to_string()]),
    };
    if let Some(seed) = load.poisson {
        command.args(["--poisson", &seed.to_string()]);
    }
    command
        .args(["--connections", &load.connections.to_string()])
        .args(["--seconds", &load.seconds.to_string()])
        .args(["--warm-up-seconds", &load.warm_up_seconds.to_string()])
        .args(["--header", &format!("x-api-key: {KEY}")])
        .args(["--status", &load.status.to_string()])
        .args(["--contains", load.contains])
        .arg(option)
        .arg(&bodies)
        .arg("--report")
        .arg(report_file(&folder))
        .stdout(Stdio::null());
    for status in load.tolerated {
        command.args(["--tolerated-status", &status.to_string()]);
    }
    for header in load.headers {
        command.args(["--header", header]);
    }
    if load.grpc {
        command.arg("--grpc");
    }
    if let Some(requests) = load.requests {
        command.args(["--requests", &requests.to_string()]);
    }
    if let Some(trace) = load.trace {
        command.arg("--trace").arg(trace);
    }
    let limit = Duration::from_secs_f64(load.warm_up_seconds + load.seconds) + GRACE;
    let process = Process::start("load generator", &mut command)?;
    Ok(Running { process, limit, folder })
}

impl Running {
    /// Whether the load has ended.
    pub(crate) fn is_over(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_some())
    }

    /// Waits for the end of the load.
    pub(crate) fn finish(mut self) -> Result<Measured> {
        let status = self.process.wait(self.limit)?;
        ensure!(status.success(), "the load generator failed ({status})");
        let json = fs::read_to_string(report_file(&self.folder));
        let json = json.context("the load generator wrote no report")?;
        measured(&serde_json::from_str(&json).context("the load generator's report is not JSON")?)
    }
}

fn report_file(folder: &TempDir) -> PathBuf {
    folder.path().join("report.json")
}

/// The path of a file in the working folder of the benchmarks, which is created.
pub(crate) fn work_file(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    Ok(bench_folder(workspace)?.join(name))
}

fn bench_folder(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.output().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

fn measured(report: &Value) -> Result<Measured> {
    let no = |name: &str| format!("the load generator's report has no {name}");
    let count = |name: &str| report[name].as_u64().with_context(|| no(name));
    let counts = |name: &str| {
        let counts = report[name].as_object().with_context(|| no(name))?.iter();
        let counts = counts.map(|(name, count)| Some((name.clone(), count.as_u64()?)));
        counts.collect::<Option<BTreeMap<_, _>>>().with_context(|| no(name))
    };
    let latencies = |name: &str| {
        let latencies = report[name].as_array().with_context(|| no(name))?.iter();
        let latencies = latencies.map(|pair| Some((pair[0].as_u64()?, pair[1].as_u64()?)));
        let latencies = latencies.collect::<Option<BTreeMap<_, _>>>();
        latencies.map(Latencies).with_context(|| no(name))
    };
    Ok(Measured {
        requests: count("requests")?,
        successes: count("successes")?,
        tolerated: counts("tolerated")?,
        errors: counts("errors")?,
        requests_per_second: report["requests_per_second"].as_f64().with_context(|| no("rate"))?,
        latencies: latencies("latency_counts")?,
        tolerated_latencies: latencies("tolerated_latency_counts")?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_parsed() {
        let report = json!({
            "requests": 14, "successes": 10, "tolerated": {"500": 1}, "errors": {"503": 2, "timeout": 1},
            "requests_per_second": 3.0, "latency_counts": [[1500, 5], [2500, 5]],
            "tolerated_latency_counts": [[700, 1]],
        });
        let measured = measured(&report).unwrap();
        assert_eq!((measured.tolerated["500"], measured.error_count()), (1, 3));
        assert!((measured.latencies.p50_ms() - 1.5).abs() < 1e-9);
        assert!((measured.latencies.p95_ms() - 2.5).abs() < 1e-9);
        assert!(super::measured(&json!({"requests": 1})).is_err());
    }

    #[test]
    fn latencies_of_several_runs_are_merged() {
        let mut all = Latencies::default();
        assert!(all.p99_ms().abs() < 1e-9);
        all.add(&Latencies([(1000, 98)].into()));
        all.add(&Latencies([(1000, 1), (9000, 1)].into()));
        assert!((all.p99_ms() - 1.0).abs() < 1e-9);
        assert!((all.max_ms() - 9.0).abs() < 1e-9);
    }
}
