//! Good callers beside callers that are slow, silent or disconnect at once.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::Bench;
use crate::bench::rig::{Arrivals, BLOCK_WARM_UP_SECONDS};
use crate::bench::server::Server;
use crate::bench::statistics::{Pair, median_ratio};
use crate::bench::{Bar, Figure};
use crate::run;

/// The number of silent connections.
const SILENT: usize = 5000;

/// The number of connections that send a byte at a time.
const SLOW: usize = 500;

/// The interval between those bytes.
const DRIP_INTERVAL: Duration = Duration::from_millis(500);

/// How many connections per second are opened and closed without a request.
const CHURN_RATE: f64 = 500.0;

/// Pairs of blocks, without and with the misbehaving callers.
const BLOCKS: u32 = 5;

/// How callers misbehave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Misbehaviour {
    Silent,
    SlowHeads,
    SlowBodies,
    Churn,
}

impl Misbehaviour {
    fn name(self) -> &'static str {
        match self {
            Self::Silent => "beside_5000_silent_callers",
            Self::SlowHeads => "beside_500_slow_heads",
            Self::SlowBodies => "beside_500_slow_bodies",
            Self::Churn => "beside_500_new_connections_a_second",
        }
    }
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    // Each connection takes a file descriptor.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).context("cannot raise the limit of open files")?;
    // Longer than a block, so that slow connections last for all of it.
    let config = "[limits]\nhead_seconds = 120\nbody_seconds = 120\n";
    let setup = bench.rig.setup("state-callers", config, &[&bench.short.artifact])?;
    let server = run::step("callers: start", || bench.rig.warm_server(&setup))?;
    let rate = bench.rig.half_capacity(&server, &bench.short)?;
    let seconds = bench.rig.seconds / f64::from(BLOCKS);
    let arrivals = Arrivals { rate, warm_up_seconds: BLOCK_WARM_UP_SECONDS, seconds };
    let goodput = || -> Result<f64> {
        Ok(bench.rig.arrivals(&server, &bench.short, arrivals)?.successes as f64)
    };
    let mut figures = Vec::new();
    for kind in [
        Misbehaviour::Silent,
        Misbehaviour::SlowHeads,
        Misbehaviour::SlowBodies,
        Misbehaviour::Churn,
    ] {
        let what = format!("callers: {}", kind.name());
        let (pairs, held) = run::step(&what, || -> Result<_> {
            let (mut pairs, mut held) = (Vec::new(), u64::MAX);
            for _ in 0..BLOCKS {
                let baseline = goodput()?;
                let (value, connected) = measure_beside(kind, &server, goodput)?;
                pairs.push(Pair { baseline, value });
                held = held.min(connected);
            }
            Ok((pairs, held))
        })?;
        let kept = 100.0 * median_ratio(&pairs);
        figures.push(Figure::new(kind.name(), kept, "% goodput", Some(Bar::AtLeast(95.0))));
        let connections = format!("{}_connections", kind.name());
        figures.push(Figure::new(&connections, held as f64, "", None));
    }
    server.stop()?;
    Ok(figures)
}

/// Runs `measure` beside misbehaving callers; returns its value and the number of their connections
/// at the end, or the number of connections made.
fn measure_beside(
    kind: Misbehaviour,
    server: &Server,
    measure: impl Fn() -> Result<f64>,
) -> Result<(f64, u64)> {
    let (over, ready, count) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let bad = scope.spawn(|| misbehave(kind, server.address(), (&ready, &over), &count));
        while !ready.load(Ordering::Relaxed) && !bad.is_finished() {
            thread::sleep(Duration::from_millis(10));
        }
        let measured = measure();
        over.store(true, Ordering::Relaxed);
        let outcome =
            bad.join().map_err(|_panic| anyhow::anyhow!("the misbehaving callers panicked"))?;
        outcome.context("the misbehaving callers cannot connect")?;
        Ok((measured?, count.load(Ordering::Relaxed)))
    })
}

fn misbehave(
    kind: Misbehaviour,
    address: SocketAddr,
    (ready, over): (&AtomicBool, &AtomicBool),
    count: &AtomicU64,
) -> std::io::Result<()> {
    let is_over = || over.load(Ordering::Relaxed);
    if kind == Misbehaviour::Churn {
        ready.store(true, Ordering::Relaxed);
        let start = Instant::now();
        while !is_over() {
            drop(TcpStream::connect(address)?);
            let made = count.fetch_add(1, Ordering::Relaxed) + 1;
            let due = start + Duration::from_secs_f64(made as f64 / CHURN_RATE);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        return Ok(());
    }
    let (callers, start) = match kind {
        Misbehaviour::Silent | Misbehaviour::Churn => (SILENT, ""),
        Misbehaviour::SlowHeads => (SLOW, "POST /v1/predict HTTP/1.1\r\nHost: a\r\nX-Slow: "),
        Misbehaviour::SlowBodies => (
            SLOW,
            "POST /models/toxicity/predict HTTP/1.1\r\nHost: a\r\nX-API-Key: local-demo-key\r\n\
             Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{\"text\": \"",
        ),
    };
    let mut streams = Vec::with_capacity(callers);
    for _ in 0..callers {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(start.as_bytes())?;
        streams.push(stream);
    }
    ready.store(true, Ordering::Relaxed);
    while !is_over() {
        thread::sleep(DRIP_INTERVAL);
        if kind != Misbehaviour::Silent {
            streams.retain_mut(|stream| stream.write_all(b"a").is_ok());
        }
    }
    // The connections that the server has not closed.
    let held = streams.iter().filter(|stream| is_open(stream)).count();
    count.store(held as u64, Ordering::Relaxed);
    Ok(())
}

fn is_open(stream: &TcpStream) -> bool {
    // An open connection has nothing to read.
    let nothing = |error: std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    stream.set_nonblocking(true).is_ok() && stream.peek(&mut [0]).is_err_and(nothing)
}
