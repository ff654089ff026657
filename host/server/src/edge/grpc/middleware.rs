//! The middleware around every gRPC call: its id, its key, its deadline, the limits on its messages, and its
//! line of the access log.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use super::call::Call;
use super::message_permits::MessagePermits;
use super::method::{Method, RequiredKey};
use super::model_methods::ModelMethod;
use super::request_body::CallBody;
use super::response_body::{CallGuard, ResponseBody, StreamCutoff, deadline_exceeded};
use super::serving::Serving;
use super::status;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::host_header;
use crate::edge::listener::Streamed;
use crate::edge::listener_kind::ListenerKind;
use crate::edge::request_headers::grpc_timeout;
use crate::edge::request_log::{Endpoint, RequestLog, RequestLogGuard};
use crate::edge::state::Edge;

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// The encodings of messages that are supported. Callers that use another one get this list, as the
/// specification requires.
const ENCODINGS: &str = "identity,deflate,gzip";

/// Admit or reject a call, and see to it that its response ends with a status and is logged.
pub(super) async fn handle(
    State(serving): State<Serving>,
    mut request: Request,
    next: Next,
) -> Response {
    let edge = &serving.edge;
    let method = find_method(edge, &mut request);
    let endpoint = method.as_ref().map(|method| Endpoint::Method(Arc::clone(&method.path)));
    let metrics = Arc::clone(&edge.meters);
    metrics.grpc.in_flight.increment();
    let listener = ListenerKind::Grpc(Arc::clone(&metrics));
    let log = RequestLogGuard::new(&mut request, endpoint, listener, edge.tracer.as_deref());
    let mut guard = CallGuard { log, call: None, error: None, metrics };
    if !is_grpc(&request) {
        let code = ErrorCode::UnsupportedMediaType;
        guard.log.status = Some(code.status().as_u16());
        guard.log.error_code = Some(code.as_str());
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "gRPC only\n").into_response();
    }
    let host = host_header::check(&request);
    let deadline = grpc_timeout(request.headers());
    let Some(method) = method else { return finish(next.run(request).await, guard, None) };
    let mut log = guard.log.log.clone();
    let authorized = authorize(edge, &method, request.headers(), &mut log);
    let permits = MessagePermits::new(&edge.bodies);
    let call = Call::new(method, permits, request.headers().clone(), log);
    guard.call = Some(Arc::clone(&call));
    let deadline = match host.and(authorized).and(deadline) {
        Ok(timeout) => timeout.map(|timeout| Instant::now() + timeout),
        Err(error) => {
            call.fail(&error);
            return finish(status::rejection(&error), guard, None);
        }
    };
    let is_stream = call.method.is_stream;
    let response = run(&serving, call, with_used_encoding(request), next, deadline).await;
    let cutoff = is_stream.then(|| StreamCutoff::new(deadline, edge.interrupted.clone()));
    finish(response, guard, cutoff)
}

/// The method of a request, if there may be one. A method of a model becomes an extension of the request.
fn find_method(edge: &Edge, request: &mut Request) -> Option<Method> {
    let path = request.uri().path();
    if let Some(method) = Method::find(path) {
        return Some(method);
    }
    let found = ModelMethod::find(edge, path)?;
    let method = found.method();
    request.extensions_mut().insert(found);
    Some(method)
}

/// Whether the request is HTTP/2 with protobuf messages.
fn is_grpc(request: &Request) -> bool {
    let media_type = request.headers().get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    let media_type = media_type.split(|byte| *byte == b';').next().unwrap_or_default();
    let media_type = media_type.trim_ascii().to_ascii_lowercase();
    let is_known = [&b"application/grpc"[..], b"application/grpc+proto"].contains(&&media_type[..]);
    request.version() == Version::HTTP_2 && is_known
}

/// Check the key that the method requires.
fn authorize(
    edge: &Edge,
    method: &Method,
    headers: &HeaderMap,
    log: &mut RequestLog,
) -> Result<(), ApiError> {
    match method.required_key {
        RequiredKey::None => {}
        RequiredKey::AnyModel => {
            let caller = edge.authenticate_for_any_model(headers)?;
            log.caller = Some(caller.name().to_owned());
        }
        RequiredKey::Admin => _ = edge.identify_admin(headers, log)?,
    }
    Ok(())
}

/// Accept only the encoding that the caller uses itself. Most clients accept all encodings that they support,
/// although compressing a response takes longer than sending it.
fn with_used_encoding(mut request: Request) -> Request {
    let used = request.headers_mut().get(ENCODING).filter(|used| *used != "identity").cloned();
    let is_accepted = |accepted: &HeaderValue, used: &HeaderValue| {
        let (accepted, used) = (accepted.as_bytes(), used.as_bytes());
        accepted.split(|byte| *byte == b',').any(|one| one.trim_ascii() == used)
    };
    match (request.headers_mut().remove(ACCEPT_ENCODING), used) {
        (Some(accepted), Some(used)) if is_accepted(&accepted, &used) => {
            request.headers_mut().insert(ACCEPT_ENCODING, used);
        }
        _ => {}
    }
    request
}

/// The response of the method, unless the deadline or a stopping server ends the call before.
async fn run(
    serving: &Serving,
    call: Arc<Call>,
    request: Request,
    next: Next,
    deadline: Option<Instant>,
) -> Response {
    let edge = &serving.edge;
    let limits = edge.policy.load().limits;
    let (max_bytes, timeout) = (limits.body_bytes, limits.body_time);
    let mut request = request.map(|body| Body::new(CallBody::new(body, &call, max_bytes, timeout)));
    request.extensions_mut().insert(Arc::clone(&call));
    let mut interrupted = edge.interrupted.clone();
    let response = async {
        match deadline {
            Some(deadline) => timeout_at(deadline, next.run(request))
                .await
                .map_err(|_elapsed| deadline_exceeded()),
            None => Ok(next.run(request).await),
        }
    };
    let outcome = tokio::select! {
        outcome = response => outcome,
        // Dropping the response interrupts the guest that works for it.
        Ok(_) = interrupted.wait_for(|interrupted| *interrupted) => Err(ApiError::stopping()),
    };
    outcome.unwrap_or_else(|error| {
        call.fail(&error);
        status::rejection(&error)
    })
}

/// Complete the response: its headers, an error in our own words, and the body that logs its status.
fn finish(mut response: Response, mut guard: CallGuard, cutoff: Option<StreamCutoff>) -> Response {
    let code = response.headers().get(Status::GRPC_STATUS);
    let code = code.map(|code| Code::from_bytes(code.as_bytes()));
    let known = response.extensions_mut().remove::<ApiError>().map(|error| error.code);
    guard.error = known.or_else(|| guard.call.as_ref().and_then(|call| call.error()));
    if let (None, Some(error)) = (guard.error, code.and_then(status::library_error)) {
        // Without a call, the library found that the service has no such method.
        let error = if guard.call.is_some() { error } else { ApiError::no_such_method() };
        response = status::rejection(&error);
        guard.error = Some(error.code);
    }
    if guard.error == Some(ErrorCode::UnsupportedMediaType) {
        response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static(ENCODINGS));
    }
    if let Some(call) = &guard.call {
        guard.log.log = call.log();
    }
    guard.log.log.write_headers(response.headers_mut());
    if cutoff.is_some() && code.is_none() {
        response.extensions_mut().insert(Streamed);
    }
    let (parts, body) = response.into_parts();
    let body = ResponseBody::new(body, &parts.headers, cutoff, guard);
    Response::from_parts(parts, Body::new(body))
}
