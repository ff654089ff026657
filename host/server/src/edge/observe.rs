//! Around every request: its id, its time, its line in the log, and the body of its error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{Extensions, HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::field;

use super::access::Allowance;
use super::error::{ApiError, ErrorCode};
use super::idempotency::Answer;
use super::unread::Unread;
use super::{encoding, host, oip, problem};
use crate::observe::server_metrics::{GaugeGuard, ListenerMetrics, ServerMetrics};
use crate::observe::trace::{RequestSummary, TraceContext, Tracer};
use guesthouse_control::router::{Reason, Route};
use guesthouse_model::VersionId;
use guesthouse_runtime::clock;
use guesthouse_runtime::measure::Counter;
use guesthouse_runtime::stages::StageTimer;
use guesthouse_runtime::version::{Statistics, VersionMetrics};

/// The header that brings and returns a request's id.
pub(crate) const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The header that names the version: the one that answered, or the one that a caller asks for.
pub(crate) const VERSION_HEADER: HeaderName = HeaderName::from_static("x-model-version");

/// The header that says why a version answered.
const REASON_HEADER: HeaderName = HeaderName::from_static("x-route-reason");

/// The headers of the W3C's trace context; the last one is for answers.
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
const TRACE_RESPONSE: HeaderName = HeaderName::from_static("traceresponse");

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

    /// What a caller is told whose body has one that is none.
    pub(crate) fn malformed() -> ApiError {
        let message = "`request_id` must be a string of 1 to 128 visible ASCII characters";
        ApiError::malformed(message)
    }

    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID_HEADER).and_then(|id| id.to_str().ok());
        given.and_then(Self::parse).unwrap_or_else(|| Self(clock::new_id().to_string()))
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
    /// Where the version counts the answer, and the version's role.
    measured: Option<(Arc<VersionMetrics>, Arc<Statistics>, &'static str)>,
    /// The trace that the request belongs to.
    pub(crate) traced: Option<TraceContext>,
    /// What the limits say that it met.
    pub(crate) allowance: Allowance,
}

impl Account {
    /// The account of a request that nothing is known of but its headers.
    pub(crate) fn of(request: &Request) -> Self {
        Self::of_head(request.headers(), request.extensions())
    }

    /// The same by what stands before the body.
    pub(super) fn of_head(headers: &HeaderMap, extensions: &Extensions) -> Self {
        let request_id = RequestId::of(headers);
        let traced = extensions.get::<TraceContext>().cloned();
        let (caller, version, reason, measured) = (None, None, None, None);
        let allowance = Allowance::default();
        Self { request_id, caller, version, reason, rows: 0, measured, traced, allowance }
    }

    /// The answer had been given: the version that gave it has counted it then.
    pub(super) fn answered_before(&mut self, answer: &Answer) {
        self.version = Some(answer.version.clone());
        self.reason = Some(answer.reason);
        self.rows = answer.rows;
        self.measured = None;
    }

    /// A version was chosen.
    pub(crate) fn route_to(&mut self, route: &Route) {
        self.version = Some(route.version.id().clone());
        self.reason = Some(route.reason);
        let (measured, statistics) = (route.version.metrics(), route.version.statistics());
        self.measured = Some((Arc::clone(measured), Arc::clone(statistics), route.role.as_str()));
    }

    /// Who tells what the request goes through.
    pub(super) fn timer(&self) -> StageTimer {
        // Of the highest level, so that it is there at every: what goes wrong is logged with the id.
        let span = tracing::error_span!("predict", request_id = self.request_id.as_str());
        StageTimer { span, recorder: self.traced.as_ref().and_then(TraceContext::recorder) }
    }

    /// What every answer says of its request beside what was asked for.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        self.request_id.insert_into(headers);
        self.tell_route(headers);
        self.tell_trace(headers);
        self.allowance.tell(headers);
    }

    fn tell_trace(&self, headers: &mut HeaderMap) {
        let response = self.traced.as_ref().and_then(TraceContext::response_header);
        if let Some(value) = response.and_then(|value| HeaderValue::from_str(&value).ok()) {
            headers.insert(TRACE_RESPONSE, value);
        }
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

/// The answer, with what the line in the log is to say of it.
pub(super) fn answered(outcome: Result<Response, ApiError>, account: Account) -> Response {
    let mut response = outcome.unwrap_or_else(IntoResponse::into_response);
    response.extensions_mut().insert(account);
    response
}

/// By which listener something came.
#[derive(Debug, Clone)]
pub enum Way {
    /// The callers'.
    Public(Arc<ServerMetrics>),
    /// The same callers' by gRPC.
    Grpc(Arc<ServerMetrics>),
    /// The operators'.
    Admin(Arc<ServerMetrics>),
}

impl Way {
    /// Where it is counted.
    pub(super) fn meters(&self) -> &ListenerMetrics {
        match self {
            Self::Public(meters) => &meters.public,
            Self::Grpc(meters) => &meters.grpc,
            Self::Admin(meters) => &meters.admin,
        }
    }
}

/// What is done around every request of a listener.
#[derive(Debug, Clone)]
pub struct Around {
    /// By which listener they come.
    pub way: Way,
    /// The largest body that is accepted.
    pub largest: usize,
    /// Where spans come from.
    pub tracer: Option<Arc<Tracer>>,
}

/// Give the request an id and the answer its log line; refuse requests for nobody in particular; write
/// the bodies of errors, and see to it that they arrive.
pub(crate) async fn each_request(
    State(Around { way, largest, tracer }): State<Around>,
    mut request: Request,
    next: Next,
) -> Response {
    let _in_flight = GaugeGuard::new(&way.meters().in_flight);
    let endpoint = request.extensions().get::<MatchedPath>().cloned().map(Endpoint::Pattern);
    let mut line = Line::begin(&mut request, endpoint, way.clone(), tracer.as_deref());
    let unread = Unread::of(&mut request);
    let is_of_oip = oip::has_path(request.uri().path());
    let wants_problem = !is_of_oip && problem::wants_problem(request.headers());
    let mut response = match host::check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            drop(request);
            error.into_response()
        }
    };

    if let Some(account) = response.extensions_mut().remove::<Account>() {
        line.account = account;
    }
    let id = &line.account.request_id;
    let error = response.extensions_mut().remove::<ApiError>();
    let error = error.or_else(|| ApiError::of_library(response.status()));
    let was_too_slow = error.as_ref().is_some_and(|error| error.code == ErrorCode::RequestTimeout);
    if let Some(leftover) = unread.leftover(largest, was_too_slow) {
        response.extensions_mut().insert(leftover);
    }
    if let Some(error) = &error {
        let (body, media_type) = if wants_problem {
            (to_json(&error.problem(id.as_str())), "application/problem+json")
        } else if is_of_oip {
            (to_json(&error.protocol_body(id.as_str())), "application/json")
        } else {
            (to_json(&error.body(id.as_str())), "application/json")
        };
        *response.body_mut() = body.into();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    }
    let endpoint = line.endpoint.as_ref().map_or("", Endpoint::as_str);
    if is_of_oip && (error.is_some() || !oip::is_inference(endpoint)) {
        response.extensions_mut().insert(encoding::Plain);
    }
    line.account.tell(response.headers_mut());
    line.status = Some(response.status().as_u16());
    line.error_code = error.map(|error| error.code.as_str());
    response
}

fn to_json(body: &impl serde::Serialize) -> String {
    serde_json::to_string(body).expect("bodies of errors are texts and numbers")
}

/// What stands in the log for a request whose caller left before it was answered: nginx's word.
pub(super) const CALLER_LEFT: u16 = 499;

/// What stands in the log for a request that the server broke down on.
const BROKEN: u16 = 500;

/// What a request asks for, as far as there is such a thing: never what its caller made up.
#[derive(Debug, Clone)]
pub(super) enum Endpoint {
    /// The pattern of a path.
    Pattern(MatchedPath),
    /// The path of a gRPC method.
    Method(Arc<str>),
}

impl Endpoint {
    fn as_str(&self) -> &str {
        match self {
            Self::Pattern(path) => path.as_str(),
            Self::Method(path) => path,
        }
    }
}

/// Endpoints that probes ask every second and that say the same; a change of readiness has a line of
/// its own.
const PROBED: [&str; 10] = [
    "/healthz",
    "/readyz",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{model}/ready",
    "/v2/models/{model}/versions/{version}/ready",
    "/grpc.health.v1.Health/Check",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ModelReady",
];

/// The line of a request, logged when this is dropped: after the answer, or without one.
pub(super) struct Line {
    started: Instant,
    way: Way,
    method: &'static str,
    endpoint: Option<Endpoint>,
    pub(super) account: Account,
    /// Of the answer, once there is one; of gRPC's, what it would have been over HTTP.
    pub(super) status: Option<u16>,
    pub(super) error_code: Option<&'static str>,
    /// The name of gRPC's own status.
    pub(super) grpc_status: Option<&'static str>,
    /// Whether it is one of many on the same stream, which has a line of its own.
    is_part: bool,
}

impl Line {
    pub(super) fn begin(
        request: &mut Request,
        endpoint: Option<Endpoint>,
        way: Way,
        tracer: Option<&Tracer>,
    ) -> Self {
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        if let Some(traced) = TraceContext::start(tracer, header(TRACE_PARENT), header(TRACE_STATE))
        {
            request.extensions_mut().insert(traced);
        }
        let account = Account::of(request);
        // Everybody who asks the request for its id from now on gets the same one.
        account.request_id.insert_into(request.headers_mut());
        Self {
            started: Instant::now(),
            way,
            method: known_method(request.method()),
            endpoint,
            account,
            status: None,
            error_code: None,
            grpc_status: None,
            is_part: false,
        }
    }

    /// The line of one message of a stream.
    pub(super) fn part(account: Account, endpoint: Endpoint, way: Way) -> Self {
        let (status, error_code, grpc_status) = (None, None, None);
        let (started, endpoint) = (Instant::now(), Some(endpoint));
        Self {
            started,
            way,
            method: "POST",
            endpoint,
            account,
            status,
            error_code,
            grpc_status,
            is_part: true,
        }
    }
}

impl Drop for Line {
    /// The route is the endpoint's pattern, never the path that the caller sent.
    fn drop(&mut self) {
        let unanswered = if std::thread::panicking() { BROKEN } else { CALLER_LEFT };
        let status = self.status.unwrap_or(unanswered);
        let time = self.started.elapsed();
        self.count(status, time);
        let account = &self.account;
        let route = self.endpoint.as_ref().map(Endpoint::as_str);
        let version = account.version.as_ref();
        let trace = account.traced.as_ref().and_then(TraceContext::spans);
        if let (Some(trace), false) = (trace, self.is_part) {
            let version = version.map(|id| (id.name.as_str(), id.version.to_string()));
            let (method, error_code) = (self.method, self.error_code);
            let reason = account.reason.map(Reason::as_str);
            trace.finish(&RequestSummary { method, route, status, error_code, version, reason });
        }
        if route.is_some_and(|route| PROBED.contains(&route)) {
            return;
        }
        // Whole microseconds, in milliseconds.
        let latency_ms = (time.as_secs_f64() * 1e6).round() / 1e3;
        tracing::info!(
            target: "request",
            request_id = account.request_id.as_str(),
            trace_id = account.traced.as_ref().map(|traced| field::display(traced.trace_id())),
            method = self.method,
            route,
            status,
            grpc_status = self.grpc_status,
            error_code = self.error_code,
            caller = account.caller,
            model = version.map(|version| version.name.as_str()),
            version = version.map(|version| field::display(&version.version)),
            reason = account.reason.map(Reason::as_str),
            rows = account.rows,
            latency_ms,
        );
    }
}

impl Line {
    fn count(&self, status: u16, time: Duration) {
        let meters = self.way.meters();
        let route = self.endpoint.as_ref().map_or("none", Endpoint::as_str);
        if !self.is_part {
            meters.answers.with(route, |statuses| statuses.with(&status, Counter::count));
            if let Some(status) = self.grpc_status {
                meters.calls.with(route, |statuses| statuses.with(&status, Counter::count));
            }
        }
        if let Some(code) = self.error_code {
            meters.errors.with(&code, Counter::count);
        }
        let Some((measured, statistics, role)) = &self.account.measured else { return };
        if status < 400 {
            statistics.record_success(time);
        } else {
            statistics.record_failure(time);
        }
        measured.requests.with(route, |counts| counts.with(&(*role, status), Counter::count));
        measured.total.with(role, |times| times.record(time));
    }
}

/// The word of a method that there is; whatever else a caller has sent is one word.
fn known_method(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| method.as_str() == *known).unwrap_or("_OTHER")
}
