//! The time of loading compiled versions and of deploying small ones while a large artifact is
//! compiled.
//!
//! Each round starts with an empty state folder, so that the large artifact takes its full time.
//! Everything measured must end before its compilation; otherwise the round shows nothing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use semver::Version;

use super::setup::{Bench, MISBEHAVE, TOXICITY, deploy, empty};
use crate::bench::admin::{self, Admin, Mutation};
use crate::bench::artifacts::Model;
use crate::bench::client::Client;
use crate::bench::rig::Rig;
use crate::bench::server::{Server, Setup};
use crate::bench::{Bar, Figure};
use crate::run;

/// The slowest round counts.
const ROUNDS: usize = 3;

/// Every replaced version is retired, so that a rollback has to load it.
const CONFIG: &str = "[models.misbehave]\nparked_versions = 0\n";

/// The time after which the large artifact is being compiled.
const HEAD_START: Duration = Duration::from_secs(2);

/// What an operator accepts without wondering.
const LOAD_MS: Bar = Bar::Below(2000.0);

/// The times of one round in milliseconds.
#[derive(Default)]
struct Times {
    reload: f64,
    rollback: f64,
    deploy: f64,
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let large = run::step("loads: pack", || bench.toxicity(&[Version::new(1, 0, 0)]))?;
    let small = bench.misbehave(3)?;
    let setup = bench.rig.setup("state-loads", CONFIG, &[])?;
    let mut slowest = Times::default();
    for number in 1..=ROUNDS {
        empty(&setup.state)?;
        let what = format!("loads: round {number} of {ROUNDS}");
        let times = run::step(&what, || round(&bench.rig, &setup, &large, &small))?;
        slowest.reload = slowest.reload.max(times.reload);
        slowest.rollback = slowest.rollback.max(times.rollback);
        slowest.deploy = slowest.deploy.max(times.deploy);
    }
    Ok(vec![
        Figure::new("loads_unload_and_load_ms", slowest.reload, "ms", Some(LOAD_MS)),
        Figure::new("loads_rollback_to_retired_ms", slowest.rollback, "ms", Some(LOAD_MS)),
        Figure::new("loads_small_deployment_ms", slowest.deploy, "ms", Some(LOAD_MS)),
    ])
}

fn round(rig: &Rig<'_>, setup: &Setup, large: &[Model], small: &[Mutation]) -> Result<Times> {
    let server = Server::start(rig.workspace, setup)?;
    let admin = server.admin();
    let [first, second, third] = small else { anyhow::bail!("three versions are needed") };
    let Mutation::Deploy { version, .. } = second else {
        anyhow::bail!("the second change is not a deployment")
    };
    admin.make(MISBEHAVE, first)?;
    admin.make(MISBEHAVE, second)?;
    let client = Client::new(server.address(), admin::KEY);
    let times = thread::scope(|scope| {
        let compiling = scope.spawn(|| deploy(&server.admin(), large));
        thread::sleep(HEAD_START);
        let promoted = admin.make(MISBEHAVE, &Mutation::Promote(version.clone()));
        let times = promoted.and_then(|_| act(&admin, &client, third));
        let is_over = compiling.is_finished();
        compiling.join().map_err(|_panic| anyhow::anyhow!("the deployment panicked"))??;
        ensure!(!is_over, "the large artifact was compiled before the others were loaded");
        times
    })?;
    ensure!(admin.model(TOXICITY)?.is_some(), "the large artifact was not deployed");
    server.stop()?;
    Ok(times)
}

fn act(admin: &Admin, client: &Client, third: &Mutation) -> Result<Times> {
    let time = |work: &dyn Fn() -> Result<()>| {
        let begun = Instant::now();
        work()?;
        anyhow::Ok(begun.elapsed().as_secs_f64() * 1e3)
    };
    let rollback = time(&|| admin.make(MISBEHAVE, &Mutation::Rollback(None)).map(drop))?;
    let deploy = time(&|| admin.make(MISBEHAVE, third).map(drop))?;
    let change = |what: &str| -> Result<()> {
        let path = format!("/v2/repository/models/{MISBEHAVE}/{what}");
        let answer = client.post(&path, &[], b"{}".to_vec())?;
        ensure!(answer.is_success(), "{what} was rejected: {} {}", answer.status, answer.text);
        Ok(())
    };
    let reload = time(&|| {
        change("unload")?;
        change("load").context("after unloading")
    })?;
    Ok(Times { reload, rollback, deploy })
}
