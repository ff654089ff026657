//! What every method of gRPC needs.

use std::sync::Arc;

use tokio::sync::watch;

use crate::edge::Edge;

/// What every method needs.
#[derive(Clone)]
pub(in crate::edge) struct Serving {
    pub(in crate::edge) edge: Arc<Edge>,
    /// Becomes true when calls that have no end of their own have to end.
    pub(in crate::edge) stopping: watch::Receiver<bool>,
}

/// Ends when the server is told to stop.
pub(super) async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}
