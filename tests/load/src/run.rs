//! What both loops share: limits, connections, the clock and the counters of a run.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::LoadError;
use crate::connection::{Connection, RequestResult};
use crate::report::{Report, Tally};
use crate::target::Target;
use crate::trace::Trace;

/// The maximum number of connections. With more, the benchmark would measure this program.
pub const MAX_CONNECTIONS: usize = 1024;

/// The longest warm-up, measurement and request timeout.
pub const MAX_TIME: Duration = Duration::from_secs(600);

/// The parameters of a run. There are no defaults: a benchmark states what it does.
#[derive(Debug, Clone)]
pub struct Load {
    /// The endpoint and its requests.
    pub target: Target,
    /// The number of connections, each with at most one request in progress.
    pub connections: usize,
    /// The duration of the warm-up, which may be zero.
    pub warm_up: Duration,
    /// The duration of the measurement.
    pub duration: Duration,
    /// The timeout of a request.
    pub request_time: Duration,
    /// The maximum number of requests, including those of the warm-up.
    pub requests: Option<usize>,
    /// The file for the [trace](crate::trace), which includes the warm-up.
    pub trace: Option<PathBuf>,
}

impl Load {
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let connections = self.connections;
        if !(1..=MAX_CONNECTIONS).contains(&connections) {
            return Err(out_of_bounds("connections", connections, MAX_CONNECTIONS));
        }
        let times = [
            // The only duration that may be zero.
            ("warm-up", self.warm_up.max(Duration::from_nanos(1))),
            ("duration", self.duration),
            ("time of a request", self.request_time),
        ];
        for (name, time) in times {
            if time.is_zero() || time > MAX_TIME {
                let seconds = |time: Duration| format!("{} s", time.as_secs_f64());
                return Err(out_of_bounds(name, seconds(time), seconds(MAX_TIME)));
            }
        }
        Ok(())
    }
}

pub(crate) fn out_of_bounds(
    name: &'static str,
    value: impl Display,
    most: impl Display,
) -> LoadError {
    LoadError::OutOfBounds { name, value: value.to_string(), most: most.to_string() }
}

/// Opens all connections, so that no request includes a handshake.
pub(crate) async fn connect(load: &Load) -> Result<Vec<Connection>, LoadError> {
    let target = Arc::new(load.target.clone());
    let mut connections = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        let connection = Connection::open(Arc::clone(&target), load.request_time).await;
        connections.push(connection.map_err(LoadError::Connect)?);
    }
    Ok(connections)
}

/// The clock and the counters of a run.
pub(crate) struct Run {
    pub(crate) start: Instant,
    /// The end of the warm-up.
    counted_from: Instant,
    /// The end of the run: no request is scheduled at or after this time.
    pub(crate) end: Instant,
    /// Requests are numbered below this.
    pub(crate) requests: usize,
    next: AtomicUsize,
    tally: Mutex<Tally>,
    trace: Option<Mutex<Trace>>,
}

impl Run {
    /// Starts the clock.
    pub(crate) fn start(load: &Load) -> Result<Self, LoadError> {
        let trace = load.trace.as_deref().map(Trace::create).transpose();
        let trace = trace.map_err(LoadError::Trace)?.map(Mutex::new);
        let start = Instant::now();
        let counted_from = start + load.warm_up;
        Ok(Self {
            start,
            counted_from,
            end: counted_from + load.duration,
            requests: load.requests.unwrap_or(usize::MAX),
            next: AtomicUsize::new(0),
            tally: Mutex::new(Tally::new()),
            trace,
        })
    }

    /// The number of the next request, counted from 0.
    pub(crate) fn number(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts a request that has just ended.
    pub(crate) fn count(&self, result: &RequestResult, due: Instant, sent: Instant) {
        let received = Instant::now();
        if let Some(trace) = &self.trace {
            lock(trace).write(result, sent, received);
        }
        if due >= self.counted_from {
            let late = sent.saturating_duration_since(due);
            let latency = received.saturating_duration_since(due);
            lock(&self.tally).count(result.outcome, late, latency);
        }
    }

    /// Counts a request that was due and is given up.
    pub(crate) fn count_unsent(&self, due: Instant) {
        if due >= self.counted_from {
            lock(&self.tally).count_unsent();
        }
    }

    /// Waits for the workers and reports what they counted.
    pub(crate) async fn finish(&self, mut workers: JoinSet<()>) -> Result<Report, LoadError> {
        while let Some(ended) = workers.join_next().await {
            // Workers are never aborted, so this is a panic, and the counters are not reliable.
            if let Err(failed) = ended {
                std::panic::resume_unwind(failed.into_panic());
            }
        }
        let time = self.counted_from.elapsed();
        if let Some(trace) = &self.trace {
            lock(trace).finish().map_err(LoadError::Trace)?;
        }
        Ok(lock(&self.tally).report(time))
    }
}

fn lock<T>(counts: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while counting ends the run in `finish`.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}
