//! The accuracy of a split, and whether callers stay with their version.
//!
//! Requests without a sticky key are distributed randomly, so their share must be as close to the
//! weight as chance allows. Callers with a key are sampled one by one: when the candidate's weight
//! is raised, callers may move to it and none may move back; after a restart none may move at all.
//! A server that chose randomly for callers, or hashed with a new key after each start, would move
//! hundreds of them.

use anyhow::{Context, Result, ensure};
use semver::Version;

use super::setup::{Bench, TOXICITY, predict_path, unpinned};
use crate::bench::admin::Mutation;
use crate::bench::artifacts::Model;
use crate::bench::load::{self, Load};
use crate::bench::rig::CAPACITY_CONNECTIONS;
use crate::bench::server::Server;
use crate::bench::trace::{self, Record};
use crate::bench::{Bar, Figure};
use crate::run;

const STABLE: Version = Version::new(1, 0, 0);
const CANDIDATE: Version = Version::new(2, 0, 0);

/// The number of requests for the share.
const REQUESTS: u32 = 100_000;

/// The time limit for them; a tenth of what this machine does in that time.
const SECONDS: f64 = 300.0;

/// The number of callers with a key.
const CALLERS: u32 = 2000;

const HEADER: &str = "x-user-id";

const CONFIG: &str = "[models.toxicity]\nsticky_header = \"x-user-id\"\n";

/// The candidate's weights in parts per million, before and after raising.
const WEIGHTS: [u32; 2] = [100_000, 300_000];

/// A deviation of four happens once in sixteen thousand measurements.
const DEVIATIONS: Bar = Bar::AtMost(4.0);

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let models = run::step("split: pack", || bench.toxicity(&[STABLE, CANDIDATE]))?;
    let model = models.first().context("nothing was packed")?;
    let server = bench.start("split", CONFIG, &models)?;
    let raise = |server: &Server, weight| {
        server.admin().make(TOXICITY, &Mutation::Canary(CANDIDATE, weight))
    };
    raise(&server, WEIGHTS[0])?;
    let what = format!("split: {REQUESTS} requests without a key");
    let mut figures = run::step(&what, || share(bench, &server, model))?;
    let ask = |server: &Server, when: &str| {
        run::step(&format!("split: {CALLERS} callers {when}"), || ask_all(server, model))
    };
    let first = ask(&server, "at the first weight")?;
    raise(&server, WEIGHTS[1])?;
    let raised = ask(&server, "at the raised weight")?;
    server.stop()?;
    // Not reset as at the beginning of a section: the candidate must stay.
    let setup = bench.setup(CONFIG)?;
    let server = Server::start(bench.rig.workspace, &setup)?;
    let again = ask(&server, "after a restart")?;
    server.stop()?;

    let candidate = CANDIDATE.to_string();
    let on_candidate = |versions: &[String]| {
        versions.iter().filter(|version| **version == candidate).count() as f64
    };
    let changed = |one: &[String], other: &[String], from: Option<&str>| {
        let pairs = one.iter().zip(other);
        let moved =
            pairs.filter(|(one, other)| one != other && from.is_none_or(|from| *one == from));
        moved.count() as f64
    };
    let none = Some(Bar::Exactly(0.0));
    let (some, callers) = (Some(Bar::Above(0.0)), "callers");
    let back = changed(&first, &raised, Some(&candidate));
    figures.extend([
        Figure::new("split_moved_back", back, callers, none),
        Figure::new("split_moved_by_restart", changed(&raised, &again, None), callers, none),
        Figure::new("split_on_candidate", on_candidate(&first), callers, some),
        Figure::new("split_on_candidate_raised", on_candidate(&raised), callers, some),
    ]);
    Ok(figures)
}

/// The deviation of the candidate's share from its weight.
fn share(bench: &Bench<'_>, server: &Server, model: &Model) -> Result<Vec<Figure>> {
    let (url, file) = (server.url(&predict_path(TOXICITY)), bench.rig.folder("trace"));
    let load = Load {
        connections: CAPACITY_CONNECTIONS,
        warm_up_seconds: 0.0,
        seconds: SECONDS,
        requests: Some(REQUESTS as usize),
        trace: Some(&file),
        ..unpinned(&url, model)
    };
    let measured = load::run_without_errors(bench.rig.workspace, &load)?;
    ensure!(measured.requests == u64::from(REQUESTS), "there was no time for all requests");
    let records = trace::read(&file)?;
    let part = f64::from(WEIGHTS[0]) / 1e6;
    let (share, deviations) = deviations(&records, &CANDIDATE.to_string(), part);
    Ok(vec![
        Figure::new("split_share", share * 100.0, "%", None),
        Figure::new("split_share_off_by", deviations, "sigma", Some(DEVIATIONS)),
    ])
}

/// A version's share, and its deviation from the expected share in standard deviations.
fn deviations(records: &[Record], version: &str, part: f64) -> (f64, f64) {
    let all = records.len() as f64;
    let of_version = |record: &&Record| record.version.as_deref() == Some(version);
    let count = records.iter().filter(of_version).count() as f64;
    let deviation = (all * part * (1.0 - part)).sqrt();
    (count / all, (count - all * part).abs() / deviation)
}

/// The version that answers each caller.
fn ask_all(server: &Server, model: &Model) -> Result<Vec<String>> {
    let client = server.client();
    let body = model.bodies.first().context("the model has no example")?.to_string().into_bytes();
    let ask = |caller: u32| {
        let key = format!("user-{caller}");
        let answer = client.post(&predict_path(TOXICITY), &[(HEADER, &key)], body.clone())?;
        ensure!(answer.status == 200, "a caller got {}: {}", answer.status, answer.text);
        answer.version.context("a response names no version")
    };
    (0..CALLERS).map(ask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_compared_with_its_deviation() {
        let record = |number: u32| {
            let version = Some(if number < 130 { "2.0.0" } else { "1.0.0" }.to_owned());
            Record { sent: 0, answered: 1, is_success: true, version }
        };
        let records: Vec<_> = (0..1000).map(record).collect();
        // 30 too many, with a standard deviation of the square root of 90.
        let (share, off_by) = deviations(&records, "2.0.0", 0.1);
        assert!((share - 0.13).abs() < 1e-9);
        assert!((off_by - 30.0 / 90.0_f64.sqrt()).abs() < 1e-9);
    }
}
