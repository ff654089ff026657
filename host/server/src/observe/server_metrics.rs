//! The meters of the listeners: connections, requests and errors. Meters of a version live with it.

use guesthouse_runtime::measure::{Counter, Gauge, MetricFamily};

/// Everything that belongs to no version.
#[derive(Debug, Default)]
pub struct ServerMetrics {
    /// The endpoints of callers.
    pub public: ListenerMetrics,
    /// The same for those that speak gRPC.
    pub grpc: ListenerMetrics,
    /// The endpoints of operators.
    pub admin: ListenerMetrics,
}

/// One address and what comes in there.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    /// Connections that are open.
    pub open: Gauge,
    /// Connections since the start.
    pub accepted: Counter,
    /// Requests that are under way.
    pub in_flight: Gauge,
    /// Answers, by the endpoint's pattern, and by status.
    pub answers: MetricFamily<String, MetricFamily<u16, Counter>>,
    /// Calls of gRPC that are over, by the method, and by the name of their status.
    pub calls: MetricFamily<String, MetricFamily<&'static str, Counter>>,
    /// Answers that are errors, by their code.
    pub errors: MetricFamily<&'static str, Counter>,
}

/// A thing that is counted among others while this is there.
#[derive(Debug)]
pub struct GaugeGuard<'a>(&'a Gauge);

impl<'a> GaugeGuard<'a> {
    /// One more.
    pub fn new(level: &'a Gauge) -> Self {
        level.increment();
        Self(level)
    }
}

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.decrement();
    }
}
