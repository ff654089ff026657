//! This server against FastAPI and mosec with onnxruntime, and axum with tract: throughput and
//! latency of closed loops, latency of an open loop at half of each server's capacity, memory, and
//! the time of a start.
//!
//! All servers run at the same time, and one of them has load. The load generator shares the
//! processors with it.

use std::collections::BTreeMap;

use anyhow::Result;

use super::peers::{CaseRequest, JSON_MODEL, Peer, Requests};
use super::setup::{Bench, install};
use crate::bench::load::{self, Latencies, Load, Measured};
use crate::bench::rig::{ARRIVAL_CONNECTIONS, BLOCK_WARM_UP_SECONDS};
use crate::bench::statistics::{Pair, median, median_ratio};
use crate::bench::{Bar, Figure};
use crate::run;

/// The cases that are served: the shortest and the longest of the graphs that a request may take, a
/// text encoder, and the model with the least arithmetic.
const CASES: [&str; 4] = ["cls", "efficientnet-lite0", "minilm-1x16", JSON_MODEL];

/// The callers of closed loops.
const CALLERS: [usize; 3] = [1, 8, 32];

/// The callers whose throughput is a server's capacity.
const CAPACITY_CALLERS: usize = 8;

/// The number of rounds. Odd, so that the medians are measured values.
const ROUNDS: u32 = 5;

/// The seed of the open loop's arrivals, the same for all servers.
const SEED: u64 = 14;

/// The bars of this server's throughput in relation to that of another one.
const RATIOS: [(&str, &str, usize, f64); 4] = [
    ("cls", "mosec_2", 8, 1.2),
    ("cls", "fastapi_2", 8, 1.2),
    (JSON_MODEL, "axum", 8, 0.85),
    (JSON_MODEL, "axum", 32, 0.85),
];

/// The throughput of many callers in relation to that of a few.
const MANY_TO_FEW: Bar = Bar::AtLeast(1.0);

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for case in CASES {
        let request = CaseRequest::read(&bench.models, case)?;
        let start = || start(bench, case, &request);
        let peers = run::step(&format!("serving of {case}: starts"), start)?;
        let closed =
            run::step(&format!("serving of {case}: closed loops"), || closed(bench, &peers));
        let closed = closed?;
        figures.extend(closed.figures(case));
        let open = || open(bench, case, &peers, &closed);
        figures.extend(run::step(&format!("serving of {case}: open loops"), open)?);
        for peer in &peers {
            let figure = |what: &str, value, unit| {
                Figure::new(&name(case, peer.name, what), value, unit, None)
            };
            figures.push(figure("start_ms", peer.start.as_secs_f64() * 1e3, "ms"));
            figures.push(figure("memory_mib", peer.memory_mib()?, "MiB"));
        }
    }
    Ok(figures)
}

fn name(case: &str, server: &str, what: &str) -> String {
    format!("serving_{case}_{server}_{what}")
}

fn start(bench: &Bench<'_>, case: &str, request: &CaseRequest) -> Result<Vec<Peer>> {
    let requirements = bench.rig.workspace.performance().join("servers.txt");
    let python = install(bench.rig.workspace, "performance-servers", &requirements)?;
    let mut peers = vec![
        Peer::guesthouse(bench, request)?,
        Peer::axum(bench, case, request)?,
        Peer::fastapi(bench, &python, (case, request), 1)?,
        Peer::fastapi(bench, &python, (case, request), 2)?,
    ];
    if request.model != JSON_MODEL {
        peers.push(Peer::mosec(bench, &python, (case, request))?);
    }
    Ok(peers)
}

/// The blocks of closed loops, by the requests' name and the number of callers.
#[derive(Default)]
struct Closed(BTreeMap<(&'static str, usize), Vec<Measured>>);

fn closed(bench: &Bench<'_>, peers: &[Peer]) -> Result<Closed> {
    let mut closed = Closed::default();
    let kinds: Vec<_> = peers.iter().flat_map(|peer| &peer.requests).collect();
    for callers in CALLERS {
        for round in 0..ROUNDS as usize {
            for turn in 0..kinds.len() {
                let requests = kinds[(round + turn) % kinds.len()];
                let measured =
                    load(bench, requests, Load { connections: callers, ..Load::default() })?;
                closed.0.entry((requests.name, callers)).or_default().push(measured);
            }
        }
    }
    Ok(closed)
}

/// Runs one block of a load.
fn load(bench: &Bench<'_>, requests: &Requests, load: Load<'_>) -> Result<Measured> {
    let headers: Vec<_> = requests.headers.iter().map(String::as_str).collect();
    let load = Load {
        url: &requests.url,
        body: Some(&requests.body),
        headers: &headers,
        grpc: requests.grpc,
        warm_up_seconds: BLOCK_WARM_UP_SECONDS,
        seconds: bench.rig.seconds / f64::from(ROUNDS),
        ..load
    };
    load::run_without_errors(bench.rig.workspace, &load)
}

impl Closed {
    fn rates(&self, server: &'static str, callers: usize) -> Vec<f64> {
        let blocks = self.0.get(&(server, callers)).into_iter().flatten();
        blocks.map(|block| block.requests_per_second).collect()
    }

    /// The ratio of two throughputs in the same rounds.
    fn ratio(&self, one: (&'static str, usize), other: (&'static str, usize)) -> f64 {
        let (values, baselines) = (self.rates(one.0, one.1), self.rates(other.0, other.1));
        let pairs = values.into_iter().zip(baselines);
        let pairs: Vec<_> = pairs.map(|(value, baseline)| Pair { baseline, value }).collect();
        median_ratio(&pairs)
    }

    fn figures(&self, case: &str) -> Vec<Figure> {
        let mut figures = Vec::new();
        for ((server, callers), blocks) in &self.0 {
            let mut latencies = Latencies::default();
            blocks.iter().for_each(|block| latencies.add(&block.latencies));
            let figure = |what: &str, value, unit| {
                Figure::new(&name(case, server, &format!("{callers}_{what}")), value, unit, None)
            };
            figures.push(figure("per_second", median(&self.rates(server, *callers)), "requests/s"));
            figures.push(figure("p50_ms", latencies.p50_ms(), "ms"));
            figures.push(figure("p99_ms", latencies.p99_ms(), "ms"));
            if *server != "guesthouse" {
                let bars = RATIOS.iter().find(|it| (it.0, it.1, it.2) == (case, server, *callers));
                let bar = bars.map(|(.., bar)| Bar::AtLeast(*bar));
                let ratio = self.ratio(("guesthouse", *callers), (server, *callers));
                let name = name(case, "guesthouse", &format!("to_{server}_{callers}"));
                figures.push(Figure::new(&name, ratio, "ratio", bar));
            }
        }
        let ratio = self.ratio(("guesthouse", 32), ("guesthouse", CAPACITY_CALLERS));
        let bar = (case == JSON_MODEL).then_some(MANY_TO_FEW);
        figures.push(Figure::new(&name(case, "guesthouse", "32_to_8"), ratio, "ratio", bar));
        figures
    }
}

/// Random arrivals at half of the capacity that each server has shown.
fn open(bench: &Bench<'_>, case: &str, peers: &[Peer], closed: &Closed) -> Result<Vec<Figure>> {
    let kinds: Vec<_> = peers.iter().flat_map(|peer| &peer.requests).collect();
    let mut latencies: BTreeMap<&str, Latencies> = BTreeMap::new();
    for round in 0..ROUNDS {
        for requests in &kinds {
            let measured = load(
                bench,
                requests,
                Load {
                    connections: ARRIVAL_CONNECTIONS,
                    rate: Some(half(closed, requests.name)),
                    poisson: Some(SEED + u64::from(round)),
                    ..Load::default()
                },
            )?;
            latencies.entry(requests.name).or_default().add(&measured.latencies);
        }
    }
    let mut figures = Vec::new();
    for requests in kinds {
        let figure = |what: &str, value, unit| {
            Figure::new(&name(case, requests.name, &format!("open_{what}")), value, unit, None)
        };
        let latencies = &latencies[requests.name];
        let rate = f64::from(half(closed, requests.name));
        figures.push(figure("per_second", rate, "requests/s"));
        figures.push(figure("p50_ms", latencies.p50_ms(), "ms"));
        figures.push(figure("p99_ms", latencies.p99_ms(), "ms"));
    }
    Ok(figures)
}

fn half(closed: &Closed, server: &'static str) -> u32 {
    let capacity = median(&closed.rates(server, CAPACITY_CALLERS));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
    let half = (capacity / 2.0).max(1.0) as u32;
    half
}
