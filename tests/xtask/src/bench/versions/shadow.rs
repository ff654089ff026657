//! The effect of a shadow on callers, and dropped comparisons.
//!
//! At a low rate there are free cores, and a shadow must have no effect although every request is
//! computed twice, which is counted. A server that waited for both would double the latency. With
//! every core busy, comparisons must be dropped rather than wait, and the drops must be counted.

use anyhow::{Context, Result, ensure};
use semver::Version;

use super::setup::{Bench, TOXICITY, predict_path, unpinned};
use crate::bench::admin::{Mutation, WHOLE};
use crate::bench::artifacts::Model;
use crate::bench::load::{self, Load, Measured};
use crate::bench::rig::{ARRIVAL_CONNECTIONS, BLOCK_WARM_UP_SECONDS, CAPACITY_CONNECTIONS};
use crate::bench::server::Server;
use crate::bench::statistics::{Pair, median, median_ratio};
use crate::bench::{Bar, Figure};
use crate::run;

const STABLE: Version = Version::new(1, 0, 0);
const CANDIDATE: Version = Version::new(2, 0, 0);

/// The number of pairs. Odd, so that the median is a measured value.
const LOW_PAIRS: u32 = 9;
const BUSY_PAIRS: u32 = 3;

/// The fraction of half of the capacity that leaves free cores: 15 % of the capacity.
const LOW_PART_OF_HALF: f64 = 0.3;

/// The metric of comparisons.
const COMPARISONS: &str = "guesthouse_shadow_comparisons_total";

/// A shadow must have no effect when there are free cores.
const P99_RATIO: Bar = Bar::AtMost(1.1);

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let models = run::step("shadow: pack", || bench.toxicity(&[STABLE, CANDIDATE]))?;
    let model = models.first().context("nothing was packed")?;
    let server = bench.start("shadow", "", &models)?;
    let half = run::step("shadow: capacity", || bench.rig.half_capacity(&server, model))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
    let rate = (f64::from(half) * LOW_PART_OF_HALF).max(1.0) as u32;
    let mut work = Work { bench, server: &server, model, errors: 0 };
    let what = format!("shadow: {rate} requests/s");
    let (mut figures, pairs) = (Vec::new(), LOW_PAIRS);
    figures.extend(run::step(&what, || work.low(rate, pairs))?);
    figures.extend(run::step("shadow: all cores busy", || work.busy(BUSY_PAIRS))?);
    let none = Some(Bar::Exactly(0.0));
    figures.push(Figure::new("shadow_failed_requests", work.errors as f64, "requests", none));
    server.stop()?;
    Ok(figures)
}

struct Work<'a> {
    bench: &'a Bench<'a>,
    server: &'a Server,
    model: &'a Model,
    errors: u64,
}

impl Work<'_> {
    /// An open loop with free cores.
    fn low(&mut self, rate: u32, pairs: u32) -> Result<Vec<Figure>> {
        let seconds = self.bench.rig.seconds / 2.0;
        let load = Load {
            connections: ARRIVAL_CONNECTIONS,
            rate: Some(rate),
            warm_up_seconds: BLOCK_WARM_UP_SECONDS,
            seconds,
            ..Load::default()
        };
        let (pairs, counts) = self.pairs(load, pairs, |measured| measured.latencies.p99_ms())?;
        let ms = |part: fn(&Pair) -> f64| median(&pairs.iter().map(part).collect::<Vec<_>>());
        let (some, comparisons) = (Some(Bar::Above(0.0)), "comparisons");
        Ok(vec![
            Figure::new("shadow_p99_ratio", median_ratio(&pairs), "ratio", Some(P99_RATIO)),
            Figure::new("shadow_none_p99_ms", ms(|pair| pair.baseline), "ms", None),
            Figure::new("shadow_p99_ms", ms(|pair| pair.value), "ms", None),
            Figure::new("shadow_rate", f64::from(rate), "1/s", None),
            Figure::new("shadow_compared", counts.all - counts.dropped, comparisons, some),
            Figure::new("shadow_dropped", counts.dropped, comparisons, None),
        ])
    }

    /// A closed loop at full capacity.
    fn busy(&mut self, pairs: u32) -> Result<Vec<Figure>> {
        let load = Load {
            connections: CAPACITY_CONNECTIONS,
            warm_up_seconds: BLOCK_WARM_UP_SECONDS,
            seconds: self.bench.rig.seconds / f64::from(pairs),
            ..Load::default()
        };
        let (pairs, counts) = self.pairs(load, pairs, |measured| measured.requests_per_second)?;
        let rate = |part: fn(&Pair) -> f64| median(&pairs.iter().map(part).collect::<Vec<_>>());
        let (some, comparisons) = (Some(Bar::Above(0.0)), "comparisons");
        Ok(vec![
            Figure::new("shadow_busy_dropped", counts.dropped, comparisons, some),
            Figure::new("shadow_busy_compared", counts.all - counts.dropped, comparisons, None),
            Figure::new("shadow_busy_none_rate", rate(|pair| pair.baseline), "1/s", None),
            Figure::new("shadow_busy_rate", rate(|pair| pair.value), "1/s", None),
            Figure::new("shadow_busy_rate_ratio", median_ratio(&pairs), "ratio", None),
        ])
    }

    /// Blocks without and with a shadow, and the comparisons of the latter.
    fn pairs(
        &mut self,
        load: Load<'_>,
        count: u32,
        value: fn(&Measured) -> f64,
    ) -> Result<(Vec<Pair>, Comparisons)> {
        let url = self.server.url(&predict_path(TOXICITY));
        let asked = unpinned(&url, self.model);
        let load = Load { url: asked.url, bodies: asked.bodies, contains: asked.contains, ..load };
        let (admin, workspace) = (self.server.admin(), self.bench.rig.workspace);
        let shadow = |shadow| admin.make(TOXICITY, &Mutation::Shadow(shadow));
        let (mut pairs, mut counts) = (Vec::new(), Comparisons::default());
        for _ in 0..count {
            let baseline = load::run(workspace, &load)?;
            shadow(Some((CANDIDATE, WHOLE)))?;
            let before = comparisons(self.server)?;
            let beside = load::run(workspace, &load)?;
            let after = comparisons(self.server)?;
            shadow(None)?;
            counts.all += after.all - before.all;
            counts.dropped += after.dropped - before.dropped;
            self.errors += baseline.error_count() + beside.error_count();
            pairs.push(Pair { baseline: value(&baseline), value: value(&beside) });
        }
        Ok((pairs, counts))
    }
}

/// Counts of comparisons.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Comparisons {
    all: f64,
    dropped: f64,
}

fn comparisons(server: &Server) -> Result<Comparisons> {
    let answer = server.client().get("/metrics")?;
    ensure!(answer.is_success(), "no metrics: {}", answer.status);
    parse_comparisons(&answer.text)
}

/// The counts of a scrape. A result that never happened may be missing.
fn parse_comparisons(metrics: &str) -> Result<Comparisons> {
    let mut counts = Comparisons::default();
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix(COMPARISONS).and_then(|rest| rest.strip_prefix('{'))
        else {
            continue;
        };
        let wrong = || format!("the metrics have an invalid line `{line}`");
        let (labels, value) = rest.split_once("} ").with_context(wrong)?;
        // A timestamp may follow.
        let value = value.split(' ').next().unwrap_or_default();
        let value: f64 = value.parse().with_context(wrong)?;
        counts.all += value;
        if labels.split(',').any(|label| label == "result=\"dropped\"") {
            counts.dropped += value;
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_are_parsed_from_metrics() {
        let metrics = "# TYPE guesthouse_shadow_comparisons counter\n\
            guesthouse_shadow_comparisons_total{model=\"a\",result=\"equal\"} 7\n\
            guesthouse_shadow_comparisons_total{model=\"a\",result=\"dropped\"} 3 12.5\n\
            guesthouse_requests_total{result=\"dropped\"} 9\n";
        let counts = parse_comparisons(metrics).unwrap();
        assert_eq!(counts, Comparisons { all: 10.0, dropped: 3.0 });
        assert_eq!(parse_comparisons("").unwrap(), Comparisons::default());
        assert!(parse_comparisons("guesthouse_shadow_comparisons_total{} many").is_err());
    }
}
