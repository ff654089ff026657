//! A healthy version beside a version that faults continuously, for each kind of fault.
//!
//! The healthy version gets half of the requests that the server can answer while another process
//! keeps a core busy. Its 99th percentile beside the faulting version is compared with that beside
//! a spinning native process: computing alone is no fault, so the difference is what the sandbox
//! does not contain, such as held locks, occupied threads, mapped and unmapped memory, and logs. A
//! host without deadlines, with a shared instance or with one queue for all versions would show
//! errors or multiples.
//!
//! One caller calls the faulting version continuously. Every fourth call succeeds, because
//! otherwise the caller would be suspended; the number of calls that really fault is reported.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::setup::Bench;
use crate::bench::artifacts::{pack_misbehave, set_init};
use crate::bench::load::{self, Load, Measured};
use crate::bench::rig::{Arrivals, BLOCK_WARM_UP_SECONDS};
use crate::bench::server::Server;
use crate::bench::statistics::{Pair, median, median_ratio};
use crate::bench::{Bar, Figure};
use crate::run;

/// The faults, as the guest names them.
const ACTIONS: [&str; 13] = [
    "panic",
    "spin",
    "spin-memory",
    "spin-host-call",
    "allocate",
    "recurse",
    "flood-log",
    "wrong-rows",
    "wrong-length",
    "huge-output",
    "fail",
    "grow",
    "count",
];

/// The number of pairs of each kind. Odd, so that the median is a measured value.
const PAIRS: u32 = 5;

/// The time limit of a call, so that spinning ones end and start again.
const PREDICT_MILLISECONDS: u32 = 200;

/// More different inputs than the quarantine remembers, so that each of them runs.
const DIFFERENT_BODIES: usize = 200;

/// The fraction of calls that fault.
const MISBEHAVING_OF_FOUR: f64 = 0.75;

/// How much longer the faulting caller runs than the healthy one is measured.
const OVERLAP_SECONDS: f64 = 0.5;

/// A bystander must hardly notice.
const P99_RATIO: Bar = Bar::AtMost(1.3);

/// The totals of all blocks.
struct Tally {
    rate: u32,
    /// Failed requests of the healthy version, and calls of the other one without any response.
    errors: u64,
    /// Of all baseline blocks, in milliseconds.
    alone_p99: Vec<f64>,
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let rate = run::step("bystander: capacity beside a busy core", || {
        let server = start(bench, &[])?;
        let _spinner = bench.rig.spinner()?;
        let rate = bench.rig.half_capacity(&server, &bench.healthy)?;
        server.stop()?;
        Ok(rate)
    })?;
    let mut tally = Tally { rate, errors: 0, alone_p99: Vec::new() };
    let mut figures = Vec::new();
    for action in ACTIONS {
        let measure = || action_pairs(bench, action, &mut tally);
        figures.extend(run::step(&format!("bystander of {action}"), measure)?);
    }
    let measure = || init_pairs(bench, &mut tally);
    figures.push(run::step("bystander of an init that spins", measure)?);
    let none = Some(Bar::Exactly(0.0));
    figures.extend([
        Figure::new("bystander_errors", tally.errors as f64, "requests", none),
        Figure::new("bystander_rate", f64::from(rate), "1/s", None),
        Figure::new("bystander_alone_p99_ms", median(&tally.alone_p99), "ms", None),
    ]);
    Ok(figures)
}

/// A server with the healthy version, the faulting one and others.
fn start(bench: &Bench<'_>, others: &[&Path]) -> Result<Server> {
    let mut config = format!("[models.misbehave]\npredict_milliseconds = {PREDICT_MILLISECONDS}\n");
    if !others.is_empty() {
        // Longer than a block, even on a core of its own.
        let seconds = block_seconds(bench).ceil() + 2.0;
        config.push_str(&format!("[limits]\npreinit_cpu_seconds = {seconds:.0}\n"));
    }
    let mut artifacts = vec![bench.healthy.artifact.as_path(), bench.misbehave.artifact.as_path()];
    artifacts.extend(others);
    let setup = bench.rig.setup("state-bystander", &config, &artifacts)?;
    if others.is_empty() {
        bench.rig.warm_server(&setup)
    } else {
        Server::launch(bench.rig.workspace, &setup)
    }
}

fn block_seconds(bench: &Bench<'_>) -> f64 {
    bench.rig.seconds / 10.0
}

/// Measures the requests of the healthy version.
fn healthy_block(bench: &Bench<'_>, server: &Server, tally: &mut Tally) -> Result<f64> {
    let (rate, warm_up_seconds) = (tally.rate, BLOCK_WARM_UP_SECONDS);
    let block = Arrivals { rate, warm_up_seconds, seconds: block_seconds(bench) };
    let measured = bench.rig.arrivals(server, &bench.healthy, block)?;
    tally.errors += measured.error_count();
    Ok(measured.latencies.p99_ms())
}

/// The baseline: beside a process that computes.
fn block_alone(bench: &Bench<'_>, server: &Server, tally: &mut Tally) -> Result<f64> {
    let _spinner = bench.rig.spinner()?;
    let p99 = healthy_block(bench, server, tally)?;
    tally.alone_p99.push(p99);
    Ok(p99)
}

fn action_pairs(bench: &Bench<'_>, action: &str, tally: &mut Tally) -> Result<Vec<Figure>> {
    let mut server = start(bench, &[])?;
    let (mut pairs, mut calls) = (Vec::new(), 0.0);
    for _ in 0..PAIRS {
        let baseline = block_alone(bench, &server, tally)?;
        let (value, measured) = block_beside(bench, &server, action, tally)?;
        pairs.push(Pair { baseline, value });
        calls += executed(&measured);
    }
    let unknown =
        |line: &Value| line["message"].as_str().is_some_and(|text| text.contains("not known"));
    ensure!(!server.log.lines()?.iter().any(unknown), "the guest does not know `{action}`");
    server.stop()?;
    let figure = |name: &str, value, unit, bar| {
        Figure::new(&format!("bystander_{name}_{action}"), value, unit, Some(bar))
    };
    Ok(vec![
        figure("p99_ratio", median_ratio(&pairs), "ratio", P99_RATIO),
        figure("calls", calls, "calls", Bar::Above(0.0)),
    ])
}

/// Beside faulting calls, which the second result is about.
fn block_beside(
    bench: &Bench<'_>,
    server: &Server,
    action: &str,
    tally: &mut Tally,
) -> Result<(f64, Measured)> {
    let body = |index: usize| match index % 4 {
        3 => json!({"action": "echo"}),
        _ => json!({"action": format!("{action} {index}")}),
    };
    let bodies: Vec<_> = (0..4 * DIFFERENT_BODIES).map(body).collect();
    let load = Load {
        url: &server.url(&bench.misbehave.path()),
        warm_up_seconds: 0.0,
        seconds: BLOCK_WARM_UP_SECONDS + block_seconds(bench) + OVERLAP_SECONDS,
        bodies: &bodies,
        // Any response is accepted, but there must be one.
        tolerated: &[500, 503, 504],
        ..Load::default()
    };
    let mut misbehaving = load::start(bench.rig.workspace, &load)?;
    let p99 = healthy_block(bench, server, tally)?;
    ensure!(!misbehaving.is_over()?, "the faulting calls ended before the healthy ones");
    let measured = misbehaving.finish()?;
    tally.errors += measured.error_count();
    Ok((p99, measured))
}

/// The number of calls that faulted, without those that succeed and those that were rejected.
fn executed(measured: &Measured) -> f64 {
    let refused = measured.tolerated.get("503").copied().unwrap_or(0);
    (measured.requests.saturating_sub(refused) as f64 * MISBEHAVING_OF_FOUR).floor()
}

/// Beside a version whose `init` spins: it is deployed when the server starts, until its limit of
/// CPU time.
fn init_pairs(bench: &Bench<'_>, tally: &mut Tally) -> Result<Figure> {
    let folder = bench.rig.folder("init");
    fs::create_dir_all(&folder)?;
    let artifact = pack_misbehave(bench.rig.workspace, &folder, "2.0.0")?;
    set_init(&artifact, "spin")?;
    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        let mut server = start(bench, &[&artifact])?;
        server.wait_for("compiling, which takes some seconds", Some("2.0.0"))?;
        let value = healthy_block(bench, &server, tally)?;
        let failed = server.log.find("failed to load a version", Some("2.0.0"))?;
        ensure!(failed.is_none(), "the deployment ended before the block: {failed:?}");
        server.wait_for("failed to load a version", Some("2.0.0"))?;
        let baseline = block_alone(bench, &server, tally)?;
        server.stop()?;
        pairs.push(Pair { baseline, value });
    }
    Ok(Figure::new("bystander_p99_ratio_init-spin", median_ratio(&pairs), "ratio", Some(P99_RATIO)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_and_good_calls_are_not_counted() {
        let tolerated = [("500".to_owned(), 30), ("503".to_owned(), 60)].into();
        let measured = Measured { requests: 100, successes: 10, tolerated, ..Measured::default() };
        assert!((executed(&measured) - 30.0).abs() < 1e-9);
    }
}
