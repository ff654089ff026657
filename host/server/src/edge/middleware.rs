//! The middleware around every HTTP request: its id, its line of the access log, and the body of its error.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::compress::Uncompressed;
use super::error::{ApiError, ErrorCode};
use super::listener_kind::ListenerKind;
use super::request_log::{Endpoint, RequestLog, RequestLogGuard};
use super::unread_body::LentBody;
use super::{host_header, oip_path, problem};
use crate::observe::server_metrics::GaugeGuard;
use crate::observe::trace::Tracer;

/// The state of the middleware of a listener.
#[derive(Debug, Clone)]
pub(crate) struct Middleware {
    /// Which listener it is.
    pub listener: ListenerKind,
    /// The largest body that is accepted, in bytes.
    pub largest: usize,
    /// Creates spans, if there is a collector.
    pub tracer: Option<Arc<Tracer>>,
}

/// Give the request an id, reject it if its host is ambiguous, write the body of an error, and log the
/// request.
pub(super) async fn handle(
    State(Middleware { listener, largest, tracer }): State<Middleware>,
    mut request: Request,
    next: Next,
) -> Response {
    let _in_flight = GaugeGuard::new(&listener.metrics().in_flight);
    let endpoint = request.extensions().get::<MatchedPath>().cloned().map(Endpoint::Pattern);
    let tracer = tracer.as_deref();
    let mut guard = RequestLogGuard::new(&mut request, endpoint, listener.clone(), tracer);
    let lent = LentBody::lend(&mut request);
    let is_oip = oip_path::is_oip(request.uri().path());
    let wants_problem = !is_oip && problem::wants_problem(request.headers());
    let mut response = match host_header::check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            drop(request);
            error.into_response()
        }
    };
    if let Some(log) = response.extensions_mut().remove::<RequestLog>() {
        guard.log = log;
    }
    let error = response.extensions_mut().remove::<ApiError>();
    let error = error.or_else(|| ApiError::from_library(response.status()));
    let timed_out = error.as_ref().is_some_and(|error| error.code == ErrorCode::RequestTimeout);
    if let Some(leftover) = lent.leftover(largest, timed_out) {
        response.extensions_mut().insert(leftover);
    }
    if let Some(error) = &error {
        let id = guard.log.request_id.as_str();
        let (body, media_type) = if wants_problem {
            (to_json(&error.problem(id)), "application/problem+json")
        } else if is_oip {
            (to_json(&error.protocol_body(id)), "application/json")
        } else {
            (to_json(&error.body(id)), "application/json")
        };
        *response.body_mut() = body.into();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    }
    let endpoint = guard.endpoint.as_ref().map_or("", Endpoint::as_str);
    if is_oip && (error.is_some() || !oip_path::is_inference(endpoint)) {
        response.extensions_mut().insert(Uncompressed);
    }
    guard.log.write_headers(response.headers_mut());
    guard.status = Some(response.status().as_u16());
    guard.error_code = error.map(|error| error.code.as_str());
    response
}

fn to_json(body: &impl serde::Serialize) -> String {
    serde_json::to_string(body).expect("bodies of errors are strings and numbers")
}
