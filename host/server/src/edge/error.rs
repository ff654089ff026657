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

use crate::api::error::{ErrorBody, ErrorDetail, Problem, ProtocolError, RowError};
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
    /// Whether responses with the code have `Retry-After`.
    pub(crate) fn has_retry_delay(self) -> bool {
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

    /// The gRPC status code.
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

/// An error that is reported to a caller.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(crate) details: Vec<Detail>,
    /// The incompatible changes of a model's signature.
    pub(crate) violations: Vec<SignatureChange>,
    /// The value of `Retry-After`, in seconds, if the code has one.
    pub(crate) retry_seconds: u64,
    /// Whether the model does not exist, for which the Open Inference Protocol has its own message.
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
        Self::new(ErrorCode::MethodNotAllowed, "this endpoint does not support this method")
    }

    /// For a gRPC method that does not exist.
    pub(super) fn no_such_method() -> Self {
        Self::new(ErrorCode::MethodNotAllowed, "there is no such method")
    }

    pub(crate) fn not_ready() -> Self {
        Self::new(ErrorCode::NotReady, "not ready")
    }

    /// For a request that a stopping server interrupts.
    pub(crate) fn stopping() -> Self {
        Self::new(ErrorCode::NotReady, "the server is stopping")
    }

    fn suspended(time: Duration) -> Self {
        let message = "the model's version keeps failing and is suspended";
        Self::new(ErrorCode::NotReady, message).retry_after(time)
    }

    fn caller_suspended(time: Duration) -> Self {
        let message =
            "the model's version keeps failing on your requests and is suspended for them";
        Self::new(ErrorCode::TooManyFailures, message).retry_after(time)
    }

    /// When the caller may retry, if the code has a retry delay.
    pub(crate) fn retry_delay(&self) -> Duration {
        Duration::from_secs(self.retry_seconds)
    }

    /// Rounded up, because an earlier retry would be rejected again.
    fn retry_after(self, time: Duration) -> Self {
        Self { retry_seconds: (time + Duration::from_millis(999)).as_secs().max(1), ..self }
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(ErrorCode::Unauthorized, "a valid key is needed in X-API-Key or Authorization")
    }

    /// For an answer that the HTTP library gave by itself: to a path that is not UTF-8.
    pub(crate) fn from_library(status: StatusCode) -> Option<Self> {
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

    /// The error with row numbers of the whole request, in which the batch begins at row `by`.
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

    /// The error of one row of a batch, whose other rows may have succeeded.
    pub(crate) fn row_body(&self) -> RowError {
        let ErrorBody { error_code, message, details, .. } = self.body("");
        RowError { error_code, message, details }
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

/// The middleware writes the body, because it knows the id of the request.
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
            ShedReason::Limit => "the model's version is at its limit of concurrent requests",
            ShedReason::Batch => "batches are shed under load",
            ShedReason::Candidate => {
                "requests to a candidate are shed while the stable version is under load"
            }
            ShedReason::Late => "the request would not be answered before its deadline",
        };
        Self::new(ErrorCode::Overloaded, why)
    }
}

impl From<PredictError> for ApiError {
    fn from(error: PredictError) -> Self {
        match error {
            PredictError::Overloaded => Self::new(ErrorCode::Overloaded, "the queue is full"),
            PredictError::QueueTimeout => {
                let message = "the request timed out in the queue";
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
                Self::new(
                    ErrorCode::DeadlineExceeded,
                    "the deadline passed before there was an answer",
                )
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

/// The reference of error codes as a Markdown table.
pub fn reference() -> String {
    let mut text = "| Code | HTTP | gRPC | Cause | Retry |\n|---|---|---|---|---|\n".to_owned();
    for code in ErrorCode::ALL {
        let (status, cause, retry) = (code.status().as_u16(), code.cause(), code.retry());
        // The variants are named after the words of the specification.
        let grpc = screaming_snake_case(&format!("{:?}", code.grpc()));
        writeln!(text, "| `{}` | {status} | {grpc} | {cause} | {retry} |", code.as_str())
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
            "| `malformed_request` | 400 | INVALID_ARGUMENT | The body is not valid JSON",
            "| `deadline_exceeded` | 504 | DEADLINE_EXCEEDED |",
        ] {
            assert!(text.contains(row), "{row} is not in\n{text}");
        }
        assert_eq!(text.lines().count(), 2 + ErrorCode::ALL.len());
    }
}
