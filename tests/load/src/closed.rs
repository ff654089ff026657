//! The closed loop: each connection sends its next request when the last one is answered.
//!
//! It finds throughput. Its latencies are those of a server that is never asked faster than it
//! answers; for others there is the [open loop](crate::open_loop).

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::LoadError;
use crate::connection::Connection;
use crate::report::Report;
use crate::run::{self, Load, Run};

/// Makes a load and measures what comes of it.
///
/// Requests count if they are sent after the warm-up; those under way at the end are waited for
/// and count as well. Must be called on a tokio runtime with timers and network.
///
/// # Errors
/// [`LoadError`], before the first request, or because the trace cannot be written. What else goes
/// wrong later is in the report.
pub async fn closed_loop(load: &Load) -> Result<Report, LoadError> {
    load.check()?;
    let connections = run::connect(load).await?;
    let run = Arc::new(Run::start(load)?);
    let mut workers = JoinSet::new();
    for connection in connections {
        workers.spawn(work(Arc::clone(&run), connection));
    }
    run.finish(workers, None).await
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
        let answer = connection.ask(number).await;
        run.count(&answer, sent, sent);
        connection.recover().await;
    }
}
