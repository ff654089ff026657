//! The error codes, and the bodies of error responses.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::OpenEnum;
use guesthouse_model::contract;

/// The kind of an error, for programs. The words are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[expect(missing_docs, reason = "`cause` is the documentation")]
pub enum ErrorCode {
    MalformedRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    PayloadTooLarge,
    UnsupportedMediaType,
    UnacceptableInput,
    RateLimited,
    TooManyFailures,
    ModelFailure,
    Internal,
    Overloaded,
    NotReady,
    DeadlineExceeded,
    Conflict,
    RevisionConflict,
    UnacceptableArtifact,
    ContractViolation,
    IdempotencyConflict,
    IdempotencyMismatch,
    InsufficientStorage,
}

impl ErrorCode {
    /// The word in the field `error_code`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedRequest => "malformed_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::PayloadTooLarge => "payload_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::UnacceptableInput => "unacceptable_input",
            Self::RateLimited => "rate_limited",
            Self::TooManyFailures => "too_many_failures",
            Self::ModelFailure => "model_failure",
            Self::Internal => "internal",
            Self::Overloaded => "overloaded",
            Self::NotReady => "not_ready",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Conflict => "conflict",
            Self::RevisionConflict => "revision_conflict",
            Self::UnacceptableArtifact => "unacceptable_artifact",
            Self::ContractViolation => "contract_violation",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::IdempotencyMismatch => "idempotency_mismatch",
            Self::InsufficientStorage => "insufficient_storage",
        }
    }

    /// When a response has the code, for the reference.
    #[expect(clippy::too_many_lines, reason = "a table with a text for each code")]
    pub fn cause(self) -> &'static str {
        match self {
            Self::MalformedRequest => {
                "The body is not valid JSON, or has a wrong type, a missing or unknown field \
                 or no rows; the version or query is malformed; the form or the compression \
                 is broken."
            }
            Self::Unauthorized => {
                "No key, or one that is not valid (any more); the response does not say \
                 which. `WWW-Authenticate` is set."
            }
            Self::Forbidden => {
                "The key's scopes do not include this model or, on the admin API, changing \
                 what is served."
            }
            Self::NotFound => "No such endpoint, model or version.",
            Self::MethodNotAllowed => "The endpoint has another method, named in `Allow`.",
            Self::RequestTimeout => "The body did not arrive in time.",
            Self::Conflict => {
                "(Admin) The state of the model does not allow the change: a rollout is in \
                 progress, a version is in use, not ready or has other bytes, and the like."
            }
            Self::RevisionConflict => {
                "(Admin) The model has been changed since the expected revision."
            }
            Self::PayloadTooLarge => {
                "The body is over the limit, compressed or decompressed, or has more than \
                 1,048,576 values."
            }
            Self::UnsupportedMediaType => {
                "The body is not JSON, nor a form or bytes that this endpoint and this model \
                 accept, or has a content encoding other than gzip, deflate and zstd."
            }
            Self::UnacceptableInput => {
                "The request is well-formed, but the model does not accept a value: too long, \
                 out of range, too many rows, or NaN or infinite in a row whose output then \
                 is not finite either."
            }
            Self::UnacceptableArtifact => {
                "(Admin) The file is not an artifact, or its version cannot be loaded or \
                 fails its golden examples."
            }
            Self::ContractViolation => {
                "(Admin) The version number promises callers more than the signature keeps; \
                 `details` has `bump` and `what`."
            }
            Self::IdempotencyConflict => {
                "A request with the same idempotency key is in progress. `Retry-After` is set."
            }
            Self::IdempotencyMismatch => "The idempotency key was used for a different request.",
            Self::RateLimited => {
                "Too many requests for this key or this model. `Retry-After` is set."
            }
            Self::TooManyFailures => {
                "The version keeps failing on this caller's requests and rejects them for a \
                 while. `Retry-After` is set."
            }
            Self::ModelFailure => {
                "The guest trapped, failed, or returned something other than its signature \
                 promises or a number that is not finite; or it did so three times on the \
                 same input, which is then not run for a minute."
            }
            Self::Internal => "A fault of the host.",
            Self::Overloaded => {
                "More requests, or more bytes of them, than can be answered in time. \
                 `Retry-After` is set."
            }
            Self::NotReady => {
                "Loading, failed to load, suspended, or shutting down. `Retry-After` is set."
            }
            Self::DeadlineExceeded => "No answer before the deadline.",
            Self::InsufficientStorage => "(Admin) The disk is full; nothing has changed.",
        }
    }

    /// Whether the same request can succeed later, for the reference.
    pub fn retry(self) -> &'static str {
        match self {
            Self::MalformedRequest
            | Self::Unauthorized
            | Self::Forbidden
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::Conflict
            | Self::PayloadTooLarge
            | Self::UnsupportedMediaType
            | Self::UnacceptableInput
            | Self::UnacceptableArtifact
            | Self::ContractViolation
            | Self::IdempotencyMismatch
            | Self::ModelFailure
            | Self::Internal => "no",
            Self::RequestTimeout
            | Self::IdempotencyConflict
            | Self::Overloaded
            | Self::NotReady => "yes",
            Self::RevisionConflict => "after reading the new state",
            Self::RateLimited | Self::TooManyFailures => "after `Retry-After`",
            Self::DeadlineExceeded => "maybe",
            Self::InsufficientStorage => "later",
        }
    }

    /// Every code.
    pub const ALL: [Self; 23] = [
        Self::MalformedRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Conflict,
        Self::RevisionConflict,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::UnacceptableInput,
        Self::UnacceptableArtifact,
        Self::ContractViolation,
        Self::IdempotencyConflict,
        Self::IdempotencyMismatch,
        Self::RateLimited,
        Self::TooManyFailures,
        Self::ModelFailure,
        Self::Internal,
        Self::Overloaded,
        Self::NotReady,
        Self::DeadlineExceeded,
        Self::InsufficientStorage,
    ];
}

/// The body of an error response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct ErrorBody {
    /// The kind of the error, for programs.
    pub error_code: OpenEnum<ErrorCode>,
    /// The error, for people.
    #[serde(default)]
    pub message: String,
    /// The id of the request, which its log line has as well.
    #[serde(default)]
    pub request_id: String,
    /// The single problems, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<ErrorDetail>,
}

/// One of the problems of an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub enum ErrorDetail {
    /// A value of the input is not acceptable.
    Value(ValueDetail),
    /// A change of the signature is larger than the change of the version number.
    Contract(ContractDetail),
    /// A detail of another release.
    #[schemars(skip)]
    Other(Value),
}

/// A value of the input that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct ValueDetail {
    /// The row, counted from 0.
    pub row: usize,
    /// The input.
    pub field: String,
    /// Why the value is not acceptable.
    pub reason: String,
}

/// A change of the signature that callers may notice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct ContractDetail {
    /// The least step of the version number that allows the change: `major`, `minor` or `patch`.
    pub bump: String,
    /// The change, for people.
    pub what: String,
}

impl From<&contract::SignatureChange> for ContractDetail {
    fn from(change: &contract::SignatureChange) -> Self {
        Self { bump: change.bump.to_string(), what: change.what.clone() }
    }
}

/// An error response as problem details (RFC 9457), for clients that accept
/// `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub struct Problem {
    /// `urn:guesthouse:error:` and the error code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The reason phrase of the status.
    pub title: String,
    /// The HTTP status.
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
    /// The error, for people.
    pub detail: String,
    #[serde(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub body: ErrorBody,
}

/// An error response of the Open Inference Protocol, which has the message in `error`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "ProtocolError")]
pub struct ProtocolError {
    /// The kind of the error, for programs.
    pub error_code: OpenEnum<ErrorCode>,
    /// The single problems, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<ErrorDetail>,
    /// The id of the request, which its log line has as well.
    pub request_id: String,
    /// The error, for people.
    pub error: String,
}

/// The error of one row of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "RowError")]
pub struct RowError {
    /// The kind of the error, for programs.
    pub error_code: OpenEnum<ErrorCode>,
    /// The error, for people.
    pub message: String,
    /// The single problems, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<ErrorDetail>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_in_json() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
