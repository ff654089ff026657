//! Errors of the commands that operate a server, and their exit codes.
//!
//! | exit code | meaning |
//! |---|---|
//! | 1 | a failure: no server, no key, no file, an error of the server |
//! | 2 | the command line is invalid (as in clap) |
//! | 3 | the server rejects the request, and a retry would be rejected too |
//! | 4 | a conflict: look at the current state, then decide again |

use std::error::Error;
use std::io;
use std::process::ExitCode;

use guesthouse_server::api::OpenEnum;
use guesthouse_server::api::error::{ErrorBody, ErrorCode, ErrorDetail};
use serde::Deserialize as _;
use serde_json::Value;

use super::admin_key::KeyError;
use super::idempotency_key::IdempotencyKey;
use super::server_url::ServerUrl;
use super::trust::TrustError;
use super::upload::UploadError;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const REJECTED: u8 = 3;
const CONFLICT: u8 = 4;

/// Why a command has failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum OperateError {
    #[error("{0}")]
    Usage(&'static str),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("the file cannot be sent")]
    Upload(#[from] UploadError),
    #[error("no response from {server}")]
    Unreachable { server: ServerUrl, source: ureq::Error },
    /// A change was sent, and there was no response.
    #[error(
        "the outcome at {server} is unknown; \
         retry with `--idempotency-key {key}`, so that the change is made once"
    )]
    OutcomeUnknown { server: ServerUrl, key: IdempotencyKey, source: Box<dyn Error + Send + Sync> },
    /// A key was made by an earlier request, whose response contained it.
    #[error(
        "the key {id} was made before with the same idempotency key, and shown then: \
         if it is lost, revoke it and make another"
    )]
    ShownBefore { id: String },
    /// The response is not one of an admin API, or of another release.
    #[error(
        "{server} responded {status} with a body that this command does not understand: {problem}"
    )]
    Unexpected { server: ServerUrl, status: u16, problem: String },
    #[error(transparent)]
    Rejected(#[from] ServerError),
    #[error("the response could not be printed")]
    Output(#[source] io::Error),
}

/// An error response of the server.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({code}{request})")]
pub(in crate::commands) struct ServerError {
    exit_code: u8,
    code: String,
    message: String,
    /// The id of the request in the server's log, after a comma; empty without one.
    request: String,
    details: Vec<ErrorDetail>,
}

impl OperateError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Trust(TrustError::Missing) => USAGE,
            Self::Rejected(error) => error.exit_code,
            Self::ShownBefore { .. } => CONFLICT,
            Self::Key(_)
            | Self::Trust(_)
            | Self::Upload(_)
            | Self::Unreachable { .. }
            | Self::OutcomeUnknown { .. }
            | Self::Unexpected { .. }
            | Self::Output(_) => FAILURE,
        }
    }
}

impl ServerError {
    /// The error in a response with a status of 400 or more.
    pub(in crate::commands) fn from_response(status: u16, body: &Value) -> Self {
        let exit_code = match status {
            409 => CONFLICT,
            400..=499 => REJECTED,
            _ => FAILURE,
        };
        // The body may come from a proxy.
        let body = ErrorBody::deserialize(body).ok();
        Self::new(exit_code, body, &format!("status {status}"))
    }

    /// The error of an operation that failed after it was accepted, which has no status.
    pub(super) fn from_operation(error: Option<&ErrorBody>) -> Self {
        let exit_code = match error.map(|error| &error.error_code) {
            Some(OpenEnum::Known(ErrorCode::Conflict | ErrorCode::RevisionConflict)) => CONFLICT,
            Some(OpenEnum::Known(
                ErrorCode::MalformedRequest
                | ErrorCode::NotFound
                | ErrorCode::PayloadTooLarge
                | ErrorCode::ContractViolation
                | ErrorCode::UnacceptableArtifact
                | ErrorCode::UnacceptableInput
                | ErrorCode::IdempotencyMismatch,
            )) => REJECTED,
            Some(_) | None => FAILURE,
        };
        Self::new(exit_code, error.cloned(), "failed")
    }

    /// `fallback` stands for the code of a response without one.
    fn new(exit_code: u8, body: Option<ErrorBody>, fallback: &str) -> Self {
        let message = "the server rejects the request".to_owned();
        let Some(body) = body else {
            let (code, request, details) = (fallback.to_owned(), String::new(), Vec::new());
            return Self { exit_code, code, message, request, details };
        };
        let message = if body.message.is_empty() { message } else { body.message };
        let request = match body.request_id.as_str() {
            "" => String::new(),
            id => format!(", request {id}"),
        };
        let code = body.error_code.to_string();
        Self { exit_code, code, message, request, details: body.details }
    }

    /// The kind of the error, for programs.
    pub(in crate::commands) fn code(&self) -> &str {
        &self.code
    }

    /// The single problems, a line each.
    pub(in crate::commands) fn details(&self) -> impl Iterator<Item = String> {
        self.details.iter().map(|detail| match detail {
            ErrorDetail::Contract(change) => format!("{:<6} {}", change.bump, change.what),
            ErrorDetail::Other(Value::String(text)) => text.clone(),
            other => serde_json::to_string(other).unwrap_or_default(),
        })
    }
}

/// The exit code of the process after an error of any command.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = error.downcast_ref::<OperateError>().map_or(FAILURE, OperateError::exit_code);
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn statuses_have_exit_codes_for_scripts() {
        let table = [
            (400, REJECTED),
            (401, REJECTED),
            (404, REJECTED),
            (409, CONFLICT),
            (413, REJECTED),
            (422, REJECTED),
            (500, FAILURE),
            (503, FAILURE),
            (507, FAILURE),
        ];
        for (status, code) in table {
            assert_eq!(
                ServerError::from_response(status, &Value::Null).exit_code,
                code,
                "{status}"
            );
        }
    }

    #[test]
    fn failed_operations_have_the_same_exit_codes() {
        let table = [
            ("conflict", CONFLICT),
            ("revision_conflict", CONFLICT),
            ("contract_violation", REJECTED),
            ("unacceptable_artifact", REJECTED),
            ("internal", FAILURE),
            ("insufficient_storage", FAILURE),
            ("of another time", FAILURE),
        ];
        for (code, exit_code) in table {
            let body = ErrorBody::deserialize(json!({"error_code": code, "message": "no"}));
            let error = ServerError::from_operation(Some(&body.unwrap()));
            assert_eq!(error.exit_code, exit_code, "{code}");
        }
    }

    #[test]
    fn the_exit_code_is_found_below_added_context() {
        let error = ServerError::from_response(409, &json!({"error_code": "conflict"}));
        let error = Err::<(), _>(OperateError::from(error)).context("failed to promote");
        let error = error.unwrap_err();
        let code = error.downcast_ref().map(OperateError::exit_code);
        assert_eq!(code, Some(CONFLICT));
        assert_eq!(OperateError::Usage("no").exit_code(), USAGE);
        assert_eq!(OperateError::from(KeyError::Missing).exit_code(), FAILURE);
    }

    #[test]
    fn a_server_error_shows_code_message_and_details() {
        let body = json!({
            "error_code": "contract_violation", "message": "too small a step", "request_id": "r1",
            "details": [{"bump": "major", "what": "output `score` is gone"}, "else", {"row": 1}],
        });
        let error = ServerError::from_response(422, &body);
        assert_eq!(error.to_string(), "too small a step (contract_violation, request r1)");
        let details: Vec<_> = error.details().collect();
        assert_eq!(details, ["major  output `score` is gone", "else", "{\"row\":1}"]);
        let bare = ServerError::from_response(502, &Value::Null);
        assert_eq!(bare.to_string(), "the server rejects the request (status 502)");
    }
}
