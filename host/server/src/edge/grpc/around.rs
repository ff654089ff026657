//! Around every call: its id, its key, its time, its size, its line in the log.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use super::arriving::{Arriving, Held};
use super::call::Call;
use super::leaving::{Cut, Leaving, Log, late};
use super::method::{Method, Needs};
use super::serving::Serving;
use super::signature::SignatureMethod;
use super::status;
use crate::edge::access;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::listener::Streamed;
use crate::edge::observe::{Account, Endpoint, Line, Way};
use crate::edge::request_headers::grpc_timeout;
use crate::edge::{Edge, host};

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// What messages may be encoded with. Callers who use something else are told of it, so that they can go
/// on with one of these.
const ENCODINGS: &str = "identity,deflate,gzip";

/// Let a call in, or not; give it an id, and its answer a status and a line in the log.
pub(super) async fn each_call(
    State(serving): State<Serving>,
    mut request: Request,
    next: Next,
) -> Response {
    let edge = &serving.edge;
    let path = request.uri().path();
    let mut method = Method::find(path);
    if method.is_none()
        && let Some(found) = SignatureMethod::find(edge, path)
    {
        method = Some(found.method());
        request.extensions_mut().insert(found);
    }
    let endpoint = method.as_ref().map(|method| Endpoint::Method(Arc::clone(&method.path)));
    let meters = Arc::clone(&edge.meters);
    meters.grpc.in_flight.increment();
    let way = Way::Grpc(Arc::clone(&meters));
    let line = Line::begin(&mut request, endpoint, way, edge.tracer.as_deref());
    let mut log = Log { line, call: None, error: None, meters };
    if !is_grpc(&request) {
        let code = ErrorCode::UnsupportedMediaType;
        log.line.status = Some(code.status().as_u16());
        log.line.error_code = Some(code.as_str());
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "gRPC only\n").into_response();
    }
    let well_formed = host::check(&request);
    let deadline = grpc_timeout(request.headers());
    let Some(method) = method else { return told(next.run(request).await, log, None) };
    let mut account = log.line.account.clone();
    let held = Arc::new(Held::new(&edge.bodies));
    let allowed = allow(edge, &method, request.headers(), &mut account);
    let call = Call::new(method, held, request.headers().clone(), account);
    log.call = Some(Arc::clone(&call));
    let deadline = match well_formed.and(allowed).and(deadline) {
        Ok(time) => time.map(|time| Instant::now() + time),
        Err(error) => {
            call.fail(&error);
            return told(status::refusal(&error), log, None);
        }
    };
    let is_stream = call.method.is_stream;
    let response = run(&serving, call, prepared(request), next, deadline).await;
    let cut = is_stream.then(|| Cut::new(deadline, edge.interrupted.clone()));
    told(response, log, cut)
}

/// HTTP/2 with messages of protobuf.
fn is_grpc(request: &Request) -> bool {
    let media_type = request.headers().get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    let media_type = media_type.split(|byte| *byte == b';').next().unwrap_or_default();
    let media_type = media_type.trim_ascii().to_ascii_lowercase();
    let is_known = [&b"application/grpc"[..], b"application/grpc+proto"].contains(&&media_type[..]);
    request.version() == Version::HTTP_2 && is_known
}

/// Whether the caller may call the method at all.
fn allow(
    edge: &Edge,
    method: &Method,
    headers: &HeaderMap,
    account: &mut Account,
) -> Result<(), ApiError> {
    let caller = match method.needs {
        Needs::Nothing => return Ok(()),
        Needs::Key => edge.authorize_for_some(headers)?,
        Needs::Admin => access::administrator(&edge.keys, headers)?,
    };
    account.caller = Some(caller.name().to_owned());
    Ok(())
}

/// Most clients say in every call which encodings they know, and want none: packing an answer takes
/// longer than sending it. Who packs what it sends gets it packed in the same way.
fn prepared(mut request: Request) -> Request {
    let used = request.headers_mut().get(ENCODING).filter(|used| *used != "identity").cloned();
    let is_known = |accepted: &HeaderValue, used: &HeaderValue| {
        let (accepted, used) = (accepted.as_bytes(), used.as_bytes());
        accepted.split(|byte| *byte == b',').any(|one| one.trim_ascii() == used)
    };
    match (request.headers_mut().remove(ACCEPT_ENCODING), used) {
        (Some(accepted), Some(used)) if is_known(&accepted, &used) => {
            request.headers_mut().insert(ACCEPT_ENCODING, used);
        }
        _ => {}
    }
    request
}

/// The answer of the method, unless something ends the call before there is one.
async fn run(
    serving: &Serving,
    call: Arc<Call>,
    request: Request,
    next: Next,
    deadline: Option<Instant>,
) -> Response {
    let edge = &serving.edge;
    let limits = edge.policy.load().limits;
    let (most, time) = (limits.body_bytes, limits.body_time);
    let mut request = request.map(|body| Body::new(Arriving::new(body, &call, most, time)));
    request.extensions_mut().insert(Arc::clone(&call));
    let mut interrupted = edge.interrupted.clone();
    let answer = async {
        match deadline {
            Some(deadline) => {
                timeout_at(deadline, next.run(request)).await.map_err(|_elapsed| late())
            }
            None => Ok(next.run(request).await),
        }
    };
    let outcome = tokio::select! {
        outcome = answer => outcome,
        // The guest that works for it is interrupted when this is dropped.
        Ok(_) = interrupted.wait_for(|interrupted| *interrupted) => Err(ApiError::going_down()),
    };
    outcome.unwrap_or_else(|error| {
        call.fail(&error);
        status::refusal(&error)
    })
}

/// The answer with what each says of its call.
fn told(mut response: Response, mut log: Log, cut: Option<Cut>) -> Response {
    let code = response.headers().get(Status::GRPC_STATUS);
    let code = code.map(|code| Code::from_bytes(code.as_bytes()));
    let known = response.extensions_mut().remove::<ApiError>().map(|error| error.code);
    log.error = known.or_else(|| log.call.as_ref().and_then(|call| call.error()));
    if let (None, Some(error)) = (log.error, code.and_then(status::of_library)) {
        // Of a service that there is, the library knows which methods it has.
        let error = if log.call.is_some() { error } else { ApiError::no_such_method() };
        response = status::refusal(&error);
        log.error = Some(error.code);
    }
    if log.error == Some(ErrorCode::UnsupportedMediaType) {
        response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static(ENCODINGS));
    }
    if let Some(call) = &log.call {
        log.line.account = call.account();
    }
    log.line.account.tell(response.headers_mut());
    if cut.is_some() && code.is_none() {
        response.extensions_mut().insert(Streamed);
    }
    let (parts, body) = response.into_parts();
    let leaving = Leaving::new(body, &parts.headers, cut, log);
    Response::from_parts(parts, Body::new(leaving))
}
