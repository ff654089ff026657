//! The state that all requests share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::extract::State;
use guesthouse_control::control::Control;
use guesthouse_control::keys::Keys;
use guesthouse_control::registry::Registry;
use guesthouse_control::shadow::Shadows;
use guesthouse_control::traffic::Traffic;
use guesthouse_runtime::inference::InferenceThreads;
use tokio::sync::watch;

use super::body::Bodies;
use super::idempotency::AnswerStore;
use super::model_services::Services;
use super::pages::Pages;
use super::policy::Policy;
use super::rate_limits::ModelRates;
use crate::observe::capture::CaptureWriter;
use crate::observe::server_metrics::ServerMetrics;
use crate::observe::trace::Tracer;

/// The state of the HTTP and gRPC APIs.
pub struct Edge {
    /// The loaded versions.
    pub registry: Arc<Registry>,
    /// Changes what is served.
    pub control: Arc<Control>,
    /// The threads on which guests run.
    pub inference: InferenceThreads,
    /// Answers to requests with an idempotency key.
    pub answers: Arc<AnswerStore>,
    /// Compares answers with those of shadows.
    pub shadows: Arc<Shadows>,
    /// The keys of callers.
    pub keys: Arc<Keys>,
    /// The rates of models, for all callers together.
    pub model_rates: ModelRates,
    /// What the operator may reload. A request loads it once.
    pub policy: ArcSwap<Policy>,
    /// Limits the memory of all bodies in flight.
    pub bodies: Bodies,
    /// Counts the requests that were routed to each version.
    pub traffic: Arc<Traffic>,
    /// The gRPC services of the loaded models.
    pub services: Services,
    /// Caches responses about many models.
    pub pages: Pages,
    /// The metrics of the server.
    pub meters: Arc<ServerMetrics>,
    /// Creates spans, if there is a collector.
    pub tracer: Option<Arc<Tracer>>,
    /// Writes captured requests to files.
    pub capture: CaptureWriter,
    /// Set when the server stops: it is not ready any more, but still responds.
    pub draining: AtomicBool,
    /// Becomes true when requests in progress are interrupted.
    pub interrupted: watch::Receiver<bool>,
}

/// The state of axum's handlers.
pub(crate) type EdgeState = State<Arc<Edge>>;

impl Edge {
    /// Write the spans and the captured requests that are queued, each within about `time`. Blocks.
    pub fn finish(&self, time: Duration) {
        std::thread::scope(|scope| {
            if let Some(tracer) = &self.tracer {
                scope.spawn(move || tracer.shutdown(time));
            }
            self.capture.shutdown(time);
        });
    }
}
