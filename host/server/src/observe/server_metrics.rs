//! The metrics of the listeners: connections, requests and errors. The metrics of a version live in
//! the version.

use guesthouse_runtime::measure::{Counter, Gauge, MetricFamily};

/// The metrics of all listeners.
#[derive(Debug, Default)]
pub struct ServerMetrics {
    /// The public listener.
    pub public: ListenerMetrics,
    /// The gRPC listener.
    pub grpc: ListenerMetrics,
    /// The admin listener.
    pub admin: ListenerMetrics,
}

/// The metrics of one listener.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    /// Open connections.
    pub open: Gauge,
    /// Accepted connections.
    pub accepted: Counter,
    /// Requests in flight.
    pub in_flight: Gauge,
    /// Responses by the endpoint's pattern and by status.
    pub answers: MetricFamily<String, MetricFamily<u16, Counter>>,
    /// Completed gRPC calls by method and by the name of their status.
    pub calls: MetricFamily<String, MetricFamily<&'static str, Counter>>,
    /// Error responses by error code.
    pub errors: MetricFamily<&'static str, Counter>,
}

/// Increments a gauge until it is dropped.
#[derive(Debug)]
pub struct GaugeGuard<'a>(&'a Gauge);

impl<'a> GaugeGuard<'a> {
    /// Increment the gauge.
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
