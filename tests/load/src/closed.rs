//! The closed loop: each connection sends its next request when the previous one has been answered.
//!
//! It measures throughput. Its latencies are those of a server that never gets more requests than
//! it answers; use the [open loop](crate::open_loop) to measure latency.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::LoadError;
use crate::connection::Connection;
use crate::report::Report;
use crate::run::{self, Load, Run};

/// Runs a closed loop and returns its report.
///
/// Requests that are sent after the warm-up count, including those that are still running at the
/// end. Must be called on a tokio runtime with timers and network.
///
/// # Errors
/// [`LoadError`] before the first request, or if the trace cannot be written. Later failures are
/// counted in the report.
pub async fn closed_loop(load: &Load) -> Result<Report, LoadError> {
    load.check()?;
    let connections = run::connect(load).await?;
    let run = Arc::new(Run::start(load)?);
    let mut workers = JoinSet::new();
    for connection in connections {
        workers.spawn(work(Arc::clone(&run), connection));
    }
    run.finish(workers).await
}

async fn work(run: Arc<Run>, mut connection: Connection) {
    loop {
        let sent = Instant::now();
        if sent >= run.end {
            return;
        }
        let number = run.number();
        if number >= run.requests {
            return;
        }
        let result = connection.send(number).await;
        run.count(&result, sent, sent);
        connection.recover().await;
    }
}
