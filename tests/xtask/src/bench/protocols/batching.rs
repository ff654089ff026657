//! Concurrent callers with batching enabled against disabled, alternating between two running
//! servers.

use anyhow::Result;

use super::Bench;
use crate::bench::artifacts::Model;
use crate::bench::load::{self, Latencies, Load};
use crate::bench::rig::BLOCK_WARM_UP_SECONDS;
use crate::bench::server::Server;
use crate::bench::statistics::{Pair, median_ratio};
use crate::bench::{Bar, Figure};
use crate::run;

/// The number of concurrent callers.
const CALLERS: usize = 32;

/// Pairs of blocks, without and with batching.
const BLOCKS: u32 = 5;

/// The least throughput with batching where it does not help, in percent of that without.
const LEAST_KEPT: f64 = 95.0;

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let artifacts = [&*bench.short.artifact, &*bench.long.artifact];
    let off = "[models.toxicity.batching]\nenabled = false\n\
               [models.text-direction.batching]\nenabled = false\n";
    let start = |state, config| {
        let setup = bench.rig.setup(state, config, &artifacts)?;
        run::step(&format!("batching: start of {state}"), || bench.rig.warm_server(&setup))
    };
    let (off, on) = (start("state-off", off)?, start("state-on", "")?);
    let mut figures = Vec::new();
    for (name, model) in [("toxicity", &bench.short), ("text_direction", &bench.long)] {
        figures.extend(of_model(bench, name, model, (&off, &on))?);
    }
    off.stop()?;
    on.stop()?;
    Ok(figures)
}

fn of_model(
    bench: &Bench<'_>,
    name: &str,
    model: &Model,
    (off, on): (&Server, &Server),
) -> Result<Vec<Figure>> {
    let mut pairs = Vec::new();
    let mut latencies = [Latencies::default(), Latencies::default()];
    run::step(&format!("batching: {name}"), || -> Result<_> {
        for _ in 0..BLOCKS {
            let mut rates = [0.0; 2];
            for (place, server) in [off, on].into_iter().enumerate() {
                let load = Load {
                    url: &server.url(&model.path()),
                    connections: CALLERS,
                    warm_up_seconds: BLOCK_WARM_UP_SECONDS,
                    seconds: bench.rig.seconds / f64::from(BLOCKS),
                    bodies: &model.bodies,
                    contains: &model.contains,
                    ..Load::default()
                };
                let measured = load::run_without_errors(bench.rig.workspace, &load)?;
                rates[place] = measured.requests_per_second;
                latencies[place].add(&measured.latencies);
            }
            pairs.push(Pair { baseline: rates[0], value: rates[1] });
        }
        Ok(())
    })?;
    let mean = |of: fn(&Pair) -> f64| pairs.iter().map(of).sum::<f64>() / pairs.len() as f64;
    let figure = |what: &str, value, unit, bar| {
        Figure::new(&format!("batching_{name}_{what}"), value, unit, bar)
    };
    let kept = 100.0 * median_ratio(&pairs);
    Ok(vec![
        figure("off_rate", mean(|pair| pair.baseline), "/s", None),
        figure("on_rate", mean(|pair| pair.value), "/s", None),
        figure("rate_ratio", kept, "% of off", Some(Bar::AtLeast(LEAST_KEPT))),
        figure("off_p99", latencies[0].p99_ms(), "ms", None),
        figure("on_p99", latencies[1].p99_ms(), "ms", None),
    ])
}
