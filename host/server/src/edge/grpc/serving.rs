//! The state that all gRPC methods share.

use std::sync::Arc;

use tokio::sync::watch;

use crate::edge::state::Edge;

/// The state of all methods.
#[derive(Clone)]
pub(in crate::edge) struct Serving {
    pub(in crate::edge) edge: Arc<Edge>,
    /// Becomes true when the server stops, so that calls without an end of their own have to end.
    pub(in crate::edge) stopping: watch::Receiver<bool>,
}

/// Completes when the server stops.
pub(super) async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone: the server has stopped.
    let _ = stopping.wait_for(|stop| *stop).await;
}
