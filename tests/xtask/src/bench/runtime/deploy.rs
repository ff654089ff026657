//! The effect of a deployment on a running version, and the cost of the second version of a guest.
//!
//! A server serves compiled versions while it compiles others. It is started with one version
//! compiled, and with neither the other version nor any of their common functions. The first
//! version gets half of the requests that the server can answer, from the start of the compilation
//! until the second version is ready, which includes `init`, the snapshot, the compilation, the MAC
//! and the golden examples. The baseline is the same load on the same server right afterwards.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::setup::Bench;
use crate::bench::load::Latencies;
use crate::bench::log::number;
use crate::bench::rig::Arrivals;
use crate::bench::server::{Server, Setup};
use crate::bench::statistics::{Pair, median, median_ratio};
use crate::bench::{Bar, Figure};
use crate::run;

/// The number of deployments. Odd, so that the median is a measured value.
const ROUNDS: u32 = 3;

/// The duration of a block, after which the end of the deployment is checked.
const BLOCK_SECONDS: f64 = 1.0;

/// The longest deployment, in blocks.
const MOST_BLOCKS: u32 = 200;

const STATE: &str = "state-deploy";

const VERSION_READY: &str = "version ready";

/// A deployment may be noticeable but not harmful.
const P99_RATIO: Bar = Bar::AtMost(1.5);

/// What was compiled for one version must not be compiled for the next.
const SECOND_TO_FIRST: Bar = Bar::AtMost(0.25);

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let state = bench.rig.folder(STATE);
    if state.exists() {
        fs::remove_dir_all(&state).context("cannot empty the state folder")?;
    }
    let artifacts = [bench.healthy.artifact.as_path(), &bench.sibling.artifact];
    let setup = bench.rig.setup(STATE, "", &artifacts)?;
    let (mut figures, server) =
        run::step("deploy: two versions with an empty state folder", || {
            shared_code(bench, &setup)
        })?;
    let rate = run::step("deploy: capacity", || bench.rig.half_capacity(&server, &bench.healthy))?;
    server.stop()?;
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        let measure = || deploy_under_load(bench, &setup, rate);
        rounds.push(run::step(&format!("deploy under load {round} of {ROUNDS}"), measure)?);
    }
    let pairs: Vec<Pair> = rounds.iter().map(|round| round.p99_ms).collect();
    let of = |part: fn(&Round) -> f64| median(&rounds.iter().map(part).collect::<Vec<_>>());
    let errors: u64 = rounds.iter().map(|round| round.errors).sum();
    let none = Some(Bar::Exactly(0.0));
    figures.extend([
        Figure::new("deploy_p99_ratio", median_ratio(&pairs), "ratio", Some(P99_RATIO)),
        Figure::new("deploy_errors", errors as f64, "requests", none),
        Figure::new("deploy_rate", f64::from(rate), "1/s", None),
        Figure::new("deploy_none_p99_ms", of(|round| round.p99_ms.baseline), "ms", None),
        Figure::new("deploy_p99_ms", of(|round| round.p99_ms.value), "ms", None),
        Figure::new("deploy_under_load_seconds", of(|round| round.seconds), "s", None),
    ]);
    Ok(figures)
}

/// The time of the second deployment of a guest compared with the first.
fn shared_code(bench: &Bench<'_>, setup: &Setup) -> Result<(Vec<Figure>, Server)> {
    let mut server = Server::start(bench.rig.workspace, setup)?;
    let mut milliseconds = |version: &str| {
        let line = server.wait_for(VERSION_READY, Some(version))?;
        ensure!(line["from"] == "compiled", "version {version} was not compiled: {line}");
        number(&line, "milliseconds")
    };
    let first = milliseconds(&bench.healthy.version)?;
    let second = milliseconds(&bench.sibling.version)?;
    let figures = vec![
        Figure::new("second_deploy_to_first", second / first, "ratio", Some(SECOND_TO_FIRST)),
        Figure::new("first_deploy_ms", first, "ms", None),
        Figure::new("second_deploy_ms", second, "ms", None),
    ];
    Ok((figures, server))
}

struct Round {
    p99_ms: Pair,
    errors: u64,
    /// From the first request until the version was ready.
    seconds: f64,
}

fn deploy_under_load(bench: &Bench<'_>, setup: &Setup, rate: u32) -> Result<Round> {
    remove_all_but_the_healthy(bench)?;
    let mut server = Server::launch(bench.rig.workspace, setup)?;
    let ready = server.wait_for(VERSION_READY, Some(&bench.healthy.version))?;
    ensure!(ready["from"] == "store", "the healthy version was compiled: {ready}");
    let (mut during, mut after, mut errors) = (Latencies::default(), Latencies::default(), 0);
    let mut block = |server: &Server, latencies: &mut Latencies| -> Result<()> {
        let block = Arrivals { rate, warm_up_seconds: 0.0, seconds: BLOCK_SECONDS };
        let measured = bench.rig.arrivals(server, &bench.healthy, block)?;
        errors += measured.error_count();
        latencies.add(&measured.latencies);
        Ok(())
    };
    let mut blocks = 0;
    while server.log.find(VERSION_READY, Some(&bench.sibling.version))?.is_none() {
        ensure!(blocks < MOST_BLOCKS, "the version is not ready; the log:\n{}", server.log.tail());
        block(&server, &mut during)?;
        blocks += 1;
    }
    let line = server.wait_for(VERSION_READY, Some(&bench.sibling.version))?;
    ensure!(line["from"] == "compiled", "nothing was deployed: {line}");
    let seconds = number(&line, "milliseconds")? / 1e3;
    // The baseline runs in the same blocks.
    let mut baseline_seconds = 0.0;
    while baseline_seconds < bench.rig.seconds {
        block(&server, &mut after)?;
        baseline_seconds += BLOCK_SECONDS;
    }
    server.stop()?;
    let p99_ms = Pair { baseline: after.p99_ms(), value: during.p99_ms() };
    Ok(Round { p99_ms, errors, seconds })
}

/// Removes the stored code of all other versions, and all functions.
fn remove_all_but_the_healthy(bench: &Bench<'_>) -> Result<()> {
    for entry in fs::read_dir(bench.rig.folder(STATE).join("compiled"))? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(&bench.healthy.digest) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
