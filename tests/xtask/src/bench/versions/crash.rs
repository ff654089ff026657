//! Acknowledged changes of a server that is killed at random moments.
//!
//! Two hundred changes of every kind in random order, each with a `kill -9` at a random moment
//! between its request and some time after it should be complete. The expected state follows from
//! the rules: that after the last acknowledged change, or, if a change was in progress, that before
//! or after it. A server that acknowledged before writing would lose changes; one that wrote in two
//! places, or the new version's files after its name, would show partial changes or would not
//! start.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::expected::{State, Verdict};
use super::setup::{Bench, MISBEHAVE, empty};
use crate::bench::admin::{Mutation, Reply};
use crate::bench::random::Random;
use crate::bench::server::{Server, Setup};
use crate::bench::{Bar, Figure};
use crate::run;

/// The number of changes.
const MUTATIONS: u32 = 200;

/// The number of versions.
const VERSIONS: u64 = 6;

/// The assumed duration of a change of which none has been measured. A deployment compiles.
const FIRST_GUESS: Duration = Duration::from_millis(20);
const FIRST_GUESS_OF_DEPLOY: Duration = Duration::from_secs(2);

/// The latest moment of a kill, in multiples of the duration of the change. About one kill in three
/// comes after the change is complete.
const LATEST: f64 = 1.5;

/// The totals.
#[derive(Default)]
struct Tally {
    lost: u32,
    half: u32,
    refused: u32,
    failed_starts: u32,
    acknowledged: u32,
    interrupted: u32,
    /// Interrupted changes that were made nevertheless.
    applied: u32,
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let pool = run::step("crash: pack", || bench.misbehave(VERSIONS))?;
    let setup = bench.rig.setup("state-crash", "", &[])?;
    empty(&setup.state)?;
    let server = Server::start(bench.rig.workspace, &setup)?;
    let durations = BTreeMap::new();
    let mut random = Random::new();
    let what = format!("crash: {MUTATIONS} changes and kills (seed {})", random.seed);
    let mut work = Work { bench, setup: &setup, durations, tally: Tally::default() };
    run::step(&what, || work.perform(server, &pool, &mut random))?;
    Ok(work.tally.figures())
}

impl Tally {
    fn count(&mut self, reply: &Reply, verdict: Verdict, is_changed: bool) {
        match reply {
            Reply::Acknowledged(_) => self.acknowledged += 1,
            Reply::Rejected(_) => self.refused += 1,
            Reply::Lost(_) => self.interrupted += 1,
        }
        match verdict {
            Verdict::Kept => {}
            Verdict::Lost => self.lost += 1,
            Verdict::Partial => self.half += 1,
        }
        self.applied += u32::from(matches!(reply, Reply::Lost(_)) && is_changed);
    }

    fn figures(&self) -> Vec<Figure> {
        let (none, some) = (Some(Bar::Exactly(0.0)), Some(Bar::Above(0.0)));
        let figure = |name: &str, value: u32, unit, bar| {
            Figure::new(&format!("crash_{name}"), f64::from(value), unit, bar)
        };
        vec![
            figure("lost_acknowledged_changes", self.lost, "changes", none),
            figure("half_changes", self.half, "changes", none),
            figure("failed_starts", self.failed_starts, "starts", none),
            figure("refused_changes", self.refused, "changes", none),
            figure("acknowledged_changes", self.acknowledged, "changes", some),
            figure("interrupted_changes", self.interrupted, "changes", some),
            figure("interrupted_and_made", self.applied, "changes", None),
        ]
    }
}

struct Work<'a> {
    bench: &'a Bench<'a>,
    setup: &'a Setup,
    /// The durations of uninterrupted changes by kind.
    durations: BTreeMap<&'static str, Duration>,
    tally: Tally,
}

impl Work<'_> {
    fn perform(&mut self, server: Server, pool: &[Mutation], random: &mut Random) -> Result<()> {
        let mut server = server;
        let mut state = State::default();
        for _ in 0..MUTATIONS {
            let mutation = choose(&state, pool, random).context("no change is possible")?;
            let moment = self.duration(&mutation).mul_f64(random.fraction() * LATEST);
            let reply = self.kill_during(server, &mutation, moment)?;
            server = self.restart()?;
            let is = State::from_model(server.admin().model(MISBEHAVE)?.as_ref())?;
            let verdict = state.judge(&mutation, &reply, &is);
            if verdict != Verdict::Kept || matches!(reply, Reply::Rejected(_)) {
                eprintln!("{verdict:?}: {mutation:?}, {reply:?}\nbefore {state:?}\nafter {is:?}");
            }
            self.tally.count(&reply, verdict, is != state);
            // Whether it is correct or not, the next change starts from this state.
            state = is;
        }
        server.stop()
    }

    fn duration(&self, mutation: &Mutation) -> Duration {
        let guess = match mutation {
            Mutation::Deploy { .. } => FIRST_GUESS_OF_DEPLOY,
            _ => FIRST_GUESS,
        };
        self.durations.get(mutation.kind()).copied().unwrap_or(guess)
    }

    /// Kills the server at this time after the request of a change; returns the outcome of the
    /// request.
    fn kill_during(
        &mut self,
        server: Server,
        mutation: &Mutation,
        moment: Duration,
    ) -> Result<Reply> {
        let admin = server.admin();
        let (reply, duration) = thread::scope(|scope| {
            let command = scope.spawn(|| {
                let start = Instant::now();
                (admin.apply(MISBEHAVE, mutation), start.elapsed())
            });
            thread::sleep(moment);
            server.kill()?;
            command.join().map_err(|_panic| anyhow!("the client panicked"))
        })?;
        if matches!(reply, Reply::Acknowledged(_)) {
            self.durations.insert(mutation.kind(), duration);
        }
        Ok(reply)
    }

    /// Starts the server again, with a second attempt if that fails.
    fn restart(&mut self) -> Result<Server> {
        let start = || Server::start(self.bench.rig.workspace, self.setup);
        start().or_else(|error| {
            eprintln!("a failed start: {error:#}");
            self.tally.failed_starts += 1;
            start()
        })
    }
}

/// A random change of this state; each kind is equally likely.
fn choose(state: &State, pool: &[Mutation], random: &mut Random) -> Option<Mutation> {
    let allowed = state.allowed(pool);
    let mut kinds: Vec<&str> = allowed.iter().map(Mutation::kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let kind = *random.choose(&kinds)?;
    let of_kind: Vec<&Mutation> = allowed.iter().filter(|one| one.kind() == kind).collect();
    random.choose(&of_kind).map(|mutation| (*mutation).clone())
}

#[cfg(test)]
mod tests {
    use semver::Version;

    use super::*;

    #[test]
    fn random_changes_cover_all_kinds() {
        let deploy = |minor| {
            let (version, digest) = (Version::new(1, minor, 0), minor.to_string());
            Mutation::Deploy { version, digest, artifact: "artifact".into() }
        };
        let pool: Vec<_> = (0..VERSIONS).map(deploy).collect();
        let (mut random, mut state) = (Random::seeded(1), State::default());
        let mut kinds = BTreeMap::new();
        for _ in 0..1000 {
            let mutation = choose(&state, &pool, &mut random).unwrap();
            state = state.after(&mutation);
            *kinds.entry(mutation.kind()).or_insert(0) += 1;
        }
        assert_eq!(kinds.len(), 6, "{kinds:?}");
        assert!(kinds.values().all(|count| *count >= 50), "{kinds:?}");
    }

    #[test]
    fn outcomes_are_counted() {
        let mut tally = Tally::default();
        tally.count(&Reply::Lost(anyhow!("killed")), Verdict::Kept, true);
        tally.count(&Reply::Lost(anyhow!("killed")), Verdict::Partial, false);
        tally.count(&Reply::Acknowledged(serde_json::json!({})), Verdict::Lost, false);
        assert_eq!((tally.interrupted, tally.applied, tally.half), (2, 1, 1));
        assert_eq!((tally.acknowledged, tally.lost), (1, 1));
    }
}
