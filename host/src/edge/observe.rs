//! Around every request: its id, its time, its line in the log, and the body of its error.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

use super::access::Allowance;
use super::error::{ApiError, ErrorCode};
use super::problem;
use super::unread::Unread;
use crate::model::VersionId;
use crate::router::{Reason, Route};

/// The header that brings and returns a request's id.
pub(crate) const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The header that names the version: the one that answered, or the one that a caller asks for.
pub(crate) const VERSION_HEADER: HeaderName = HeaderName::from_static("x-model-version");

/// The header that says why a version answered.
const REASON_HEADER: HeaderName = HeaderName::from_static("x-route-reason");

/// The longest id that is taken from a caller, in bytes.
const MAX_REQUEST_ID_LENGTH: usize = 128;

/// Names a request in its answer and in the log: 1 to 128 visible ASCII characters.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(String);

impl RequestId {
    /// The id that a caller gave, or none if it is not one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let good = !text.is_empty()
            && text.len() <= MAX_REQUEST_ID_LENGTH
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        good.then(|| Self(text.to_owned()))
    }

    /// What the caller is told whose body has one that is none.
    pub(crate) fn malformed() -> ApiError {
        let message = "`request_id` must be a string of 1 to 128 visible ASCII characters";
        ApiError::malformed(message)
    }

    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID_HEADER).and_then(|id| id.to_str().ok());
        given.and_then(Self::parse).unwrap_or_else(|| Self(Uuid::now_v7().to_string()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn insert_into(&self, headers: &mut HeaderMap) {
        // An id is visible ASCII, which every header may carry.
        if let Ok(value) = HeaderValue::from_str(&self.0) {
            headers.insert(REQUEST_ID_HEADER, value);
        }
    }
}

/// What the line in the log says of a request, as far as it came.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    /// The caller's, from the body or the header, or one that was made.
    pub(crate) request_id: RequestId,
    pub(crate) caller: Option<String>,
    pub(crate) version: Option<VersionId>,
    pub(crate) reason: Option<Reason>,
    pub(crate) rows: usize,
    /// What the limits say that it met.
    pub(crate) allowance: Allowance,
}

impl Account {
    /// The account of a request that nothing is known of but its headers.
    pub(crate) fn of(request: &Request) -> Self {
        let request_id = RequestId::of(request.headers());
        let allowance = Allowance::default();
        Self { request_id, caller: None, version: None, reason: None, rows: 0, allowance }
    }

    /// A version was chosen.
    pub(crate) fn route_to(&mut self, route: &Route) {
        self.version = Some(route.version.id().clone());
        self.reason = Some(route.reason);
    }

    /// Which version was chosen and why, whatever came of it.
    fn tell_route(&self, headers: &mut HeaderMap) {
        let version = self.version.as_ref().map(|id| id.version.to_string());
        if let Some(version) = version.and_then(|version| HeaderValue::from_str(&version).ok()) {
            headers.insert(VERSION_HEADER, version);
        }
        if let Some(reason) = self.reason {
            headers.insert(REASON_HEADER, HeaderValue::from_static(reason.as_str()));
        }
    }
}

/// The largest body that is accepted.
#[derive(Clone, Copy)]
pub(crate) struct LargestBody(pub(crate) usize);

/// Give the request an id and the answer its log line; write the bodies of errors, and see to it
/// that they arrive.
pub(crate) async fn each_request(
    State(LargestBody(largest)): State<LargestBody>,
    mut request: Request,
    next: Next,
) -> Response {
    let mut line = Line::begin(&mut request);
    let unread = Unread::of(&mut request);
    let wants_problem = problem::wants_problem(request.headers());
    let mut response = next.run(request).await;

    if let Some(account) = response.extensions_mut().remove::<Account>() {
        line.account = account;
    }
    let id = &line.account.request_id;
    let error = response.extensions_mut().remove::<ApiError>();
    let error = error.or_else(|| ApiError::of_library(response.status()));
    if let Some(error) = &error {
        // Who was too slow has had its time.
        if error.code != ErrorCode::RequestTimeout {
            unread.drain(largest).await;
        }
        let (body, media_type) = if wants_problem {
            (error.problem(id.as_str()), "application/problem+json")
        } else {
            (error.body(id.as_str()), "application/json")
        };
        *response.body_mut() = body.to_string().into();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    }
    id.insert_into(response.headers_mut());
    line.account.tell_route(response.headers_mut());
    line.account.allowance.tell(response.headers_mut());
    line.status = Some(response.status().as_u16());
    line.error_code = error.map(|error| error.code.as_str());
    response
}

/// What stands in the log for a request whose caller left before it was answered: nginx's word.
const CALLER_LEFT: u16 = 499;

/// What stands in the log for a request that the server broke down on.
const BROKEN: u16 = 500;

/// The line of a request, logged when this is dropped: after the answer, or without one.
struct Line {
    started: Instant,
    method: Method,
    route: Option<MatchedPath>,
    account: Account,
    /// Of the answer, once there is one.
    status: Option<u16>,
    error_code: Option<&'static str>,
}

impl Line {
    fn begin(request: &mut Request) -> Self {
        let account = Account::of(request);
        // Everybody who asks the request for its id from now on gets the same one.
        account.request_id.insert_into(request.headers_mut());
        Self {
            started: Instant::now(),
            method: request.method().clone(),
            route: request.extensions().get::<MatchedPath>().cloned(),
            account,
            status: None,
            error_code: None,
        }
    }
}

impl Drop for Line {
    /// The route is the endpoint's pattern, never the path that the caller sent.
    fn drop(&mut self) {
        let account = &self.account;
        let route = self.route.as_ref().map(MatchedPath::as_str);
        // Probes come every second and say the same; a change of readiness has a line of its own.
        if route.is_some_and(|route| ["/healthz", "/readyz"].contains(&route)) {
            return;
        }
        let unanswered = if std::thread::panicking() { BROKEN } else { CALLER_LEFT };
        let version = account.version.as_ref();
        // Whole microseconds, in milliseconds.
        let latency_ms = (self.started.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        tracing::info!(
            target: "request",
            request_id = account.request_id.as_str(),
            method = self.method.as_str(),
            route,
            status = self.status.unwrap_or(unanswered),
            error_code = self.error_code,
            caller = account.caller,
            model = version.map(|version| version.name.as_str()),
            version = version.map(|version| tracing::field::display(&version.version)),
            reason = account.reason.map(Reason::as_str),
            rows = account.rows,
            latency_ms,
        );
    }
}
