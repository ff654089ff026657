//! The kinds of listeners, and their metrics.

use std::sync::Arc;

use crate::observe::server_metrics::{ListenerMetrics, ServerMetrics};

/// For whom a listener is.
#[derive(Debug, Clone)]
pub enum ListenerKind {
    /// Callers of the HTTP API.
    Public(Arc<ServerMetrics>),
    /// Callers of the gRPC API.
    Grpc(Arc<ServerMetrics>),
    /// Operators.
    Admin(Arc<ServerMetrics>),
}

impl ListenerKind {
    /// The metrics of listeners of this kind.
    pub(super) fn metrics(&self) -> &ListenerMetrics {
        match self {
            Self::Public(metrics) => &metrics.public,
            Self::Grpc(metrics) => &metrics.grpc,
            Self::Admin(metrics) => &metrics.admin,
        }
    }
}
