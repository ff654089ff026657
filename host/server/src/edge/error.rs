//! Decides the status, code and message of every error that a client receives, over HTTP and gRPC.
//!
//! The codes are listed with their meaning in [`ErrorCode`], and with their statuses in the reference that
//! is printed from it ([`reference`](reference())).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tonic::Code;

use crate::api::error::{ErrorBody, ErrorDetail, Problem, ProtocolError};
pub(crate) use crate::api::error::{ErrorCode, ValueDetail as Detail};
use guesthouse_control::router::RouteError;
use guesthouse_model::contract::SignatureChange;
use guesthouse_model::record::{RecordError, TooManyValues};
use guesthouse_runtime::guest::{Fault, MAX_REJECTIONS};
use guesthouse_runtime::inference::PredictError;
use guesthouse_runtime::version::BreakerRefusal;
use guesthouse_runtime::version::admission::ShedReason;

/// The most details of a request of which every row failed.
const MAX_DETAILS: usize = 20;

impl ErrorCode {
    /// Whether its answers say when to come back.
    pub(crate) fn tells_when(self) -> bool {
        self.is_temporary() || self == Self::RateLimited
    }

    /// Whether the same request may succeed after a while.
    fn is_temporary(self) -> bool {
        matches!(
            self,
            Self::Overloaded | Self::NotReady | Self::IdempotencyConflict | Self::TooManyFailures
        )
    }

    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::MalformedRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Conflict | Self::RevisionConflict | Self::IdempotencyConflict => {
                StatusCode::CONFLICT
            }
            Self::UnacceptableInput
            | Self::UnacceptableArtifact
            | Self::ContractViolation
            | Self::IdempotencyMismatch => StatusCode::UNPROCESSABLE_ENTITY,
            Self::RateLimited | Self::TooManyFailures => StatusCode::TOO_MANY_REQUESTS,
            Self::InsufficientStorage => StatusCode::INSUFFICIENT_STORAGE,
            Self::ModelFailure | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Overloaded | Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// What it is called in gRPC.
    pub(crate) fn grpc(self) -> Code {
        match self {
            Self::MalformedRequest
            | Self::UnacceptableInput
            | Self::UnacceptableArtifact
            | Self::IdempotencyMismatch => Code::InvalidArgument,
            Self::Unauthorized => Code::Unauthenticated,
            Self::Forbidden => Code::PermissionDenied,
            Self::NotFound => Code::NotFound,
            Self::MethodNotAllowed | Self::UnsupportedMediaType => Code::Unimplemented,
            Self::RequestTimeout | Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::PayloadTooLarge
            | Self::RateLimited
            | Self::TooManyFailures
            | Self::InsufficientStorage => Code::ResourceExhausted,
            Self::Conflict | Self::ContractViolation => Code::FailedPrecondition,
            Self::RevisionConflict | Self::IdempotencyConflict => Code::Aborted,
            Self::ModelFailure | Self::Internal => Code::Internal,
            Self::Overloaded | Self::NotReady => Code::Unavailable,
        }
    }
}

/// An error on its way to a caller.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(crate) details: Vec<Detail>,
    /// What callers of a model would notice of a change.
    pub(crate) violations: Vec<SignatureChange>,
    /// When the caller may come back, in seconds, if the code is one that says so.
    pub(crate) retry_seconds: u64,
    /// Whether there is no such model, which some protocols have their own words for.
    pub(crate) is_unknown_model: bool,
}

impl ApiError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let (details, violations, retry_seconds) = (Vec::new(), Vec::new(), 1);
        let message = message.into();
        Self { code, message, details, violations, retry_seconds, is_unknown_model: false }
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::MalformedRequest, message)
    }

    pub(crate) fn no_such_endpoint() -> Self {
        Self::new(ErrorCode::NotFound, "there is no such endpoint")
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(ErrorCode::MethodNotAllowed, "this endpoint does not take this method")
    }

    /// For a gRPC method that there is not.
    pub(super) fn no_such_method() -> Self {
        Self::new(ErrorCode::MethodNotAllowed, "there is no such method")
    }

    pub(crate) fn not_ready() -> Self {
        Self::new(ErrorCode::NotReady, "not ready")
    }

    /// For a request that a stopping server does not finish.
    pub(crate) fn going_down() -> Self {
        Self::new(ErrorCode::NotReady, "the server is going down")
    }

    fn suspended(time: Duration) -> Self {
        let message = "the model's version keeps failing and is suspended";
        Self::new(ErrorCode::NotReady, message).retry_after(time)
    }

    fn caller_suspended(time: Duration) -> Self {
        let message =
            "the model's version keeps failing on your requests and takes none for a while";
        Self::new(ErrorCode::TooManyFailures, message).retry_after(time)
    }

    /// When the caller may come back, if the code is one that says so.
    pub(crate) fn retry_delay(&self) -> Duration {
        Duration::from_secs(self.retry_seconds)
    }

    /// Rounded up: whoever comes back earlier is refused again.
    fn retry_after(self, time: Duration) -> Self {
        Self { retry_seconds: (time + Duration::from_millis(999)).as_secs().max(1), ..self }
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(ErrorCode::Unauthorized, "a valid key is needed in X-API-Key or Authorization")
    }

    /// For an answer that the HTTP library gave by itself: to a path that is not UTF-8.
    pub(crate) fn of_library(status: StatusCode) -> Option<Self> {
        if status.is_client_error() {
            Some(Self::malformed("the request is malformed"))
        } else if status.is_server_error() {
            Some(Self::internal())
        } else {
            None
        }
    }

    pub(super) fn with_details(code: ErrorCode, details: Vec<Detail>) -> Self {
        let message = details.first().map_or("the input is not acceptable".to_owned(), |first| {
            format!("row {}: `{}` {}", first.row, first.field, first.reason)
        });
        Self { details, ..Self::new(code, message) }
    }

    /// A bug of the host.
    pub(crate) fn internal() -> Self {
        Self::new(ErrorCode::Internal, "the server failed on this request")
    }

    /// The error of a request of which every row failed by itself.
    pub(super) fn all_rows_failed(failed: &BTreeMap<usize, Self>) -> Self {
        let all = |code| failed.values().all(|error| error.code == code);
        let code = [ErrorCode::MalformedRequest, ErrorCode::ModelFailure]
            .into_iter()
            .find(|code| all(*code))
            .unwrap_or(ErrorCode::UnacceptableInput);
        let details = failed.values().flat_map(|error| error.details.iter().cloned());
        let details: Vec<Detail> = details.take(MAX_DETAILS).collect();
        match (details.is_empty(), failed.values().next()) {
            (true, Some(first)) => Self::new(code, first.message.clone()),
            _ => Self::with_details(code, details),
        }
    }

    /// The same error, told of the rows of a request rather than of a batch.
    pub(crate) fn shift_rows(mut self, by: usize) -> Self {
        for detail in &mut self.details {
            detail.row += by;
        }
        if by > 0 && !self.details.is_empty() {
            self = Self::with_details(self.code, self.details);
        }
        self
    }

    /// The body for a request with this id.
    pub(crate) fn body(&self, request_id: &str) -> ErrorBody {
        let details = if self.details.is_empty() {
            self.violations.iter().map(|change| ErrorDetail::Contract(change.into())).collect()
        } else {
            self.details.iter().cloned().map(ErrorDetail::Value).collect()
        };
        ErrorBody {
            error_code: self.code.into(),
            message: self.message.clone(),
            request_id: request_id.to_owned(),
            details,
        }
    }

    /// The body in the form of the Open Inference Protocol.
    pub(crate) fn protocol_body(&self, request_id: &str) -> ProtocolError {
        let ErrorBody { error_code, message: error, request_id, details } = self.body(request_id);
        ProtocolError { error_code, details, request_id, error }
    }

    /// The body as problem details (RFC 9457).
    pub(crate) fn problem(&self, request_id: &str) -> Problem {
        let status = self.code.status();
        Problem {
            kind: format!("urn:guesthouse:error:{}", self.code.as_str()),
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            detail: self.message.clone(),
            body: self.body(request_id),
        }
    }
}

/// The body is written by [`super::observe::each_request`], which knows the request's id.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        if self.code.is_temporary() {
            response.headers_mut().insert(RETRY_AFTER, self.retry_seconds.into());
        }
        if self.code == ErrorCode::Unauthorized {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<RecordError> for ApiError {
    fn from(error: RecordError) -> Self {
        let code = match &error {
            RecordError::Malformed(_) => ErrorCode::MalformedRequest,
            RecordError::Unacceptable(_) => ErrorCode::UnacceptableInput,
        };
        let details = error.issues().iter().map(|issue| Detail {
            row: issue.row,
            field: issue.field.clone(),
            reason: issue.reason.clone(),
        });
        Self::with_details(code, details.collect())
    }
}

impl From<TooManyValues> for ApiError {
    fn from(_too_large: TooManyValues) -> Self {
        Self::new(ErrorCode::ModelFailure, "the model's answer is too large for JSON")
    }
}

impl From<RouteError> for ApiError {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::UnknownModel => {
                let error = Self::new(ErrorCode::NotFound, "there is no such model");
                Self { is_unknown_model: true, ..error }
            }
            RouteError::NoSuchVersion => {
                Self::new(ErrorCode::NotFound, "the model has no version that matches")
            }
            RouteError::EmptyChannel => {
                Self::new(ErrorCode::NotFound, "there is no version in this channel now")
            }
            RouteError::Retired => Self::new(ErrorCode::NotFound, "the model's version is retired"),
            RouteError::NotReady => {
                Self::new(ErrorCode::NotReady, "the model's version is not ready")
            }
            RouteError::Suspended(time) => Self::suspended(time),
            RouteError::CallerSuspended(time) => Self::caller_suspended(time),
        }
    }
}

impl From<ShedReason> for ApiError {
    fn from(reason: ShedReason) -> Self {
        let why = match reason {
            ShedReason::Limit => {
                "the model's version has as many requests as it can answer in time"
            }
            ShedReason::Batch => "there is room for single requests only",
            ShedReason::Candidate => "the model's stable version needs the room",
            ShedReason::Late => "there would be no answer in the time that is given",
        };
        Self::new(ErrorCode::Overloaded, why)
    }
}

impl From<PredictError> for ApiError {
    fn from(error: PredictError) -> Self {
        match error {
            PredictError::Overloaded => Self::new(ErrorCode::Overloaded, "too many requests wait"),
            PredictError::QueueTimeout => {
                let message = "no thread was free in the time that the request may wait";
                Self::new(ErrorCode::Overloaded, message)
            }
            PredictError::Stopped => Self::not_ready(),
            PredictError::Suspended(BreakerRefusal::Version(time)) => Self::suspended(time),
            PredictError::Suspended(BreakerRefusal::Caller(time)) => Self::caller_suspended(time),
            PredictError::Quarantined => {
                let message = "the model has failed on this input several times; it is not run again \
                               for a while";
                Self::new(ErrorCode::ModelFailure, message)
            }
            PredictError::Expired | PredictError::Guest(Fault::Deadline | Fault::Cancelled) => {
                Self::new(ErrorCode::DeadlineExceeded, "there was no answer in time")
            }
            PredictError::Guest(
                Fault::Rejected(rejections) | Fault::NonFiniteInput(rejections),
            ) => {
                let rejections = rejections.into_iter().take(MAX_REJECTIONS);
                let details = rejections.map(|rejection| Detail {
                    row: rejection.row,
                    field: rejection.input,
                    reason: rejection.reason,
                });
                Self::with_details(ErrorCode::UnacceptableInput, details.collect())
            }
            PredictError::Guest(
                Fault::Failed(_) | Fault::Trap { .. } | Fault::OutOfMemory | Fault::BadOutput(_),
            ) => Self::new(ErrorCode::ModelFailure, "the model failed on this request"),
            PredictError::Guest(Fault::Host(_)) => Self::internal(),
        }
    }
}

/// The reference of error codes as a Markdown table, ordered by status.
pub fn reference() -> String {
    let mut codes = ErrorCode::ALL;
    codes.sort_by_key(|code| code.status());
    let mut text =
        "| error_code | HTTP status | gRPC status | meaning |\n|---|---|---|---|\n".to_owned();
    for code in codes {
        let (status, grpc, meaning) = (code.status().as_u16(), code.grpc(), code.meaning());
        // The variants are named after the words of the specification.
        let grpc = screaming_snake_case(&format!("{grpc:?}"));
        writeln!(text, "| `{}` | {status} | `{grpc}` | {meaning} |", code.as_str())
            .expect("a string takes it");
    }
    text
}

fn screaming_snake_case(camel_case: &str) -> String {
    let mut snake = String::new();
    for letter in camel_case.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_uppercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_statuses_of_both_protocols() {
        let text = reference();
        for row in [
            "| `malformed_request` | 400 | `INVALID_ARGUMENT` | The request is not valid",
            "| `deadline_exceeded` | 504 | `DEADLINE_EXCEEDED` |",
        ] {
            assert!(text.contains(row), "{row} is not in\n{text}");
        }
        assert_eq!(text.lines().count(), 2 + ErrorCode::ALL.len());
    }
}
