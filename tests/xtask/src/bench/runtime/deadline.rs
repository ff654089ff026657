//! When a request to an endless guest is answered, and when the guest stops.
//!
//! A timer could answer while the guest keeps running, so the server's CPU time is measured too:
//! during the calls it is that of a running guest; in the second after the last response it is that
//! of an idle server.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::setup::Bench;
use crate::bench::load::{self, Load, Measured};
use crate::bench::server::Server;
use crate::bench::{Bar, Figure};
use crate::run;

/// The number of sequential calls.
const CALLS: usize = 60;

/// The timeout of each call.
const TIMEOUT_MS: u32 = 100;

/// A response must not be much later than the timeout.
const ANSWERED_MS: Bar = Bar::AtMost(130.0);

/// Percent of one core. The kernel counts hundredths of a second, so this is five ticks.
const LEFT_RUNNING_PERCENT: Bar = Bar::Below(5.0);

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let setup = bench.rig.setup("state-misbehave", "", &[&bench.misbehave.artifact])?;
    let server = run::step("deadline: start", || bench.rig.warm_server(&setup))?;
    let figures = run::step("deadline: calls that spin", || spin(bench, &server))?;
    server.stop()?;
    Ok(figures)
}

fn spin(bench: &Bench<'_>, server: &Server) -> Result<Vec<Figure>> {
    let timeout = format!("x-request-timeout-ms: {TIMEOUT_MS}");
    let load = Load {
        url: &server.url(&bench.misbehave.path()),
        requests: Some(CALLS),
        warm_up_seconds: 0.0,
        seconds: 60.0,
        bodies: &[json!({"action": "spin"})],
        contains: "deadline_exceeded",
        status: 504,
        headers: &[&timeout],
        ..Load::default()
    };
    let (cpu_before, start) = (server.process.cpu_seconds()?, Instant::now());
    let measured = load::run(bench.rig.workspace, &load)?;
    let (cpu_last, last) = (server.process.cpu_seconds()?, Instant::now());
    thread::sleep(SECOND);
    let cpu_after = server.process.cpu_seconds()?;

    let percent = |cpu: f64, time: Duration| cpu / time.as_secs_f64() * 100.0;
    let during = percent(cpu_last - cpu_before, last - start);
    let after = percent(cpu_after - cpu_last, last.elapsed());
    let missing = (CALLS as u64).saturating_sub(measured.successes);
    let Measured { latencies, .. } = measured;
    let none = Some(Bar::Exactly(0.0));
    Ok(vec![
        Figure::new("deadline_100_ms_answered_max", latencies.max_ms(), "ms", Some(ANSWERED_MS)),
        Figure::new("deadline_100_ms_answered_p50", latencies.p50_ms(), "ms", None),
        Figure::new("deadline_errors", missing as f64, "requests", none),
        Figure::new("deadline_cpu_during_calls", during, "% of a core", None),
        Figure::new("deadline_cpu_after", after, "% of a core", Some(LEFT_RUNNING_PERCENT)),
    ])
}
