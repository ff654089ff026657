//! The access log: one line for each request, and what is gathered for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request};
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method};
use axum::response::{IntoResponse as _, Response};
use guesthouse_control::router::{Reason, Route};
use guesthouse_model::VersionId;
use guesthouse_runtime::measure::Counter;
use guesthouse_runtime::stages::StageTimer;
use guesthouse_runtime::version::{Statistics, VersionMetrics};
use tracing::field;

use super::error::ApiError;
use super::idempotency::StoredAnswer;
use super::listener_kind::ListenerKind;
use super::rate_limits::RateLimitReport;
use super::request_id::RequestId;
use crate::observe::trace::{RequestSummary, TraceContext, Tracer};

/// Names the version that answered, or the one that a caller asks for.
pub(crate) const VERSION_HEADER: HeaderName = HeaderName::from_static("x-model-version");

/// Says why a version answered.
const REASON_HEADER: HeaderName = HeaderName::from_static("x-route-reason");

/// The headers of W3C's trace context: two of requests, one of responses.
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
const TRACE_RESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// What is known of a request: for its line of the access log, its metrics, and the headers of its
/// response.
#[derive(Debug, Clone)]
pub(crate) struct RequestLog {
    /// The caller's, from the body or a header, or a new one.
    pub(crate) request_id: RequestId,
    /// The name of the caller's key.
    pub(crate) caller: Option<String>,
    pub(crate) version: Option<VersionId>,
    pub(crate) reason: Option<Reason>,
    pub(crate) rows: usize,
    /// The metrics of the version that is to answer, and its role.
    version_metrics: Option<(Arc<VersionMetrics>, Arc<Statistics>, &'static str)>,
    pub(crate) trace: Option<TraceContext>,
    /// The state of the rate limits that the request was charged to.
    pub(crate) rate_limits: RateLimitReport,
}

impl RequestLog {
    /// What the head of a request says about it.
    pub(crate) fn new(headers: &HeaderMap, extensions: &Extensions) -> Self {
        Self {
            request_id: RequestId::from_headers(headers),
            caller: None,
            version: None,
            reason: None,
            rows: 0,
            version_metrics: None,
            trace: extensions.get::<TraceContext>().cloned(),
            rate_limits: RateLimitReport::default(),
        }
    }

    /// Note that a stored answer is replayed. The version counted it when it gave the answer.
    pub(super) fn set_replay(&mut self, answer: &StoredAnswer) {
        self.version = Some(answer.version.clone());
        self.reason = Some(answer.reason);
        self.rows = answer.rows;
        self.version_metrics = None;
    }

    /// Note the version that the request is routed to.
    pub(crate) fn set_route(&mut self, route: &Route) {
        self.version = Some(route.version.id().clone());
        self.reason = Some(route.reason);
        let (metrics, statistics) = (route.version.metrics(), route.version.statistics());
        let role = route.role.as_str();
        self.version_metrics = Some((Arc::clone(metrics), Arc::clone(statistics), role));
    }

    /// Measures the stages of the request.
    pub(super) fn stage_timer(&self) -> StageTimer {
        // At the highest level, so that no filter disables it: errors are logged with the request's id.
        let span = tracing::error_span!("predict", request_id = self.request_id.as_str());
        StageTimer { span, recorder: self.trace.as_ref().and_then(TraceContext::recorder) }
    }

    /// Write the headers that every response has.
    pub(super) fn write_headers(&self, headers: &mut HeaderMap) {
        self.request_id.insert_into(headers);
        let version = self.version.as_ref().map(|id| id.version.to_string());
        if let Some(version) = version.and_then(|version| HeaderValue::from_str(&version).ok()) {
            headers.insert(VERSION_HEADER, version);
        }
        if let Some(reason) = self.reason {
            headers.insert(REASON_HEADER, HeaderValue::from_static(reason.as_str()));
        }
        let response = self.trace.as_ref().and_then(TraceContext::response_header);
        if let Some(value) = response.and_then(|value| HeaderValue::from_str(&value).ok()) {
            headers.insert(TRACE_RESPONSE, value);
        }
        self.rate_limits.write_headers(headers);
    }

    /// The response, which carries this log to the middleware.
    pub(super) fn attach_to(self, outcome: Result<Response, ApiError>) -> Response {
        let mut response = outcome.unwrap_or_else(|error| error.into_response());
        response.extensions_mut().insert(self);
        response
    }
}

/// The status that is logged for a request whose caller disconnected before the response: nginx's.
pub(super) const CALLER_DISCONNECTED: u16 = 499;

/// The status that is logged for a request on which the server panicked.
const PANICKED: u16 = 500;

/// The endpoint of a request. It is one of a fixed set, and never text that a caller chose, so that it is
/// safe as a label of metrics.
#[derive(Debug, Clone)]
pub(super) enum Endpoint {
    /// The pattern of a path.
    Pattern(MatchedPath),
    /// The path of a gRPC method.
    Method(Arc<str>),
}

impl Endpoint {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Pattern(path) => path.as_str(),
            Self::Method(path) => path,
        }
    }
}

/// Endpoints of health checks. They are not logged, because probes call them every second; changes of
/// readiness are logged elsewhere.
const HEALTH_CHECKS: [&str; 10] = [
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

/// Writes a request's line of the access log and updates the metrics when it is dropped: after the
/// response, or without one.
pub(super) struct RequestLogGuard {
    started: Instant,
    listener: ListenerKind,
    method: &'static str,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) log: RequestLog,
    /// The status of the response, if there is one. For a gRPC call it is the status that HTTP would have.
    pub(super) status: Option<u16>,
    pub(super) error_code: Option<&'static str>,
    /// The name of the status of a gRPC call.
    pub(super) grpc_status: Option<&'static str>,
    /// Whether it is one message of a stream. The stream has a line of its own.
    is_stream_message: bool,
}

impl RequestLogGuard {
    /// Start to measure a request. Its id and its trace become part of it, so that handlers find them.
    pub(super) fn new(
        request: &mut Request,
        endpoint: Option<Endpoint>,
        listener: ListenerKind,
        tracer: Option<&Tracer>,
    ) -> Self {
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        if let Some(trace) = TraceContext::start(tracer, header(TRACE_PARENT), header(TRACE_STATE))
        {
            request.extensions_mut().insert(trace);
        }
        let log = RequestLog::new(request.headers(), request.extensions());
        log.request_id.insert_into(request.headers_mut());
        Self {
            started: Instant::now(),
            listener,
            method: known_method(request.method()),
            endpoint,
            log,
            status: None,
            error_code: None,
            grpc_status: None,
            is_stream_message: false,
        }
    }

    /// Start to measure one message of a stream.
    pub(super) fn for_stream_message(
        log: RequestLog,
        endpoint: Endpoint,
        listener: ListenerKind,
    ) -> Self {
        Self {
            started: Instant::now(),
            listener,
            method: "POST",
            endpoint: Some(endpoint),
            log,
            status: None,
            error_code: None,
            grpc_status: None,
            is_stream_message: true,
        }
    }
}

impl Drop for RequestLogGuard {
    fn drop(&mut self) {
        let unanswered = if std::thread::panicking() { PANICKED } else { CALLER_DISCONNECTED };
        let status = self.status.unwrap_or(unanswered);
        let time = self.started.elapsed();
        self.update_metrics(status, time);
        let log = &self.log;
        let route = self.endpoint.as_ref().map(Endpoint::as_str);
        let version = log.version.as_ref();
        let trace = log.trace.as_ref().and_then(TraceContext::spans);
        if let (Some(trace), false) = (trace, self.is_stream_message) {
            let version = version.map(|id| (id.name.as_str(), id.version.to_string()));
            let (method, error_code) = (self.method, self.error_code);
            let reason = log.reason.map(Reason::as_str);
            trace.finish(&RequestSummary { method, route, status, error_code, version, reason });
        }
        if route.is_some_and(|route| HEALTH_CHECKS.contains(&route)) {
            return;
        }
        // Whole microseconds, in milliseconds.
        let latency_ms = (time.as_secs_f64() * 1e6).round() / 1e3;
        tracing::info!(
            target: "request",
            request_id = log.request_id.as_str(),
            trace_id = log.trace.as_ref().map(|trace| field::display(trace.trace_id())),
            method = self.method,
            route,
            status,
            grpc_status = self.grpc_status,
            error_code = self.error_code,
            caller = log.caller,
            model = version.map(|version| version.name.as_str()),
            version = version.map(|version| field::display(&version.version)),
            reason = log.reason.map(Reason::as_str),
            rows = log.rows,
            latency_ms,
        );
    }
}

impl RequestLogGuard {
    fn update_metrics(&self, status: u16, time: Duration) {
        let metrics = self.listener.metrics();
        let route = self.endpoint.as_ref().map_or("none", Endpoint::as_str);
        if !self.is_stream_message {
            metrics.answers.with(route, |statuses| statuses.with(&status, Counter::count));
            if let Some(status) = self.grpc_status {
                metrics.calls.with(route, |statuses| statuses.with(&status, Counter::count));
            }
        }
        if let Some(code) = self.error_code {
            metrics.errors.with(&code, Counter::count);
        }
        let Some((measured, statistics, role)) = &self.log.version_metrics else {
            return;
        };
        if status < 400 {
            statistics.record_success(time);
        } else {
            statistics.record_failure(time);
        }
        measured.requests.with(route, |counts| counts.with(&(*role, status), Counter::count));
        measured.total.with(role, |times| times.record(time));
    }
}

/// The method's name; `_OTHER` for a name that a caller made up.
fn known_method(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| method.as_str() == *known).unwrap_or("_OTHER")
}
