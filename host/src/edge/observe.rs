//! Around every request: its id, its time, its line in the log, and the body of its error.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

use super::error::ApiError;
use crate::model::VersionId;
use crate::router::Reason;

/// The header that brings and returns a request's id.
pub(super) const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from a caller, in bytes.
const MAX_REQUEST_ID_LENGTH: usize = 128;

/// Names a request in its answer and in the log: 1 to 128 visible ASCII characters.
#[derive(Debug, Clone)]
pub(super) struct RequestId(String);

impl RequestId {
    /// The id that a caller gave, or none if it is not one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let good = !text.is_empty()
            && text.len() <= MAX_REQUEST_ID_LENGTH
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        good.then(|| Self(text.to_owned()))
    }

    fn of(headers: &HeaderMap) -> Self {
        let given = headers
            .get(REQUEST_ID_HEADER)
            .and_then(|id| id.to_str().ok());
        given
            .and_then(Self::parse)
            .unwrap_or_else(|| Self(Uuid::now_v7().to_string()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the line in the log says of a request, as far as it came.
#[derive(Debug, Clone, Default)]
pub(super) struct Account {
    pub(super) caller: Option<String>,
    /// The id in the body, which outranks the one in the header.
    pub(super) request_id: Option<RequestId>,
    pub(super) version: Option<VersionId>,
    pub(super) reason: Option<Reason>,
    pub(super) rows: usize,
}

/// Give the request an id and the answer its log line; write the bodies of errors.
pub(super) async fn each_request(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let id = RequestId::of(request.headers());
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).await;

    let account = response
        .extensions_mut()
        .remove::<Account>()
        .unwrap_or_default();
    let id = account.request_id.clone().unwrap_or(id);
    let error = response.extensions_mut().remove::<ApiError>();
    if let Some(error) = &error {
        *response.body_mut() = error.body(id.as_str()).to_string().into();
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
    }
    // An id is visible ASCII, which every header may carry.
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    log(
        &Line {
            id: &id,
            method: &method,
            route: route.as_ref(),
            response: &response,
        },
        &account,
        error,
        started,
    );
    response
}

struct Line<'a> {
    id: &'a RequestId,
    method: &'a Method,
    route: Option<&'a MatchedPath>,
    response: &'a Response,
}

/// The route is the endpoint's pattern, never the path that the caller sent.
fn log(line: &Line<'_>, account: &Account, error: Option<ApiError>, started: Instant) {
    let latency_ms = started.elapsed().as_secs_f64() * 1000.0;
    let version = account.version.as_ref();
    let error_code = error.map(|error| serde_json::json!(error.code));
    tracing::info!(
        target: "request",
        request_id = line.id.as_str(),
        method = line.method.as_str(),
        route = line.route.map(MatchedPath::as_str),
        status = line.response.status().as_u16(),
        error_code = error_code.as_ref().and_then(|code| code.as_str()),
        caller = account.caller,
        model = version.map(|version| version.name.as_str()),
        version = version.map(|version| tracing::field::display(&version.version)),
        reason = account.reason.map(Reason::as_str),
        rows = account.rows,
        latency_ms,
    );
}
