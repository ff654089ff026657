//! Losses, mix-ups and leaks when one request in a hundred traps.
//!
//! Every trap discards an instance, so a leak of one, or of a page of it, grows with each. The
//! memory of the process is sampled during the load. The slope is that of a least-squares line
//! through the last four fifths of the samples. Its standard error, and the growth from the median
//! of their first tenth to that of their last tenth, show how much of it is noise.
//!
//! A new process grows until its heaps and buffers have their final size, which takes some ten
//! thousand requests and is no leak. Therefore the same load runs once before; the growth during
//! that run is reported too.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::setup::Bench;
use crate::bench::load::{self, Load, Measured};
use crate::bench::server::Server;
use crate::bench::statistics::{line_through, median};
use crate::bench::{Bar, Figure};
use crate::run;

/// The number of requests.
const REQUESTS: usize = 100_000;

/// One of so many requests traps.
const TRAP_EVERY: usize = 100;

/// More different inputs than the quarantine remembers, so that each of them runs.
const DIFFERENT_TRAPS: usize = 500;

/// Enough connections to keep every processor busy.
const CONNECTIONS: usize = 8;

/// The sampling interval.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// With ten traps in a thousand requests, this is less than a tenth of a page for each request.
const KIB_PER_1000_REQUESTS: Bar = Bar::Below(4.0);

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let setup = bench.rig.setup("state-misbehave", "", &[&bench.misbehave.artifact])?;
    let mut server = run::step("traps: start", || bench.rig.warm_server(&setup))?;
    let at_first = server.process.resident_kib()?;
    run::step("traps: until the memory has settled", || trap(bench, &server))?;
    let settled = server.process.resident_kib()?;
    let logged_at_first = count_traps(&mut server)?;
    let measure = || trap(bench, &server);
    let (measured, samples) = run::step("traps: one request in a hundred", measure)?;
    let logged = count_traps(&mut server)? - logged_at_first;
    server.stop()?;

    let traps = (REQUESTS / TRAP_EVERY) as f64;
    let answered = measured.tolerated.get("500").copied().unwrap_or(0) as f64;
    let lost = REQUESTS as f64 - measured.successes as f64 - answered;
    let exactly = |name: &str, value, wanted| {
        Figure::new(name, value, "requests", Some(Bar::Exactly(wanted)))
    };
    let mut figures = vec![
        exactly("traps_answered_500", answered, traps),
        exactly("traps_logged", logged as f64, traps),
        exactly("traps_others_right", measured.successes as f64, REQUESTS as f64 - traps),
        exactly("traps_lost_or_wrong", lost, 0.0),
        Figure::new("traps_requests_per_second", measured.requests_per_second, "1/s", None),
    ];
    figures.extend(memory(&samples)?);
    let settling = settled as f64 - at_first as f64;
    figures.push(Figure::new("traps_rss_growth_at_first", settling, "KiB", None));
    Ok(figures)
}

/// The number of traps in the log so far.
fn count_traps(server: &mut Server) -> Result<usize> {
    let is_trap = |line: &&Value| line["target"] == "fault" && line["kind"] == "trap";
    Ok(server.log.lines()?.iter().filter(is_trap).count())
}

/// The responses, and samples of thousands of requests and KiB.
fn trap(bench: &Bench<'_>, server: &Server) -> Result<(Measured, Vec<(f64, f64)>)> {
    let mut bodies = vec![json!({"action": "echo"}); TRAP_EVERY * DIFFERENT_TRAPS];
    for (index, body) in bodies.iter_mut().skip(TRAP_EVERY - 1).step_by(TRAP_EVERY).enumerate() {
        *body = json!({"action": format!("panic {index}")});
    }
    let load = Load {
        url: &server.url(&bench.misbehave.path()),
        connections: CONNECTIONS,
        warm_up_seconds: 0.0,
        seconds: 300.0,
        requests: Some(REQUESTS),
        bodies: &bodies,
        contains: "\"done\":\"echo\"",
        tolerated: &[500],
        ..Load::default()
    };
    let mut samples = Vec::new();
    let mut load = load::start(bench.rig.workspace, &load)?;
    let start = Instant::now();
    while !load.is_over()? {
        samples.push((start.elapsed().as_secs_f64(), server.process.resident_kib()? as f64));
        thread::sleep(SAMPLE_INTERVAL);
    }
    let seconds = start.elapsed().as_secs_f64();
    // The rate is nearly constant, so time is converted to requests.
    let thousands_per_second = REQUESTS as f64 / 1000.0 / seconds;
    samples.iter_mut().for_each(|(time, _)| *time *= thousands_per_second);
    Ok((load.finish()?, samples))
}

fn memory(samples: &[(f64, f64)]) -> Result<Vec<Figure>> {
    let settled = &samples[samples.len() / 5..];
    let line = line_through(settled);
    let tenth = settled.len().div_ceil(10);
    let median_of =
        |samples: &[(f64, f64)]| median(&samples.iter().map(|(_, kib)| *kib).collect::<Vec<_>>());
    let (first, last) = settled.split_at_checked(tenth).context("there are no samples")?;
    let last = last.get(last.len().saturating_sub(tenth)..).unwrap_or_default();
    let growth = median_of(last) - median_of(first);
    let unit = "KiB/1000";
    Ok(vec![
        Figure::new("traps_rss_slope", line.slope, unit, Some(KIB_PER_1000_REQUESTS)),
        Figure::new("traps_rss_slope_standard_error", line.slope_error, unit, None),
        Figure::new("traps_rss_growth", growth, "KiB", None),
        Figure::new("traps_rss", median_of(last) / 1024.0, "MiB", None),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_has_a_slope_and_settled_memory_has_none() {
        let sample = |leak: f64| {
            let kib = move |step: f64| if step < 20.0 { 50.0 * step } else { 1000.0 + leak * step };
            (0..100).map(|step| (f64::from(step), kib(f64::from(step)))).collect::<Vec<_>>()
        };
        let slope = |leak| memory(&sample(leak)).unwrap()[0].value();
        assert!(slope(0.0).abs() < 1e-9);
        assert!((slope(7.0) - 7.0).abs() < 1e-9);
    }
}
