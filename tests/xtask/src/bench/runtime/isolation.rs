//! A new instance for every request against reused instances, as a caller sees it.
//!
//! Two servers run side by side, and one caller alternates between them without a pause, so that a
//! replaced instance cannot be prepared between requests. A server that ignored the setting would
//! have a ratio of 1.00; the page faults of the probe show that the instances are different.

use anyhow::Result;

use super::setup::{Bench, value};
use crate::bench::artifacts::Model;
use crate::bench::load::{self, Load, Measured};
use crate::bench::rig::BLOCK_WARM_UP_SECONDS;
use crate::bench::server::Server;
use crate::bench::statistics::{Pair, median, median_ratio};
use crate::bench::{Bar, Figure};
use crate::run;

/// The number of pairs. Odd, so that the median is a measured value.
const PAIRS: u32 = 7;

/// Isolation from other requests should be nearly free.
const FRESH_TO_REUSE: Bar = Bar::AtMost(1.15);

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let model = bench.large.as_ref().unwrap_or(&bench.healthy);
    let name = &model.name;
    let server = |isolation: &str| {
        let config = format!("[models.{name}]\nisolation = {isolation}\n");
        let state = if isolation.contains("fresh") { "state-fresh" } else { "state-reuse" };
        let setup = bench.rig.setup(state, &config, &[&model.artifact])?;
        let start = || bench.rig.warm_server(&setup);
        run::step(&format!("isolation of {name}: start with {isolation}"), start)
    };
    let (fresh, reuse) = (server("\"fresh\"")?, server("{ reuse = {} }")?);
    let blocks = || measure_pairs(bench, model, &fresh, &reuse);
    let mut figures = run::step(&format!("isolation of {name}: over HTTP"), blocks)?;
    fresh.stop()?;
    reuse.stop()?;
    figures.extend(run::step(&format!("isolation of {name}: probe"), || probe(bench, model))?);
    Ok(figures)
}

fn measure_pairs(
    bench: &Bench<'_>,
    model: &Model,
    fresh: &Server,
    reuse: &Server,
) -> Result<Vec<Figure>> {
    let ask = |server: &Server| {
        let load = Load {
            url: &server.url(&model.path()),
            warm_up_seconds: BLOCK_WARM_UP_SECONDS,
            seconds: bench.rig.seconds / f64::from(PAIRS),
            bodies: &model.bodies,
            contains: &model.contains,
            ..Load::default()
        };
        load::run(bench.rig.workspace, &load)
    };
    let p50 = |measured: &Measured| measured.latencies.p50_ms();
    let (mut pairs, mut errors) = (Vec::new(), 0);
    for _ in 0..PAIRS {
        let (reused, new) = (ask(reuse)?, ask(fresh)?);
        errors += reused.error_count() + new.error_count();
        pairs.push(Pair { baseline: p50(&reused), value: p50(&new) });
    }
    let of = |part: fn(&Pair) -> f64| median(&pairs.iter().map(part).collect::<Vec<_>>());
    let name = |what: &str| format!("{what}_{}", model.name);
    Ok(vec![
        Figure::new(
            &name("fresh_to_reuse_p50"),
            median_ratio(&pairs),
            "ratio",
            Some(FRESH_TO_REUSE),
        ),
        Figure::new(&name("reuse_p50_ms"), of(|pair| pair.baseline), "ms", None),
        Figure::new(&name("fresh_p50_ms"), of(|pair| pair.value), "ms", None),
        Figure::new(&name("isolation_errors"), errors as f64, "requests", Some(Bar::Exactly(0.0))),
    ])
}

/// Measures the call alone, without HTTP and without creating the instance.
fn probe(bench: &Bench<'_>, model: &Model) -> Result<Vec<Figure>> {
    // The server that used this folder last has stopped.
    let state = "state-reuse";
    let report = bench.rig.probe("isolation", model, &bench.rig.folder(state))?;
    let figure = |name: &str, pointer: &str, unit| -> Result<Figure> {
        let name = format!("{name}_{}", model.name);
        Ok(Figure::new(&name, value(&report, pointer)?, unit, None))
    };
    Ok(vec![
        figure("reused_call_us", "/reused/call_us/p50", "us")?,
        figure("fresh_call_us", "/fresh/call_us/p50", "us")?,
        figure("reused_call_faults", "/reused/faults_per_call", "faults")?,
        figure("fresh_call_faults", "/fresh/faults_per_call", "faults")?,
    ])
}
