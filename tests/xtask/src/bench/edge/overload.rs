//! More requests than the server has capacity for, from an open loop: up to ten times as many, and
//! then few again.

use anyhow::{Context as _, Result};

use super::Bench;
use crate::bench::load::{self, Latencies, Load, Measured};
use crate::bench::server::Server;
use crate::bench::statistics::{Pair, median_ratio};
use crate::bench::trace::{self, Record};
use crate::bench::{Bar, Figure};
use crate::run;

/// The offered load as multiples of the capacity.
const FACTORS: [f64; 5] = [0.5, 1.0, 2.0, 5.0, 10.0];

/// Enough connections that no request waits for one: admitted requests take less than a second, and
/// others are rejected at once.
const CONNECTIONS: usize = 1000;

/// The server's default deadline of a request in milliseconds.
const DEADLINE_MS: f64 = 2000.0;

/// Statuses that are expected under overload.
const REJECTED: [u16; 1] = [503];

/// How many pairs of peak and flood are measured.
const PAIRS: u32 = 3;

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let setup = bench.rig.setup("state-overload", "", &[&bench.long.artifact])?;
    let server = run::step("overload: start", || bench.rig.warm_server(&setup))?;
    let capacity = 2.0 * f64::from(bench.rig.half_capacity(&server, &bench.long)?);
    let mut figures = vec![Figure::new("overload_capacity", capacity, "requests/s", None)];
    let mut all = All::default();
    let mut calm_p99_ms = 0.0;
    for factor in FACTORS {
        let what = format!("overload: {factor} times the capacity");
        let measured = run::step(&what, || arrive(bench, &server, capacity * factor, None))?;
        let name = |what: &str| format!("overload_{factor}x_{what}");
        figures.push(Figure::new(&name("goodput"), goodput(&measured), "answers/s", None));
        all.add(&measured);
        if factor == FACTORS[0] {
            calm_p99_ms = measured.latencies.p99_ms();
        }
    }
    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        let peak = run::step("overload: peak", || arrive(bench, &server, capacity * 1.2, None))?;
        let flood = run::step("overload: flood", || arrive(bench, &server, capacity * 10.0, None))?;
        all.add(&peak);
        all.add(&flood);
        pairs.push(Pair { baseline: goodput(&peak), value: goodput(&flood) });
    }
    let kept = 100.0 * median_ratio(&pairs);
    figures.push(Figure::new(
        "overload_goodput_at_10x",
        kept,
        "% of peak",
        Some(Bar::AtLeast(85.0)),
    ));
    let deadline = Some(Bar::Below(DEADLINE_MS));
    figures.push(Figure::new("overload_accepted_p99", all.accepted_p99_ms, "ms", deadline));
    let quick = Some(Bar::Below(10.0));
    figures.push(Figure::new("overload_rejected_p99", all.rejected.p99_ms(), "ms", quick));
    let none = Some(Bar::Exactly(0.0));
    figures.push(Figure::new("overload_failed", all.failed, "requests", none));
    let recovery =
        run::step("overload: recovery", || recover(bench, &server, capacity, calm_p99_ms))?;
    figures.push(Figure::new("overload_recovery", recovery, "s", Some(Bar::AtMost(5.0))));
    server.stop()?;
    Ok(figures)
}

/// The totals of all blocks.
#[derive(Default)]
struct All {
    /// The worst block.
    accepted_p99_ms: f64,
    /// Merged, because blocks near the capacity have few rejections.
    rejected: Latencies,
    failed: f64,
}

impl All {
    fn add(&mut self, measured: &Measured) {
        self.accepted_p99_ms = self.accepted_p99_ms.max(measured.latencies.p99_ms());
        self.rejected.add(&measured.tolerated_latencies);
        self.failed += measured.error_count() as f64;
    }
}

/// Successes per second. Late responses have another status and do not count.
fn goodput(measured: &Measured) -> f64 {
    measured.requests_per_second
}

fn arrive(
    bench: &Bench<'_>,
    server: &Server,
    rate: f64,
    trace: Option<&std::path::Path>,
) -> Result<Measured> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
    let rate = rate.max(1.0) as u32;
    let load = Load {
        url: &server.url(&bench.long.path()),
        connections: CONNECTIONS,
        rate: Some(rate),
        // The recovery is measured from its first moment.
        warm_up_seconds: if trace.is_some() { 0.0 } else { 1.0 },
        seconds: bench.rig.seconds,
        bodies: &bench.long.bodies,
        contains: &bench.long.contains,
        tolerated: &REJECTED,
        trace,
        ..Load::default()
    };
    load::run(bench.rig.workspace, &load)
}

/// The time in seconds from the end of a flood until requests are neither rejected, failed nor
/// slow.
fn recover(bench: &Bench<'_>, server: &Server, capacity: f64, calm_p99_ms: f64) -> Result<f64> {
    arrive(bench, server, capacity * 10.0, None)?;
    let file = bench.rig.folder("recovery.trace");
    let ended = trace::now_ns();
    arrive(bench, server, capacity / 2.0, Some(&file))?;
    let records = trace::read(&file)?;
    records.first().context("there were no requests after the flood")?;
    // One request in a hundred exceeds the calm p99.
    let slow_ns = 2.0 * calm_p99_ms.max(10.0) * 1e6;
    let is_bad =
        |record: &&Record| !record.is_success || (record.answered - record.sent) as f64 > slow_ns;
    // One such request per second is normal.
    let bad: Vec<u64> = records.iter().filter(is_bad).map(|record| record.answered).collect();
    let last = bad.windows(3).rfind(|near| near[2] - near[0] < 1_000_000_000);
    Ok(last.map_or(0.0, |near| near[2].saturating_sub(ended) as f64 / 1e9))
}
