//! Kills the server before each single write, and fills the disk from each write on.
//!
//! Unlike the section `crash`, this one is exhaustive: a build with failpoints counts its file
//! operations and kills itself before the N-th, or fails all operations from the N-th on as if the
//! disk were full. N increases from 1 until the start and one change have succeeded; then the next
//! kind of change follows. Each attempt starts with a copy of the same state and ends with a start
//! without failpoints, which must show a state that the rules allow. A server with a full disk may
//! reject any change but must keep answering.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use semver::Version;

use super::expected::{State, Verdict};
use super::setup::{Bench, MISBEHAVE, empty, predict_path};
use crate::bench::admin::{Mutation, Reply, WHOLE};
use crate::bench::server::{Server, Setup};
use crate::bench::{Bar, Figure};
use crate::run;
use crate::workspace::Profile;

/// The environment variable of the failpoint.
const VARIABLE: &str = "GUESTHOUSE_FAILPOINT";

const TEMPLATE: &str = "state-failpoints-template";
const STATE: &str = "state-failpoints";

/// More writes than any start and change together.
const MOST_POINTS: u32 = 300;

/// The time limit of a start, which compiles nothing.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What happens at the N-th write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Kill,
    Full,
}

/// How far a server came with a failpoint ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// It did not start.
    NoStart,
    /// It started, and then the failure happened.
    Failed,
    /// The failure did not happen before the change was made.
    Done,
}

#[derive(Default)]
struct Tally {
    /// The failpoints at which something failed.
    points: u32,
    lost: u32,
    half: u32,
    failed_starts: u32,
    refused: u32,
    /// Servers with a full disk that did not keep serving.
    broken: u32,
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    build()?;
    let pool = run::step("failpoints: pack", || bench.misbehave(5))?;
    let template = run::step("failpoints: the initial state", || template(bench, &pool))?;
    let version = |minor| Version::new(1, minor, 0);
    let new = pool.last().context("nothing was packed")?.clone();
    let mutations = [
        Mutation::Promote(version(2)),
        Mutation::Canary(version(2), WHOLE / 10),
        Mutation::Shadow(Some((version(2), WHOLE))),
        Mutation::Rollback(None),
        Mutation::Undeploy(version(3)),
        new,
    ];
    let mut figures = Vec::new();
    for failure in [Failure::Kill, Failure::Full] {
        let mut sweep = Sweep { bench, template: &template, failure, tally: Tally::default() };
        let mut first = 1;
        for mutation in &mutations {
            let what = format!("failpoints: {failure:?} from {first} on, {}", mutation.kind());
            first = run::step(&what, || sweep.sweep(mutation, first))?;
        }
        figures.extend(sweep.figures());
    }
    Ok(figures)
}

fn build() -> Result<()> {
    let mut build = run::cargo();
    build.args(["build", "--locked", "--package", "guesthouse", "--features", "failpoints"]);
    run::shown(&mut build)
}

/// Makes the initial state: all versions but the last are deployed, and the second one is promoted.
fn template(bench: &Bench<'_>, pool: &[Mutation]) -> Result<State> {
    let setup = setup(bench, TEMPLATE)?;
    empty(&setup.state)?;
    let server = Server::start(bench.rig.workspace, &setup)?;
    let (_last, deployed) = pool.split_last().context("nothing was packed")?;
    let promote = Mutation::Promote(Version::new(1, 1, 0));
    let mut expected = State::default();
    for mutation in deployed.iter().chain([&promote]) {
        server.admin().make(MISBEHAVE, mutation)?;
        expected = expected.after(mutation);
    }
    server.stop()?;
    let server = Server::start(bench.rig.workspace, &setup)?;
    let state = state(&server)?;
    ensure!(state == expected, "the initial state is {state:?}, not {expected:?}");
    server.stop()?;
    Ok(state)
}

fn setup(bench: &Bench<'_>, state: &str) -> Result<Setup> {
    let setup = bench.rig.setup(state, "", &[])?;
    let program = bench.rig.workspace.host_binary(Profile::Dev);
    Ok(Setup { program, limit: START_LIMIT, ..setup })
}

fn state(server: &Server) -> Result<State> {
    State::from_model(server.admin().model(MISBEHAVE)?.as_ref())
}

/// All failpoints of one kind.
struct Sweep<'a> {
    bench: &'a Bench<'a>,
    template: &'a State,
    failure: Failure,
    tally: Tally,
}

impl Sweep<'_> {
    /// Goes through all failpoints of a change; returns the first at which the server started.
    /// Starts are deterministic, so the next change begins there.
    fn sweep(&mut self, mutation: &Mutation, first: u32) -> Result<u32> {
        let mut started = None;
        for point in first..first + MOST_POINTS {
            let progress = self.fail_at(mutation, point)?;
            if progress != Progress::NoStart {
                started = started.or(Some(point));
            }
            if progress == Progress::Done {
                return Ok(started.unwrap_or(first));
            }
        }
        bail!("{mutation:?} fails at every failpoint")
    }

    fn fail_at(&mut self, mutation: &Mutation, point: u32) -> Result<Progress> {
        let mut setup = setup(self.bench, STATE)?;
        copy(&self.bench.rig.folder(TEMPLATE), &setup.state)?;
        let failure = match self.failure {
            Failure::Kill => "kill",
            Failure::Full => "full",
        };
        setup.environment = vec![(VARIABLE, format!("{failure}:{point}"))];
        let (reply, progress) = match Server::start(self.bench.rig.workspace, &setup) {
            Err(error) => (Reply::Lost(error), Progress::NoStart),
            Ok(server) => self.change(server, mutation)?,
        };
        self.tally.points += u32::from(progress != Progress::Done);
        setup.environment.clear();
        let server = match Server::start(self.bench.rig.workspace, &setup) {
            Ok(server) => server,
            Err(error) => {
                eprintln!("{failure}:{point}, {mutation:?}: a failed start: {error:#}");
                self.tally.failed_starts += 1;
                return Ok(progress);
            }
        };
        let is = state(&server)?;
        server.kill()?;
        let verdict = self.template.judge(mutation, &reply, &is);
        match verdict {
            Verdict::Kept => {}
            Verdict::Lost => self.tally.lost += 1,
            Verdict::Partial => self.tally.half += 1,
        }
        if verdict != Verdict::Kept {
            eprintln!("{failure}:{point}, {mutation:?}: {verdict:?} after {reply:?}, it is {is:?}");
        }
        Ok(progress)
    }

    /// Makes the change and stops the server, unless it has exited.
    fn change(&mut self, server: Server, mutation: &Mutation) -> Result<(Reply, Progress)> {
        let reply = server.admin().apply(MISBEHAVE, mutation);
        let is_done = matches!(reply, Reply::Acknowledged(_));
        self.tally.refused += u32::from(matches!(reply, Reply::Rejected(_)));
        let is_well = match self.failure {
            // A failpoint may be reached during the shutdown.
            Failure::Kill => server.stop().is_ok(),
            Failure::Full => {
                let keeps_serving = self.keeps_serving(&server, &reply);
                if let Err(error) = &keeps_serving {
                    eprintln!("{mutation:?} on a full disk: {error:#}");
                    self.tally.broken += 1;
                }
                server.kill()?;
                keeps_serving.is_ok()
            }
        };
        let progress = if is_done && is_well { Progress::Done } else { Progress::Failed };
        Ok((reply, progress))
    }

    /// Whether a server with a full disk answers as before and has not made a rejected change.
    fn keeps_serving(&self, server: &Server, reply: &Reply) -> Result<()> {
        let body = br#"{"action":"echo"}"#.to_vec();
        let answer = server.client().post(&predict_path(MISBEHAVE), &[], body)?;
        ensure!(answer.status == 200, "a prediction failed: {} {}", answer.status, answer.text);
        if matches!(reply, Reply::Rejected(_)) {
            let is = state(server)?;
            ensure!(is == *self.template, "it was rejected ({reply:?}) and made: {is:?}");
        }
        Ok(())
    }

    fn figures(&self) -> Vec<Figure> {
        let (none, some) = (Some(Bar::Exactly(0.0)), Some(Bar::Above(0.0)));
        let of = match self.failure {
            Failure::Kill => "kill",
            Failure::Full => "full",
        };
        let figure = |name: &str, value: u32, unit, bar| {
            Figure::new(&format!("failpoints_{of}_{name}"), f64::from(value), unit, bar)
        };
        let tally = &self.tally;
        let mut figures = vec![
            figure("points", tally.points, "points", some),
            figure("lost_acknowledged_changes", tally.lost, "changes", none),
            figure("half_changes", tally.half, "changes", none),
            figure("failed_starts", tally.failed_starts, "starts", none),
        ];
        if self.failure == Failure::Full {
            figures.push(figure("refused_changes", tally.refused, "changes", some));
            figures.push(figure("broken_servers", tally.broken, "servers", none));
        }
        figures
    }
}

/// Replaces a folder with a copy of another. Files are not linked, because the server changes some
/// in place.
fn copy(from: &Path, to: &Path) -> Result<()> {
    empty(to)?;
    run::output(Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_independent_of_the_original() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("from")).unwrap();
        std::fs::write(path("from/file"), "before").unwrap();
        for _ in 0..2 {
            copy(&path("from"), &path("to")).unwrap();
            std::fs::write(path("to/file"), "after").unwrap();
        }
        assert_eq!(std::fs::read_to_string(path("from/file")).unwrap(), "before");
        assert!(!path("to/from").exists());
    }
}
