//! The error codes, and the bodies of error responses.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Word;
use guesthouse_model::contract;

/// The kind of an error, for programs. The words are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[expect(missing_docs, reason = "`meaning` is the documentation")]
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
    pub fn meaning(self) -> &'static str {
        match self {
            Self::MalformedRequest => {
                "The request is not valid: not JSON, a wrong type, a missing or unknown field, an empty \
                 batch, a malformed header or query."
            }
            Self::Unauthorized => {
                "The request has no key, or one that is unknown, expired or revoked. The response has \
                 `WWW-Authenticate`."
            }
            Self::Forbidden => {
                "The key has no scope for this model, or for changing what is served."
            }
            Self::NotFound => "There is no such endpoint, model or version.",
            Self::MethodNotAllowed => "The endpoint does not support the method.",
            Self::RequestTimeout => "The body did not arrive in time.",
            Self::PayloadTooLarge => "The body exceeds the limit, or has too many values.",
            Self::UnsupportedMediaType => {
                "The endpoint does not support the content type or the content encoding of the body."
            }
            Self::UnacceptableInput => {
                "The input has the right form, but a value that the model does not accept."
            }
            Self::RateLimited => {
                "The key, or all keys of the model together, exceeded the rate limit. The response has \
                 `Retry-After`."
            }
            Self::TooManyFailures => {
                "The version keeps failing on this caller's requests, and rejects them for a while. The \
                 response has `Retry-After`."
            }
            Self::ModelFailure => {
                "The guest trapped, failed, or returned something that its signature does not allow."
            }
            Self::Internal => "The server has a bug or a broken environment; the log says more.",
            Self::Overloaded => {
                "The queue is full, the time to wait in it is over, or too many bodies are in flight. The \
                 response has `Retry-After`."
            }
            Self::NotReady => {
                "The version is loading, failed to load or is suspended, or the server is stopping. The \
                 response has `Retry-After`."
            }
            Self::DeadlineExceeded => {
                "The deadline of the request passed before there was a response."
            }
            Self::Conflict => "What is served does not allow the change.",
            Self::RevisionConflict => "The model was changed since the expected revision.",
            Self::UnacceptableArtifact => {
                "The file is not an artifact, or its version cannot be loaded or fails its golden \
                 examples."
            }
            Self::ContractViolation => {
                "The version number promises more compatibility than the signature keeps."
            }
            Self::IdempotencyConflict => {
                "A request with the same idempotency key is in progress. The response has `Retry-After`."
            }
            Self::IdempotencyMismatch => "The idempotency key was used for a different request.",
            Self::InsufficientStorage => "The disk is full.",
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
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::UnacceptableInput,
        Self::RateLimited,
        Self::TooManyFailures,
        Self::ModelFailure,
        Self::Internal,
        Self::Overloaded,
        Self::NotReady,
        Self::DeadlineExceeded,
        Self::Conflict,
        Self::RevisionConflict,
        Self::UnacceptableArtifact,
        Self::ContractViolation,
        Self::IdempotencyConflict,
        Self::IdempotencyMismatch,
        Self::InsufficientStorage,
    ];
}

/// The body of an error response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct ErrorBody {
    /// The kind of the error, for programs.
    pub error_code: Word<ErrorCode>,
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
    pub error_code: Word<ErrorCode>,
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
    pub error_code: Word<ErrorCode>,
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
    fn the_words_are_those_of_the_json() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
