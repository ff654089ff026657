//! How long a start takes that finds twenty versions in the store.
//!
//! They are deployed before, one after the other, and none of them is compiled at the start that
//! counts. A start that verified artifacts by compiling them, or that loaded them one by one with
//! all of their instances, would take seconds.

use anyhow::{Context, Result};
use semver::Version;

use super::setup::{Bench, TOXICITY, deploy, empty};
use crate::bench::server::Server;
use crate::bench::statistics::median;
use crate::bench::{Bar, Figure};
use crate::run;

/// How many versions there are.
const VERSIONS: u64 = 20;

/// How many starts the median is of. Odd, so that it is one of them.
const STARTS: usize = 5;

/// So many versions may come to use more memory than the machine has; none of them does.
const CONFIG: &str = "[limits]\nmemory_mib = 65536\n";

/// A restart should not be noticed.
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
