//! What a healthy version feels of one that breaks down all the time, in each way there is.
//!
//! The healthy one is asked at half of what the server can do while something else keeps a core busy.
//! Its 99th percentile beside the misbehaving version is held against the one beside a native
//! process that spins: computing is nobody's misbehaviour, so what remains is what the sandbox lets
//! through: locks held, threads taken, memory mapped and unmapped, logs written. A host without
//! deadlines, with a shared instance or with one queue for all would show it as errors or as
//! multiples.
//!
//! One caller asks the misbehaving version without a pause. Every fourth call behaves, or else the
//! version would take no more from its caller and nothing would happen; how many calls really misbehaved is counted.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::setup::Bench;
use crate::bench::artifacts::{make_init, pack_misbehave};
use crate::bench::load::{self, Load, Measured};
use crate::bench::rig::{Arrivals, BLOCK_WARM_UP_SECONDS};
use crate::bench::server::Server;
use crate::bench::statistics::{Pair, median, median_ratio};
use crate::bench::{Bar, Figure};
use crate::run;

/// How the version misbehaves; words that its guest knows.
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

/// How many times each is measured, and its baseline. Odd, so that the median is one of them.
const PAIRS: u32 = 5;

/// What a call may take: short, so that spinning ones end and begin again.
const PREDICT_MILLISECONDS: u32 = 200;

/// Inputs on which a version keeps breaking down are not run again; of so many, it remembers fewer.
const DIFFERENT_BODIES: usize = 200;

/// The misbehaving calls of each that behaves.
const MISBEHAVING_OF_FOUR: f64 = 0.75;

/// How much longer the misbehaving caller goes on than the healthy one is measured.
const OVERLAP_SECONDS: f64 = 0.5;

/// A bystander must hardly notice.
const P99_RATIO: Bar = Bar::AtMost(1.3);

/// What all the blocks of a benchmark came to.
struct Tally {
    rate: u32,
    /// Of the healthy version, and calls of the other one that had no answer at all.
    errors: u64,
    /// Of every baseline block, in milliseconds.
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

/// A server with the healthy version, the misbehaving one and others.
fn start(bench: &Bench<'_>, others: &[&Path]) -> Result<Server> {
    let mut config = format!("[models.misbehave]\npredict_milliseconds = {PREDICT_MILLISECONDS}\n");
    if !others.is_empty() {
        // Longer than a block, even with a core for itself.
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

/// The healthy version's requests, whatever else goes on.
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

/// Beside calls that misbehave, of which the second result is about.
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
        // Whatever its answer is, but there has to be one.
        also: &[500, 503, 504],
        ..Load::default()
    };
    let mut misbehaving = load::start(bench.rig.workspace, &load)?;
    let p99 = healthy_block(bench, server, tally)?;
    ensure!(!misbehaving.is_over()?, "the misbehaving calls were over before the healthy ones");
    let measured = misbehaving.finish()?;
    tally.errors += measured.error_count();
    Ok((p99, measured))
}

/// How many calls really misbehaved: not those that behave, and not those that were refused.
fn executed(measured: &Measured) -> f64 {
    let refused = measured.also.get("503").copied().unwrap_or(0);
    (measured.requests.saturating_sub(refused) as f64 * MISBEHAVING_OF_FOUR).floor()
}

/// Beside a version whose `init` spins: it is deployed when the server starts, until its time is up.
fn init_pairs(bench: &Bench<'_>, tally: &mut Tally) -> Result<Figure> {
    let folder = bench.rig.folder("init");
    fs::create_dir_all(&folder)?;
    let artifact = pack_misbehave(bench.rig.workspace, &folder, "2.0.0")?;
    make_init(&artifact, "spin")?;
    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        let mut server = start(bench, &[&artifact])?;
        server.wait_for("compiling, which takes some seconds", Some("2.0.0"))?;
        let value = healthy_block(bench, &server, tally)?;
        let failed = server.log.find("failed to load a version", Some("2.0.0"))?;
        ensure!(failed.is_none(), "the deployment was over before the block: {failed:?}");
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
        let also = [("500".to_owned(), 30), ("503".to_owned(), 60)].into();
        let measured = Measured { requests: 100, successes: 10, also, ..Measured::default() };
        assert!((executed(&measured) - 30.0).abs() < 1e-9);
    }
}
