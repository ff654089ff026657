//! `GET /metrics`: what Prometheus reads, made anew at each scrape from what is loaded, so that a
//! version that is gone leaves nothing behind. Needs no key and says nothing of callers.

mod shadow;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::Shared;
use crate::model::VersionId;
use crate::observe::traffic::{Counts, Requests};
use crate::preinit::Start;
use crate::version::ServableVersion;

/// What the format calls itself.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /metrics`
pub(super) async fn metrics(State(edge): Shared) -> impl IntoResponse {
    let versions: Vec<_> = edge.registry.snapshot().servables().map(Arc::clone).collect();
    let mut shadows = edge.shadows.counts();
    shadows.retain(|(model, counts)| {
        let is_candidate = |id: &VersionId| id.name == *model && id.version == counts.candidate;
        versions.iter().any(|version| is_candidate(version.id()))
    });
    let mut registry = Registry::with_prefix("guesthouse");
    registry.register_collector(Box::new(shadow::Shadow(shadows)));
    registry.register_collector(Box::new(Versions { versions, requests: edge.traffic.counts() }));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("a string can be written to");
    ([(CONTENT_TYPE, OPEN_METRICS)], text)
}

/// The versions that serve, and what went to them.
struct Versions {
    versions: Vec<Arc<ServableVersion>>,
    requests: Counts,
}

impl fmt::Debug for Versions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.versions.iter().map(|version| version.id())).finish()
    }
}

/// A series: the labels after model and version, and the value.
type Series<T> = (Vec<(&'static str, String)>, T);

impl Versions {
    /// One family, with the series that each version has of it.
    fn family<M: EncodeMetric>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, unit): (&str, &str, Option<&Unit>),
        series: impl Fn(&ServableVersion) -> Vec<Series<M>>,
    ) -> fmt::Result {
        let all = self.versions.iter().flat_map(|version| {
            let id = version.id();
            let labels = [("model", id.name.to_string()), ("version", id.version.to_string())];
            series(version).into_iter().map(move |(more, metric)| {
                (labels.iter().cloned().chain(more).collect::<Vec<_>>(), metric)
            })
        });
        let mut all = all.peekable();
        let Some((_, first)) = all.peek() else { return Ok(()) };
        let mut family = encoder.encode_descriptor(name, help, unit, first.metric_type())?;
        for (labels, metric) in all {
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Collector for Versions {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let faults = ("faults", "Calls of a guest that gave no outputs", None);
        self.family(encoder, faults, |version| {
            let series = |((kind, trap), count): ((&str, Option<&str>), u64)| {
                let trap = trap.unwrap_or_default().to_owned();
                (vec![("kind", kind.to_owned()), ("trap", trap)], ConstCounter::new(count))
            };
            version.faults().counts().into_iter().map(series).collect()
        })?;
        let suspended = ("version_suspended", "Whether a version is not asked for a while", None);
        self.family(encoder, suspended, |version| {
            let suspended = !version.breaker().allows(Instant::now());
            vec![(vec![], ConstGauge::new(i64::from(suspended)))]
        })?;
        let routed = ("routed_requests", "Requests that were sent to a version, and why", None);
        self.family(encoder, routed, |version| {
            let of_version = self.requests.iter().filter(|((other, _), _)| other == version.id());
            let series = |((_, reason), requests): (&(_, &str), &Requests)| {
                (vec![("reason", (*reason).to_owned())], ConstCounter::new(requests.all))
            };
            of_version.map(series).collect()
        })?;
        let random = ("random_choices", "Requests for which a split was decided by chance", None);
        self.family(encoder, random, |version| {
            let of_version = self.requests.iter().filter(|((other, _), _)| other == version.id());
            let random: u64 = of_version.map(|(_, requests)| requests.random).sum();
            vec![(vec![], ConstCounter::new(random))]
        })?;
        let instances = ("instances", "Instances of a version", None);
        self.family(encoder, instances, |version| {
            let counts = version.pool().counts();
            let series = |(state, count)| {
                let count = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
                (vec![("state", String::from(state))], count)
            };
            [("idle", counts.idle), ("busy", counts.out)].map(series).into()
        })?;
        let made = ("instances_made", "Instances made since the version was loaded", None);
        self.family(encoder, made, |version| {
            vec![(vec![], ConstCounter::new(version.pool().counts().made))]
        })?;
        self.preinit(encoder)
    }
}

impl Versions {
    /// What it took to make a version servable, when it was compiled.
    fn preinit(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = ("version_snapshot", "Whether instances begin in a snapshot", None);
        self.family(encoder, snapshot, |version| {
            let is_snapshot = version.report().start == Start::Snapshot;
            vec![(vec![], ConstGauge::new(i64::from(is_snapshot)))]
        })?;
        let steps = ("preinit_step", "Time of a step of pre-initialising", Some(&Unit::Seconds));
        self.family(encoder, steps, |version| {
            let series = |(step, milliseconds): &(String, u64)| {
                let seconds = ConstGauge::new(*milliseconds as f64 / 1e3);
                (vec![("step", step.clone())], seconds)
            };
            version.report().steps_ms.iter().map(series).collect()
        })?;
        let memory =
            ("preinit_peak_memory", "The most memory of pre-initialising", Some(&Unit::Bytes));
        self.family(encoder, memory, |version| {
            let bytes = i64::try_from(version.report().peak_memory_bytes).unwrap_or(i64::MAX);
            vec![(vec![], ConstGauge::new(bytes))]
        })
    }
}
