//! The public edge: HTTP and gRPC in, validated batches to the router and the inference threads, HTTP
//! and gRPC out.
//!
//! Only this module knows axum, tonic and the JSON of requests. Bodies are bounded in size and time;
//! every answer is JSON, carries a request id and is one line in the log. Keys are checked before a
//! body is read; health and readiness need none.

pub(crate) mod access;
mod body;
pub(crate) mod catalogue;
mod codec;
mod compare;
mod cors;
pub(crate) mod docs;
mod encoding;
pub(crate) mod error;
pub(crate) mod forwarded;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod grpc;
mod host;
pub(crate) mod idempotency;
mod json;
mod listener;
mod metrics;
mod model_info;
pub(crate) mod observe;
mod oip;
mod openapi;
mod pages;
mod pipeline;
mod problem;
mod proto;
pub(crate) mod query;
pub(crate) mod refused;
mod request_headers;
mod rest;
mod run;
pub(crate) mod target;
mod tls;
mod unread;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::json;
use tokio::sync::watch;

pub use access::ModelRates;
pub use body::Bodies;
pub(crate) use body::media_type;
use codec::Multiplicity;
use error::ApiError;
pub use error::reference as error_reference;
pub use grpc::endpoints as grpc_endpoints;
pub use grpc::services::Services;
pub use idempotency::Answers;
pub use listener::{Entrance, serve};
pub use metrics::reference as metrics_reference;
use observe::Around;
pub use observe::Way;
pub use pages::Pages;
pub use tls::{Tls, TlsError};

use crate::config::{Limits, MetricsAccess, MetricsListener, Origins, ServerIdentity, Sticky};
use crate::observe::capture::CaptureWriter;
use crate::observe::server_metrics::ServerMetrics;
use crate::observe::trace::Tracer;
use guesthouse_control::control::Control;
use guesthouse_control::keys::Keys;
use guesthouse_control::registry::Registry;
use guesthouse_control::shadow::Shadows;
use guesthouse_control::traffic::Traffic;
use guesthouse_model::ModelName;
use guesthouse_runtime::inference::InferenceThreads;

/// Everything that a request needs.
pub struct Edge {
    /// What is loaded.
    pub registry: Arc<Registry>,
    /// Where that is changed.
    pub control: Arc<Control>,
    /// Where guests run.
    pub inference: InferenceThreads,
    /// What was answered, for who asks again.
    pub answers: Arc<Answers>,
    /// Where answers are compared with those of other versions.
    pub shadows: Arc<Shadows>,
    /// Who may ask.
    pub keys: Arc<Keys>,
    /// How often all of them together may ask, by model.
    pub model_rates: ModelRates,
    /// What the operator may change meanwhile. A request looks at it once.
    pub policy: ArcSwap<Policy>,
    /// The bodies that are read or answered.
    pub bodies: Bodies,
    /// Who answered.
    pub traffic: Arc<Traffic>,
    /// The gRPC services of what is loaded.
    pub services: Services,
    /// Answers about many models.
    pub pages: Pages,
    /// What is measured of the server as a whole.
    pub meters: Arc<ServerMetrics>,
    /// Where spans come from, if there is a collector.
    pub tracer: Option<Arc<Tracer>>,
    /// Where requests are kept, if any are.
    pub capture: CaptureWriter,
    /// Set when the server is going down: not ready any more, but still answering.
    pub draining: AtomicBool,
    /// Says when requests that are still under way are not finished any more.
    pub interrupted: watch::Receiver<bool>,
}

/// What the configuration says of requests, and may say otherwise while the server runs.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Models of which the worst disagreements are kept with what was asked and answered.
    pub captured: BTreeSet<ModelName>,
    /// Which share of a model's requests is kept with its answers.
    pub capture_shares: BTreeMap<ModelName, f64>,
    /// The model that paths without a model mean.
    pub default_model: Option<ModelName>,
    /// The web pages that may ask.
    pub origins: Origins,
    /// How callers are told apart, by model.
    pub sticky: BTreeMap<ModelName, Sticky>,
    /// All bounds.
    pub limits: Limits,
    /// Where Prometheus reads, and whether it needs a key.
    pub metrics: MetricsAccess,
    /// What the server says of itself, and whether it may be changed by who calls it.
    pub server: ServerIdentity,
}

type Shared = State<Arc<Edge>>;

impl Edge {
    /// What is done around every request of operators.
    pub fn around_admin(&self) -> Around {
        let tracer = self.tracer.clone();
        Around { way: Way::Admin(Arc::clone(&self.meters)), largest: 0, tracer }
    }

    /// Write what waits to be written, within about that time for each. Blocks.
    pub fn finish(&self, time: Duration) {
        std::thread::scope(|scope| {
            if let Some(tracer) = &self.tracer {
                scope.spawn(move || tracer.shutdown(time));
            }
            self.capture.shutdown(time);
        });
    }
}

/// The endpoints.
pub fn endpoints(edge: Arc<Edge>) -> Router {
    let endpoints = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .merge(metrics_at(MetricsListener::Public, &edge))
        .merge(rest::endpoints("predict", Multiplicity::Single))
        .merge(rest::endpoints("batch_predict", Multiplicity::Batch))
        .merge(docs::endpoints())
        .merge(oip::endpoints())
        .route("/models", get(catalogue::models))
        .route("/models/{model}", get(catalogue::model))
        .route("/models/{model}/resolve", get(catalogue::resolve))
        .route("/models/{model}/versions/{selector}", get(catalogue::version))
        .route("/models/{model}/versions/{selector}/schema", get(openapi::schema))
        .route("/models/{model}/versions/{selector}/proto", get(proto::proto))
        .route("/models/{model}/openapi.json", get(openapi::model))
        .route("/openapi.json", get(openapi::server));
    let (way, tracer) = (Way::Public(Arc::clone(&edge.meters)), edge.tracer.clone());
    let around = Around { way, largest: edge.policy.load().limits.body_bytes, tracer };
    // Inside of what observes: browsers' questions have an id and a line in the log as well.
    let cors = axum::middleware::from_fn_with_state(Arc::clone(&edge), cors::allow);
    watched(whole(endpoints).layer(cors), around).with_state(edge)
}

/// `/metrics`, if it is to be served at this listener.
pub(crate) fn metrics_at<S>(listener: MetricsListener, edge: &Arc<Edge>) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    if edge.policy.load().metrics.listener != listener {
        return Router::new();
    }
    Router::new().route("/metrics", get(metrics::metrics)).with_state(Arc::clone(edge))
}

/// Endpoints whose every answer has an id, a line in the log and, if it is an error, a body; those
/// that there are not, too. Large answers are compressed for those that understand it.
pub(crate) fn observed<S>(endpoints: Router<S>, around: Around) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    watched(whole(endpoints), around)
}

/// Endpoints with an answer for those that there are not.
fn whole<S: Clone + Send + Sync + 'static>(endpoints: Router<S>) -> Router<S> {
    endpoints
        .fallback(async || ApiError::no_such_endpoint())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
}

fn watched<S>(endpoints: Router<S>, around: Around) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    endpoints
        .layer(axum::middleware::from_fn_with_state(around, observe::each_request))
        .layer(encoding::answers())
        .layer(axum::middleware::map_request(encoding::accept_plain))
}

/// Alive: the process answers.
async fn healthz() -> (StatusCode, axum::Json<serde_json::Value>) {
    (StatusCode::OK, axum::Json(json!({"status": "alive"})))
}

/// Ready: everything has been tried, something serves, and the server is not going down.
/// Says no names: it needs no key.
async fn readyz(State(edge): Shared) -> Result<axum::Json<serde_json::Value>, ApiError> {
    if !edge.registry.snapshot().is_ready() || edge.draining.load(Ordering::Relaxed) {
        return Err(ApiError::not_ready());
    }
    Ok(axum::Json(json!({"status": "ready"})))
}
