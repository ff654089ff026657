//! The time until a rolled-back version stops answering.
//!
//! One caller sends requests without a pause while versions are promoted and rolled back. The time
//! counts from sending the request to roll back until the first complete response of the old
//! version, so it includes the request, its writes to the disk, and a prediction. A server that
//! loaded the old version again, or drained the other one first, would take much longer.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use semver::Version;

use super::setup::{Bench, TOXICITY, predict_path, unpinned};
use crate::bench::admin::{Admin, Mutation};
use crate::bench::load::{self, Load, Running};
use crate::bench::random;
use crate::bench::statistics::quantile;
use crate::bench::trace::{self, Record};
use crate::bench::{Bar, Figure};
use crate::run;

const OLD: Version = Version::new(1, 0, 0);
const NEW: Version = Version::new(2, 0, 0);

/// The number of rollbacks.
const ROUNDS: u32 = 200;

/// The duration of the load for each of them, which is far longer than one takes.
const SECONDS_PER_ROUND: f64 = 0.25;

/// The pause after each change, in which the caller sees it; randomly up to twice as long.
const PAUSE: Duration = Duration::from_millis(20);

/// A rollback must appear immediate.
const P99_MS: Bar = Bar::Below(10.0);

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let models = run::step("rollback: pack", || bench.toxicity(&[OLD, NEW]))?;
    let server = bench.start("rollback", "", &models)?;
    let (url, file) = (server.url(&predict_path(TOXICITY)), bench.rig.folder("trace"));
    let load = Load {
        seconds: f64::from(ROUNDS) * SECONDS_PER_ROUND,
        trace: Some(&file),
        ..unpinned(&url, models.first().context("nothing was packed")?)
    };
    let what = format!("rollback: {ROUNDS} times under load");
    let (measured, sent) = run::step(&what, || {
        let mut running = load::start(bench.rig.workspace, &load)?;
        let sent = roll_back(&server.admin(), &mut running)?;
        Ok((running.finish()?, sent))
    })?;
    let records = trace::read(&file)?;
    let times = times_ms(&records, &sent)?;
    server.stop()?;
    let none = Some(Bar::Exactly(0.0));
    Ok(vec![
        Figure::new("rollback_p50_ms", quantile(&times, 0.5), "ms", None),
        Figure::new("rollback_p99_ms", quantile(&times, 0.99), "ms", Some(P99_MS)),
        Figure::new("rollback_max_ms", quantile(&times, 1.0), "ms", None),
        Figure::new("rollback_failed_requests", measured.error_count() as f64, "requests", none),
        Figure::new("rollback_request_p50_ms", measured.latencies.p50_ms(), "ms", None),
    ])
}

/// Promotes and rolls back; returns when each rollback was requested.
fn roll_back(admin: &Admin, load: &mut Running) -> Result<Vec<u64>> {
    let pause = || thread::sleep(PAUSE.mul_f64(1.0 + random::fraction()));
    // The load must have started.
    thread::sleep(Duration::from_secs(1));
    let mut sent = Vec::new();
    for _ in 0..ROUNDS {
        admin.make(TOXICITY, &Mutation::Promote(NEW))?;
        pause();
        sent.push(trace::now_ns());
        admin.make(TOXICITY, &Mutation::Rollback(None))?;
        pause();
    }
    ensure!(!load.is_over()?, "the load ended before the last rollback");
    Ok(sent)
}

/// The times from each request to the first response of the old version.
fn times_ms(records: &[Record], sent: &[u64]) -> Result<Vec<f64>> {
    let (old, new) = (OLD.to_string(), NEW.to_string());
    let time = |sent: &u64| {
        let (before, after) =
            records.split_at(records.partition_point(|record| record.answered < *sent));
        let was_new = before.last().is_some_and(|record| record.version.as_ref() == Some(&new));
        ensure!(was_new, "the caller did not see the new version before its rollback");
        let first = after.iter().find(|record| record.version.as_ref() == Some(&old));
        let first = first.context("the caller never saw the old version again")?;
        Ok((first.answered - sent) as f64 / 1e6)
    };
    sent.iter().map(time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sent: u64, answered: u64, version: &Version) -> Record {
        Record { sent, answered, is_success: true, version: Some(version.to_string()) }
    }

    #[test]
    fn the_time_ends_at_the_first_response_of_the_old_version() {
        let ms = 1_000_000;
        let records = [
            record(0, ms, &OLD),
            record(ms, 2 * ms, &NEW),
            record(2 * ms, 4 * ms, &NEW),
            record(4 * ms, 5 * ms, &OLD),
            record(5 * ms, 6 * ms, &OLD),
        ];
        // Sent while the third request was in progress.
        let times = times_ms(&records, &[3 * ms]).unwrap();
        assert!((times[0] - 2.0).abs() < 1e-9, "{times:?}");
        // The new version was not seen before, or the old one never again.
        assert!(times_ms(&records, &[ms + 1]).is_err());
        assert!(times_ms(&records[..3], &[3 * ms]).is_err());
    }
}
