//! What is measured of versions, as series. All of it is in the versions themselves, so it ends with
//! them.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::families::{self, Family};
use super::{Labels, Times, gauge, write};
use crate::edge::state::Edge;
use guesthouse_control::rollout::WHOLE;
use guesthouse_control::traffic::{RequestCounts, TrafficCounts};
use guesthouse_model::VersionId;
use guesthouse_runtime::guest::ArithmeticUsage;
use guesthouse_runtime::measure::{self, Counter, DurationHistogram};
use guesthouse_runtime::preinit::InstanceStart;
use guesthouse_runtime::version::{ArithmeticGrant, ServableVersion, VersionMetrics};

/// The loaded versions, and the counters of what was routed to them.
pub(super) struct Versions<'a> {
    edge: &'a Edge,
    versions: Vec<Arc<ServableVersion>>,
    routed: TrafficCounts,
}

/// Selects the times of one stage.
type SelectTimes = fn(&VersionMetrics) -> &DurationHistogram;

/// Responses by role and status.
type ByStatus = measure::MetricFamily<(&'static str, u16), Counter>;

/// A series: its labels after `model` and `version`, and its value.
type Series<T> = (Labels, T);

impl<'a> Versions<'a> {
    pub(super) fn new(edge: &'a Edge) -> Self {
        let versions = edge.registry.snapshot().servables().map(Arc::clone).collect();
        Self { edge, versions, routed: edge.traffic.counts() }
    }

    /// Whether the version is loaded.
    pub(super) fn contains(&self, id: &VersionId) -> bool {
        self.versions.iter().any(|version| version.id() == id)
    }

    /// Write one family, with the series of every version.
    fn family<M: EncodeMetric>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        family: &Family,
        series: impl Fn(&ServableVersion) -> Vec<Series<M>>,
    ) -> fmt::Result {
        let all = self.versions.iter().flat_map(|version| {
            let id = version.id();
            let labels = [("model", id.name.to_string()), ("version", id.version.to_string())];
            series(version)
                .into_iter()
                .map(move |(more, metric)| (labels.iter().cloned().chain(more).collect(), metric))
        });
        write(encoder, family, all)
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.answers(encoder)?;
        self.load(encoder)?;
        self.faults(encoder)?;
        self.routing(encoder)?;
        self.instances(encoder)?;
        self.arithmetic(encoder)?;
        self.preinit(encoder)
    }

    /// Requests, and the time of each stage.
    fn answers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.family(encoder, &families::REQUESTS, |version| {
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
        self.family(encoder, &families::REQUEST_DURATION, |version| {
            let times = |role: &&str, times: &DurationHistogram| {
                (vec![("role", (*role).to_owned())], Times(times.snapshot()))
            };
            version.metrics().total.map(times)
        })?;
        let stages: [(&Family, SelectTimes); 4] = [
            (&families::QUEUE_DURATION, |measured| &measured.queue),
            (&families::INSTANTIATE_DURATION, |measured| &measured.instantiate),
            (&families::PREDICT_DURATION, |measured| &measured.predict),
            (&families::ENCODE_DURATION, |measured| &measured.encode),
        ];
        self.family(encoder, &families::BATCH_SIZE_ROWS, |version| {
            vec![(vec![], Times(version.metrics().batch_rows.snapshot()))]
        })?;
        for (family, select) in stages {
            self.family(encoder, family, |version| {
                vec![(vec![], Times(select(version.metrics()).snapshot()))]
            })?;
        }
        Ok(())
    }

    /// The load of a version, and what it rejects.
    fn load(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.family(encoder, &families::REQUESTS_IN_FLIGHT, |version| {
            vec![(vec![], gauge(version.admission().in_flight()))]
        })?;
        self.family(encoder, &families::CONCURRENCY_LIMIT, |version| {
            vec![(vec![], gauge(version.admission().limit()))]
        })?;
        self.family(encoder, &families::QUEUE_DEPTH, |version| {
            vec![(vec![], gauge(self.edge.inference.waiting(version.key())))]
        })?;
        self.family(encoder, &families::REJECTIONS, |version| {
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
        self.family(encoder, &families::FAULTS, |version| {
            let series = |((kind, trap), count): ((&str, Option<&str>), u64)| {
                let trap = trap.unwrap_or_default().to_owned();
                (vec![("kind", kind.to_owned()), ("trap", trap)], ConstCounter::new(count))
            };
            version.faults().counts().into_iter().map(series).collect()
        })?;
        self.family(encoder, &families::VERSION_SUSPENDED, |version| {
            let suspended = !version.breaker().allows(Instant::now());
            vec![(vec![], ConstGauge::new(i64::from(suspended)))]
        })
    }

    /// Routing decisions and the split.
    fn routing(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.family(encoder, &families::ROUTED_REQUESTS, |version| {
            let of_version = self.routed.iter().filter(|((other, _), _)| other == version.id());
            let series = |((_, reason), requests): (&(_, &str), &RequestCounts)| {
                (vec![("reason", (*reason).to_owned())], ConstCounter::new(requests.all))
            };
            of_version.map(series).collect()
        })?;
        self.family(encoder, &families::RANDOM_CHOICES, |version| {
            let of_version = self.routed.iter().filter(|((other, _), _)| other == version.id());
            let random: u64 = of_version.map(|(_, requests)| requests.random).sum();
            vec![(vec![], ConstCounter::new(random))]
        })?;
        let snapshot = self.edge.registry.snapshot();
        self.family(encoder, &families::SPLIT_WEIGHT, |version| {
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
        self.family(encoder, &families::INSTANCES, |version| {
            let counts = version.pool().counts();
            let series = |(state, count)| (vec![("state", String::from(state))], gauge(count));
            [("idle", counts.idle), ("busy", counts.in_use)].map(series).into()
        })?;
        self.family(encoder, &families::INSTANCES_MADE, |version| {
            vec![(vec![], ConstCounter::new(version.pool().counts().created))]
        })?;
        self.family(encoder, &families::INSTANCE_MEMORY, |version| {
            let counts = version.pool().counts();
            let series = |(state, bytes)| (vec![("state", String::from(state))], gauge(bytes));
            [("idle", counts.idle_bytes), ("busy", counts.in_use_bytes)].map(series).into()
        })
    }

    /// What the host computes for guests.
    fn arithmetic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        fn usage(version: &ServableVersion) -> Option<&ArithmeticUsage> {
            let is_granted = version.arithmetic() == ArithmeticGrant::Granted;
            is_granted.then(|| &**version.arithmetic_usage())
        }
        self.family(encoder, &families::ARITHMETIC_CALLS, |version| {
            let usage = usage(version).into_iter();
            usage.map(|usage| (vec![], ConstCounter::new(usage.calls()))).collect()
        })?;
        self.family(encoder, &families::ARITHMETIC_TIME, |version| {
            let usage = usage(version).into_iter();
            usage.map(|usage| (vec![], ConstCounter::new(usage.time().as_secs_f64()))).collect()
        })
    }

    /// The cost of making a version servable, when it was compiled.
    fn preinit(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.family(encoder, &families::VERSION_SNAPSHOT, |version| {
            let is_snapshot = version.report().start == InstanceStart::Snapshot;
            vec![(vec![], ConstGauge::new(i64::from(is_snapshot)))]
        })?;
        self.family(encoder, &families::PREINIT_STEP, |version| {
            let series = |(step, milliseconds): &(String, u64)| {
                let seconds = ConstGauge::new(*milliseconds as f64 / 1e3);
                (vec![("step", step.clone())], seconds)
            };
            version.report().steps_ms.iter().map(series).collect()
        })?;
        self.family(encoder, &families::PREINIT_PEAK_MEMORY, |version| {
            let bytes = i64::try_from(version.report().peak_memory_bytes).unwrap_or(i64::MAX);
            vec![(vec![], ConstGauge::new(bytes))]
        })
    }
}

/// The protocol of a route. Only the names of gRPC services contain dots.
fn protocol(route: &str) -> &'static str {
    let first = route.trim_start_matches('/').split('/').next().unwrap_or_default();
    if first.contains('.') { "grpc" } else { "http" }
}
