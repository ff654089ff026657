//! Restart of a server that was killed while it compiled.
//!
//! Each server starts with an empty state folder and is killed at a random moment between listening
//! and ready. The number of kills that left temporary files is reported, because a kill that leaves
//! nothing proves nothing.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::setup::Bench;
use crate::bench::load::{self, Load};
use crate::bench::server::{Server, Setup};
use crate::bench::{Bar, Figure, random};
use crate::run;

/// The number of kills.
const KILLS: u32 = 10;

/// The maximum number of starts: some servers are ready before they are killed.
const MOST_STARTS: u32 = 3 * KILLS;

const STATE: &str = "state-crash";

/// Prefixes of temporary files.
const TEMPORARY_PREFIXES: [&str; 2] = [".new-", ".tmp"];

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let setup = bench.rig.setup(STATE, "", &[&bench.misbehave.artifact])?;
    let window = run::step("crash: the duration of a deployment", || window(bench, &setup))?;
    let mut outcomes = Vec::new();
    for _ in 0..MOST_STARTS {
        if outcomes.len() == KILLS as usize {
            break;
        }
        let moment = window.mul_f64(random::fraction());
        let what = format!("crash: kill {} ms after the start", moment.as_millis());
        outcomes.extend(run::step(&what, || kill_and_start(bench, &setup, moment))?);
    }
    let count = |part: fn(&Outcome) -> bool| outcomes.iter().filter(|one| part(one)).count() as f64;
    let all = Some(Bar::Exactly(f64::from(KILLS)));
    Ok(vec![
        Figure::new("crash_clean_starts", count(|one| one.is_clean), "of 10", all),
        Figure::new("crash_kills_with_leftovers", count(|one| one.left_something), "of 10", None),
    ])
}

struct Outcome {
    is_clean: bool,
    left_something: bool,
}

/// The time from listening to ready with an empty state folder.
fn window(bench: &Bench<'_>, setup: &Setup) -> Result<Duration> {
    empty(&setup.state)?;
    let mut server = Server::launch(bench.rig.workspace, setup)?;
    let start = Instant::now();
    server.wait_for("ready", None)?;
    let window = start.elapsed();
    server.stop()?;
    Ok(window)
}

/// None if the server was ready before the moment.
fn kill_and_start(bench: &Bench<'_>, setup: &Setup, moment: Duration) -> Result<Option<Outcome>> {
    empty(&setup.state)?;
    let mut server = Server::launch(bench.rig.workspace, setup)?;
    thread::sleep(moment);
    if server.log.find("version ready", None)?.is_some() {
        server.stop()?;
        return Ok(None);
    }
    server.kill()?;
    let left_something = !temporary_files(&setup.state)?.is_empty();
    let is_clean = match check_clean_start(bench, setup) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("the start failed: {error:#}");
            false
        }
    };
    Ok(Some(Outcome { is_clean, left_something }))
}

fn check_clean_start(bench: &Bench<'_>, setup: &Setup) -> Result<()> {
    let server = Server::start(bench.rig.workspace, setup)?;
    check_answer(bench, &server)?;
    let left = temporary_files(&setup.state)?;
    ensure!(left.is_empty(), "temporary files remain: {left:?}");
    server.stop()
}

/// Sends a request that the misbehaving guest answers.
pub(super) fn check_answer(bench: &Bench<'_>, server: &Server) -> Result<()> {
    let load = Load {
        url: &server.url(&bench.misbehave.path()),
        requests: Some(1),
        warm_up_seconds: 0.0,
        bodies: &[json!({"action": "echo"})],
        contains: "\"done\":\"echo\"",
        ..Load::default()
    };
    load::run_without_errors(bench.rig.workspace, &load).map(drop)
}

fn empty(state: &Path) -> Result<()> {
    if state.exists() {
        fs::remove_dir_all(state).context("cannot empty the state folder")?;
    }
    Ok(())
}

/// The temporary files in a state folder.
fn temporary_files(state: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for folder in [state.to_owned(), state.join("compiled")] {
        // The host may have been killed before it created the folder.
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if TEMPORARY_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
                found.push(name);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_are_found_in_both_folders() {
        let state = tempfile::tempdir().unwrap();
        assert!(temporary_files(state.path()).unwrap().is_empty());
        fs::create_dir_all(state.path().join("compiled/.new-abc")).unwrap();
        for name in ["key", ".tmpXYZ", "compiled/x.cwasm"] {
            fs::write(state.path().join(name), "").unwrap();
        }
        assert_eq!(temporary_files(state.path()).unwrap(), [".tmpXYZ", ".new-abc"]);
    }
}
