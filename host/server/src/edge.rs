//! The HTTP and gRPC APIs: from a connection to the inference threads and back.
//!
//! Here are the routes. From the bottom up, the modules are: [`error`] and what requests and responses are made
//! of ([`body`], [`request_id`], [`request_log`]); [`policy`] and [`state`], which all requests share;
//! [`codec`], which decodes and encodes predictions; [`pipeline`], the sequence that every prediction goes
//! through; the endpoints ([`rest`], [`oip`], [`grpc`] and those for readers); and the [`middleware`] and the
//! [`listener`] around all of them.

pub(crate) mod access;
mod body;
pub(crate) mod catalogue;
mod codec;
mod compare;
mod compress;
mod control_error;
mod cors;
mod decompress;
pub(crate) mod docs;
pub(crate) mod error;
pub(crate) mod forwarded;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod grpc;
mod host_header;
pub(crate) mod idempotency;
mod json;
mod listener;
mod listener_kind;
mod metrics;
mod middleware;
mod model_info;
mod model_services;
mod oip;
mod oip_path;
mod openapi;
mod pages;
pub(crate) mod pb;
mod pipeline;
mod policy;
mod problem;
mod proto;
pub(crate) mod query;
mod rate_limits;
mod render;
mod request_headers;
mod request_id;
pub(crate) mod request_log;
mod rest;
mod run;
mod state;
pub(crate) mod target;
mod unread_body;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::json;

pub use body::Bodies;
pub(crate) use body::media_type;
use codec::Multiplicity;
use error::ApiError;
pub use error::reference as error_reference;
pub use grpc::endpoints as grpc_endpoints;
pub use idempotency::AnswerStore;
pub use listener::tls::{Tls, TlsError};
pub use listener::{Listener, serve};
pub use listener_kind::ListenerKind;
pub use metrics::reference as metrics_reference;
use middleware::Middleware;
pub use model_services::Services;
pub use pages::Pages;
pub use policy::Policy;
pub use rate_limits::ModelRates;
pub use state::Edge;
use state::EdgeState;

use crate::config::MetricsListener;

/// The router of the HTTP API.
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
    let listener = ListenerKind::Public(Arc::clone(&edge.meters));
    let largest = edge.policy.load().limits.body_bytes;
    let middleware = Middleware { listener, largest, tracer: edge.tracer.clone() };
    // Inside the other middleware, so that preflight requests are logged as well.
    let cors = axum::middleware::from_fn_with_state(Arc::clone(&edge), cors::allow);
    wrap(with_fallbacks(endpoints).layer(cors), middleware).with_state(edge)
}

/// The route `/metrics`, if this listener is configured to serve it.
pub(crate) fn metrics_at<S>(listener: MetricsListener, edge: &Arc<Edge>) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    if edge.policy.load().metrics.listener != listener {
        return Router::new();
    }
    Router::new().route("/metrics", get(metrics::metrics)).with_state(Arc::clone(edge))
}

/// The middleware of the operators' listener, for bodies of at most `largest` bytes.
pub(crate) fn admin_middleware(edge: &Edge, largest: usize) -> Middleware {
    let listener = ListenerKind::Admin(Arc::clone(&edge.meters));
    Middleware { listener, largest, tracer: edge.tracer.clone() }
}

/// The router with fallbacks for unknown paths and methods, and with the middleware around it: every response
/// has an id, is logged, is compressed if the caller accepts that, and has a body if it is an error.
pub(crate) fn with_middleware<S>(endpoints: Router<S>, middleware: Middleware) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    wrap(with_fallbacks(endpoints), middleware)
}

fn with_fallbacks<S: Clone + Send + Sync + 'static>(endpoints: Router<S>) -> Router<S> {
    endpoints
        .fallback(async || ApiError::no_such_endpoint())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
}

fn wrap<S>(endpoints: Router<S>, middleware: Middleware) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    endpoints
        .layer(axum::middleware::from_fn_with_state(middleware, middleware::handle))
        .layer(compress::layer())
        .layer(axum::middleware::map_request(compress::restrict_accepted))
}

/// `GET /healthz`: the process responds.
async fn healthz() -> (StatusCode, axum::Json<serde_json::Value>) {
    (StatusCode::OK, axum::Json(json!({"status": "alive"})))
}

/// `GET /readyz`: the initial loading has finished, a version serves, and the server is not stopping. The
/// response names no models, because it requires no key.
async fn readyz(State(edge): EdgeState) -> Result<axum::Json<serde_json::Value>, ApiError> {
    if !edge.registry.snapshot().is_ready() || edge.draining.load(Ordering::Relaxed) {
        return Err(ApiError::not_ready());
    }
    Ok(axum::Json(json!({"status": "ready"})))
}
