//! What is measured of versions, as series. All of it is in the versions themselves, so it ends with
//! them.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::{Labels, Name, Times, gauge, write};
use crate::edge::state::Edge;
use guesthouse_control::rollout::WHOLE;
use guesthouse_control::traffic::{RequestCounts, TrafficCounts};
use guesthouse_model::VersionId;
use guesthouse_runtime::measure::{self, Counter, DurationHistogram};
use guesthouse_runtime::preinit::InstanceStart;
use guesthouse_runtime::version::{ServableVersion, VersionMetrics};

/// The versions that are loaded, and what went to them.
pub(super) struct Versions<'a> {
    edge: &'a Edge,
    versions: Vec<Arc<ServableVersion>>,
    routed: TrafficCounts,
}

/// The times of one stage.
type OfVersion = fn(&VersionMetrics) -> &DurationHistogram;

/// Answers by role and status.
type ByStatus = measure::MetricFamily<(&'static str, u16), Counter>;

/// A series: the labels after model and version, and the value.
type Series<T> = (Labels, T);

impl<'a> Versions<'a> {
    pub(super) fn of(edge: &'a Edge) -> Self {
        let versions = edge.registry.snapshot().servables().map(Arc::clone).collect();
        Self { edge, versions, routed: edge.traffic.counts() }
    }

    /// Whether the version is loaded.
    pub(super) fn contain(&self, id: &VersionId) -> bool {
        self.versions.iter().any(|version| version.id() == id)
    }

    /// One family, with the series that each version has of it.
    fn family<M: EncodeMetric>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: Name<'_>,
        series: impl Fn(&ServableVersion) -> Vec<Series<M>>,
    ) -> fmt::Result {
        let all = self.versions.iter().flat_map(|version| {
            let id = version.id();
            let labels = [("model", id.name.to_string()), ("version", id.version.to_string())];
            series(version)
                .into_iter()
                .map(move |(more, metric)| (labels.iter().cloned().chain(more).collect(), metric))
        });
        write(encoder, name, all)
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.answers(encoder)?;
        self.load(encoder)?;
        self.faults(encoder)?;
        self.routing(encoder)?;
        self.instances(encoder)?;
        self.preinit(encoder)
    }

    /// Requests, and how long each part of them took.
    fn answers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let requests = ("requests", "Requests that a version was chosen for, by status", None);
        self.family(encoder, requests, |version| {
            let of_route = |route: &String, counts: &ByStatus| {
                counts.map(|(role, status), count| {
                    let labels = vec![
                        ("role", (*role).to_owned()),
                        ("route", route.clone()),
                        ("protocol", protocol(route).to_owned()),
                        ("code", status.to_string()),
                    ];
                    (labels, ConstCounter::new(count.total()))
                })
            };
            version.metrics().requests.map(of_route).into_iter().flatten().collect()
        })?;
        let seconds = Some(&Unit::Seconds);
        let total = ("request_duration", "From the head of a request to its answer", seconds);
        self.family(encoder, total, |version| {
            let times = |role: &&str, times: &DurationHistogram| {
                (vec![("role", (*role).to_owned())], Times(times.snapshot()))
            };
            version.metrics().total.map(times)
        })?;
        let stages: [(Name<'_>, OfVersion); 4] = [
            (("queue_duration", "A batch's wait for a thread", seconds), |of| &of.queue),
            (("instantiate_duration", "To get an instance for a batch", seconds), |of| {
                &of.instantiate
            }),
            (("predict_duration", "The guest's own time for a batch", seconds), |of| &of.predict),
            (("encode_duration", "To write an answer", seconds), |of| &of.encode),
        ];
        let rows = ("batch_size_rows", "Rows with which a guest was called", None);
        self.family(encoder, rows, |version| {
            vec![(vec![], Times(version.metrics().batch_rows.snapshot()))]
        })?;
        for (name, of) in stages {
            self.family(encoder, name, |version| {
                vec![(vec![], Times(of(version.metrics()).snapshot()))]
            })?;
        }
        Ok(())
    }

    /// How much a version has to do, and what it refuses.
    fn load(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let in_flight = ("requests_in_flight", "Requests that wait or run", None);
        self.family(encoder, in_flight, |version| {
            vec![(vec![], gauge(version.admission().in_flight()))]
        })?;
        let limit = ("concurrency_limit", "Requests that may wait or run, as found out", None);
        self.family(encoder, limit, |version| vec![(vec![], gauge(version.admission().limit()))])?;
        let depth = ("queue_depth", "Batches that wait for a thread", None);
        self.family(encoder, depth, |version| {
            vec![(vec![], gauge(self.edge.inference.waiting(version.key())))]
        })?;
        let refused = ("rejections", "Requests and batches that a version did not take", None);
        self.family(encoder, refused, |version| {
            let series = |reason: &str, count| {
                (vec![("reason", reason.to_owned())], ConstCounter::new(count))
            };
            let refusals = version.admission().refusals();
            let refusals = refusals.map(|(reason, count)| series(reason.as_str(), count));
            let rejections = &version.metrics().rejections;
            let later = rejections.map(|reason, count| series(reason, count.total()));
            refusals.into_iter().chain(later).collect()
        })
    }

    fn faults(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
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
        })
    }

    /// What was decided, and what became of it.
    fn routing(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let routed = ("routed_requests", "Requests that were sent to a version, and why", None);
        self.family(encoder, routed, |version| {
            let of_version = self.routed.iter().filter(|((other, _), _)| other == version.id());
            let series = |((_, reason), requests): (&(_, &str), &RequestCounts)| {
                (vec![("reason", (*reason).to_owned())], ConstCounter::new(requests.all))
            };
            of_version.map(series).collect()
        })?;
        let random = ("random_choices", "Requests for which a split was decided by chance", None);
        self.family(encoder, random, |version| {
            let of_version = self.routed.iter().filter(|((other, _), _)| other == version.id());
            let random: u64 = of_version.map(|(_, requests)| requests.random).sum();
            vec![(vec![], ConstCounter::new(random))]
        })?;
        let snapshot = self.edge.registry.snapshot();
        let weight = ("split_weight_ratio", "The share that a split gives", None);
        self.family(encoder, weight, |version| {
            let id = version.id();
            let model = snapshot.models.get(&id.name);
            let shares = model.into_iter().flat_map(|model| model.routing.shares());
            let weight =
                shares.filter(|(version, _)| **version == id.version).map(|(_, weight)| weight);
            let parts: u32 = weight.sum();
            vec![(vec![], ConstGauge::new(f64::from(parts) / f64::from(WHOLE)))]
        })
    }

    fn instances(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let instances = ("instances", "Instances of a version", None);
        self.family(encoder, instances, |version| {
            let counts = version.pool().counts();
            let series = |(state, count)| (vec![("state", String::from(state))], gauge(count));
            [("idle", counts.idle), ("busy", counts.in_use)].map(series).into()
        })?;
        let made = ("instances_made", "Instances made since the version was loaded", None);
        self.family(encoder, made, |version| {
            vec![(vec![], ConstCounter::new(version.pool().counts().created))]
        })?;
        let memory = ("instance_memory", "Linear memory of instances", Some(&Unit::Bytes));
        self.family(encoder, memory, |version| {
            let counts = version.pool().counts();
            let series = |(state, bytes)| (vec![("state", String::from(state))], gauge(bytes));
            [("idle", counts.idle_bytes), ("busy", counts.in_use_bytes)].map(series).into()
        })
    }

    /// What it took to make a version servable, when it was compiled.
    fn preinit(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = ("version_snapshot", "Whether instances begin in a snapshot", None);
        self.family(encoder, snapshot, |version| {
            let is_snapshot = version.report().start == InstanceStart::Snapshot;
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

/// By which protocol requests come that have this route: only gRPC's services have names with dots.
fn protocol(route: &str) -> &'static str {
    let first = route.trim_start_matches('/').split('/').next().unwrap_or_default();
    if first.contains('.') { "grpc" } else { "http" }
}
