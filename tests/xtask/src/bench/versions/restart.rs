//! The time of a start with twenty stored versions.
//!
//! They are deployed before, one after the other, and none is compiled by the measured starts. A
//! start that verified artifacts by compiling them, or loaded them sequentially with all of their
//! instances, would take seconds.

use anyhow::{Context, Result};
use semver::Version;

use super::setup::{Bench, TOXICITY, deploy, empty};
use crate::bench::server::Server;
use crate::bench::statistics::median;
use crate::bench::{Bar, Figure};
use crate::run;

/// The number of versions.
const VERSIONS: u64 = 20;

/// The number of starts. Odd, so that the median is a measured value.
const STARTS: usize = 5;

/// The versions may reserve more memory than the machine has; none of them uses it.
const CONFIG: &str = "[limits]\nmemory_mib = 65536\n";

/// A restart should not be noticeable.
const START_MS: Bar = Bar::Below(1000.0);

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let versions: Vec<Version> = (0..VERSIONS).map(|patch| Version::new(1, 0, patch)).collect();
    let models = run::step("restart: pack", || bench.toxicity(&versions))?;
    let setup = bench.rig.setup("state-restart", CONFIG, &[])?;
    empty(&setup.state)?;
    let start = || Server::start(bench.rig.workspace, &setup);
    let mut server = run::step(&format!("restart: deploy {VERSIONS} versions"), || {
        let server = start()?;
        deploy(&server.admin(), &models)?;
        Ok(server)
    })?;
    let mut times = Vec::new();
    for number in 1..=STARTS {
        server.stop()?;
        server = run::step(&format!("restart: start {number} of {STARTS}"), start)?;
        times.push(server.start_ms()?);
    }
    let model = server.admin().model(TOXICITY)?.context("the model is gone")?;
    let states = model["versions"].as_array().context("the model has no versions")?;
    let ready = states.iter().filter(|version| version["state"] == "ready").count();
    server.stop()?;
    let all = Some(Bar::Exactly(VERSIONS as f64));
    Ok(vec![
        Figure::new("restart_ms", median(&times), "ms", Some(START_MS)),
        Figure::new("restart_versions_ready", ready as f64, "versions", all),
    ])
}
