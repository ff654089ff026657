//! Hundreds of swaps of versions under half of the server's capacity.
//!
//! Blocks of load with and without swaps alternate on one server. Every request and every swap is
//! traced: no request may fail, and each response must come from a version that was live at some
//! moment between sending and receiving. A server that published before a version was ready would
//! have failures; one that drained by a timer would have them under load; one whose threads cached
//! the version would answer from a removed one; one that leaked versions would grow.
//!
//! By default the replaced version stays loaded. A second variant disables that, so that every swap
//! unloads one version and loads another.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use semver::Version;

use super::liveness::Timeline;
use super::setup::{Bench, TOXICITY, predict_path, unpinned};
use crate::bench::admin::{Admin, Mutation};
use crate::bench::artifacts::Model;
use crate::bench::load::{self, Load, Running};
use crate::bench::rig::{ARRIVAL_CONNECTIONS, BLOCK_WARM_UP_SECONDS};
use crate::bench::server::Server;
use crate::bench::statistics::{Pair, median, median_ratio, quantile};
use crate::bench::{Bar, Figure, trace};
use crate::run;

const OLD: Version = Version::new(1, 0, 0);
const MINOR: Version = Version::new(1, 1, 0);
const MAJOR: Version = Version::new(2, 0, 0);

/// A swap must hardly be noticeable.
const P99_RATIO: Bar = Bar::AtMost(1.3);

/// The memory left behind by the swaps must be within the noise.
const MEMORY_RATIO: Bar = Bar::AtMost(1.05);

/// How many more blocks than planned may be needed if swaps do not fit into their block.
const MOST_EXTRA_BLOCKS: u32 = 10;

/// The time limit for unloading versions that are not live.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// The number of memory samples and their interval.
const MEMORY_SAMPLES: usize = 5;
const MEMORY_INTERVAL: Duration = Duration::from_millis(200);

/// The same swaps in another configuration.
struct Variant {
    /// The prefix of its figures.
    name: &'static str,
    config: &'static str,
    p99_ratio: Option<Bar>,
    /// The plan without `--long`.
    short: Plan,
}

const VARIANTS: [Variant; 2] = [
    Variant { name: "swaps", config: "", p99_ratio: Some(P99_RATIO), short: SHORT },
    Variant {
        name: "swaps_unparked",
        config: "[models.toxicity]\nparked_versions = 0\n",
        // The cost of loading is measured and has no bar.
        p99_ratio: None,
        short: Plan { swaps: 200, first_memory: 52, ..SHORT },
    },
];

/// The number of swaps and requests.
#[derive(Clone, Copy)]
struct Plan {
    swaps: u32,
    swaps_per_block: u32,
    /// The number of swaps before the first measurement of memory. A multiple of four, so that the
    /// versions have been swapped in the same order as at the end.
    first_memory: u32,
    /// The minimum number of requests beside swaps.
    requests: u32,
}

/// Two hundred rounds of four swaps.
const SHORT: Plan = Plan { swaps: 800, swaps_per_block: 10, first_memory: 100, requests: 0 };
const LONG: Plan =
    Plan { swaps: 1000, swaps_per_block: 20, first_memory: 100, requests: 1_000_000 };

impl Plan {
    fn blocks(&self) -> u32 {
        self.swaps.div_ceil(self.swaps_per_block)
    }
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let models = run::step("swaps: pack", || bench.toxicity(&[OLD, MINOR, MAJOR]))?;
    let mut figures = Vec::new();
    for variant in VARIANTS {
        let plan = if bench.is_long { LONG } else { variant.short };
        let server = bench.start(variant.name, variant.config, &models)?;
        let rate = bench.rig.half_capacity(&server, model(&models)?)?;
        let what = format!("{}: {} swaps at {rate} requests/s", variant.name, plan.swaps);
        let mut work = Work::new(bench, &server, model(&models)?, rate);
        run::step(&what, || work.perform(&plan))?;
        figures.extend(work.figures(&variant, &plan));
        server.stop()?;
    }
    Ok(figures)
}

fn model(models: &[Model]) -> Result<&Model> {
    models.first().context("nothing was packed")
}

/// Swaps versions and records when.
struct Swapper {
    admin: Admin,
    timeline: Timeline,
    milliseconds: Vec<f64>,
}

impl Swapper {
    fn done(&self) -> u32 {
        u32::try_from(self.milliseconds.len()).unwrap_or(u32::MAX)
    }

    /// Cycles through: promote a major version, roll back, promote a minor version, roll back to
    /// the first version by name.
    fn swap(&mut self) -> Result<()> {
        let (mutation, live) = match self.done() % 4 {
            0 => (Mutation::Promote(MAJOR), MAJOR),
            1 => (Mutation::Rollback(None), OLD),
            2 => (Mutation::Promote(MINOR), MINOR),
            _ => (Mutation::Rollback(Some(OLD)), OLD),
        };
        let sent = trace::now_ns();
        self.admin.make(TOXICITY, &mutation)?;
        let answered = trace::now_ns();
        self.timeline.swap(&live, sent, answered);
        self.milliseconds.push((answered - sent) as f64 / 1e6);
        Ok(())
    }

    /// Makes `count` swaps spread over `time`, or fewer if the load ends first.
    fn spread(&mut self, count: u32, time: Duration, load: &mut Running) -> Result<()> {
        let start = Instant::now();
        for number in 0..count {
            // Each swap is in the middle of its part of the time.
            let due = time.mul_f64((f64::from(number) + 0.5) / f64::from(count));
            thread::sleep(due.saturating_sub(start.elapsed()));
            if load.is_over()? {
                break;
            }
            self.swap()?;
        }
        Ok(())
    }
}

/// The measurement in one configuration.
struct Work<'a> {
    bench: &'a Bench<'a>,
    server: &'a Server,
    model: &'a Model,
    rate: u32,
    swapper: Swapper,
    p99_ms: Vec<Pair>,
    /// All requests beside swaps.
    requests: u64,
    failed: u64,
    /// Responses of versions that were not live.
    stale: u64,
    /// Resident memory in KiB, first and last.
    memory: Vec<f64>,
}

impl<'a> Work<'a> {
    fn new(bench: &'a Bench<'a>, server: &'a Server, model: &'a Model, rate: u32) -> Self {
        let (admin, timeline) = (server.admin(), Timeline::new(&OLD));
        let swapper = Swapper { admin, timeline, milliseconds: Vec::new() };
        let (p99_ms, memory) = (Vec::new(), Vec::new());
        Self {
            bench,
            server,
            model,
            rate,
            swapper,
            p99_ms,
            requests: 0,
            failed: 0,
            stale: 0,
            memory,
        }
    }

    fn perform(&mut self, plan: &Plan) -> Result<()> {
        let needed = f64::from(plan.requests) / f64::from(plan.blocks() * self.rate);
        let seconds = (self.bench.rig.seconds / 5.0).max(needed);
        let mut blocks = 0;
        while self.swapper.done() < plan.swaps || self.requests < u64::from(plan.requests) {
            ensure!(blocks < MOST_EXTRA_BLOCKS * plan.blocks(), "the server swaps too slowly");
            blocks += 1;
            let is_first = self.memory.is_empty();
            let goal = if is_first { plan.first_memory } else { plan.swaps };
            let swaps = plan.swaps_per_block.min(goal - self.swapper.done());
            let baseline = self.block(0, seconds)?;
            let value = self.block(swaps, seconds)?;
            self.p99_ms.push(Pair { baseline, value });
            if is_first && self.swapper.done() == plan.first_memory {
                self.measure_memory()?;
            }
        }
        self.measure_memory()
    }

    /// Runs a block of load with this many swaps; returns its 99th percentile in milliseconds.
    fn block(&mut self, swaps: u32, seconds: f64) -> Result<f64> {
        let (url, file) =
            (self.server.url(&predict_path(TOXICITY)), self.bench.rig.folder("trace"));
        let load = Load {
            connections: ARRIVAL_CONNECTIONS,
            rate: Some(self.rate),
            warm_up_seconds: BLOCK_WARM_UP_SECONDS,
            seconds,
            trace: Some(&file),
            ..unpinned(&url, self.model)
        };
        let mut running = load::start(self.bench.rig.workspace, &load)?;
        let time = Duration::from_secs_f64(BLOCK_WARM_UP_SECONDS + seconds);
        self.swapper.spread(swaps, time, &mut running)?;
        let measured = running.finish()?;
        // Requests that were never sent are not in the trace; all others are, including the
        // warm-up.
        self.failed += measured.errors.get("unsent").copied().unwrap_or(0);
        let requests = self.check(&file)?;
        if swaps > 0 {
            self.requests += requests;
        }
        Ok(measured.latencies.p99_ms())
    }

    /// Counts the wrong responses in a trace; returns the number of its requests.
    fn check(&mut self, file: &Path) -> Result<u64> {
        let records = trace::read(file)?;
        let wrong = records.iter().filter(|record| !self.swapper.timeline.allows(record));
        self.stale += wrong.count() as u64;
        self.failed += records.iter().filter(|record| !record.is_success).count() as u64;
        Ok(records.len() as u64)
    }

    /// Measures the server's memory when no version is being loaded or unloaded.
    fn measure_memory(&mut self) -> Result<()> {
        let start = Instant::now();
        while is_changing(&self.swapper.admin)? {
            ensure!(start.elapsed() < SETTLE_LIMIT, "a version is still being loaded or unloaded");
            thread::sleep(MEMORY_INTERVAL);
        }
        let mut samples = Vec::new();
        for _ in 0..MEMORY_SAMPLES {
            thread::sleep(MEMORY_INTERVAL);
            samples.push(self.server.process.resident_kib()? as f64);
        }
        self.memory.push(median(&samples));
        Ok(())
    }

    fn figures(&self, variant: &Variant, plan: &Plan) -> Vec<Figure> {
        let none = Some(Bar::Exactly(0.0));
        let figure = |name: &str, value: f64, unit, bar| {
            Figure::new(&format!("{}_{name}", variant.name), value, unit, bar)
        };
        let ms = |part: fn(&Pair) -> f64| median(&self.p99_ms.iter().map(part).collect::<Vec<_>>());
        let (first, last) = (self.memory.first(), self.memory.last());
        let growth = last.zip(first).map_or(f64::INFINITY, |(last, first)| last / first);
        let memory = format!("memory_after_{}_to_{}", plan.swaps, plan.first_memory);
        let enough = (plan.requests > 0).then_some(Bar::Above(f64::from(plan.requests) - 1.0));
        let swaps = &self.swapper.milliseconds;
        vec![
            figure("failed_requests", self.failed as f64, "requests", none),
            figure("answers_of_versions_not_live", self.stale as f64, "answers", none),
            figure("p99_ratio", median_ratio(&self.p99_ms), "ratio", variant.p99_ratio),
            figure(&memory, growth, "ratio", Some(MEMORY_RATIO)),
            figure("memory_mib", last.map_or(0.0, |kib| kib / 1024.0), "MiB", None),
            figure("none_p99_ms", ms(|pair| pair.baseline), "ms", None),
            figure("p99_ms", ms(|pair| pair.value), "ms", None),
            figure("count", swaps.len() as f64, "swaps", None),
            figure("requests", self.requests as f64, "requests", enough),
            figure("rate", f64::from(self.rate), "1/s", None),
            figure("command_p50_ms", quantile(swaps, 0.5), "ms", None),
            figure("command_p99_ms", quantile(swaps, 0.99), "ms", None),
        ]
    }
}

/// Whether a version is being loaded or unloaded.
fn is_changing(admin: &Admin) -> Result<bool> {
    let model = admin.model(TOXICITY)?.context("the model is gone")?;
    let versions = model["versions"].as_array().context("the model has no versions")?;
    Ok(versions
        .iter()
        .any(|version| version["state"] == "loading" || version["state"] == "draining"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_measured_after_whole_rounds() {
        for plan in VARIANTS.iter().map(|variant| variant.short).chain([LONG]) {
            assert_eq!((plan.first_memory % 4, plan.swaps % 4), (0, 0));
            assert!(plan.first_memory < plan.swaps);
        }
    }
}
