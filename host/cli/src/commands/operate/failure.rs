//! Why a command did not do what it was told. Scripts decide by the exit code.
//!
//! | exit code | what |
//! |---|---|
//! | 1 | it could not be done: no server, no key, no file, a fault of the server |
//! | 2 | the command line makes no sense (clap uses the same) |
//! | 3 | the server refuses: asking again is of no use |
//! | 4 | a conflict: look at the state of things, then decide again |

use std::error::Error;
use std::io;
use std::process::ExitCode;

use serde_json::Value;

use super::client::{IdempotencyKey, ServerUrl};
use super::key::KeyError;
use super::trust::TrustError;
use super::upload::UploadError;

const COULD_NOT: u8 = 1;
const USAGE: u8 = 2;
const REFUSED: u8 = 3;
const CONFLICT: u8 = 4;

/// Why a command did not do what it was told.
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
    #[error("no answer from {server}")]
    Unreachable { server: ServerUrl, source: ureq::Error },
    /// A change was sent, and no answer came back.
    #[error(
        "the outcome at {server} is unknown; \
         with `--idempotency-key {key}`, another try cannot do it twice"
    )]
    OutcomeUnknown { server: ServerUrl, key: IdempotencyKey, source: Box<dyn Error + Send + Sync> },
    /// A key was made, and who made it was told what it is.
    #[error(
        "the key {id} was made before with the same idempotency key, and shown then: \
         if it is lost, revoke it and make another"
    )]
    ShownBefore { id: String },
    /// What answers is no such server, or one of another time.
    #[error("{server} answered {status}, and nothing that this command understands: {problem}")]
    Unexpected { server: ServerUrl, status: u16, problem: String },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the answer could not be printed")]
    Output(#[source] io::Error),
}

/// The server's error.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({code}{request})")]
pub(super) struct Refusal {
    exit_code: u8,
    code: String,
    message: String,
    /// Its id, to be found in the server's log, after a comma; empty without one.
    request: String,
    details: Vec<Value>,
}

impl OperateError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Trust(TrustError::Missing) => USAGE,
            Self::Refused(refusal) => refusal.exit_code,
            Self::ShownBefore { .. } => CONFLICT,
            Self::Key(_)
            | Self::Trust(_)
            | Self::Upload(_)
            | Self::Unreachable { .. }
            | Self::OutcomeUnknown { .. }
            | Self::Unexpected { .. }
            | Self::Output(_) => COULD_NOT,
        }
    }
}

impl Refusal {
    /// The error in an answer with a status of 400 or more.
    pub(super) fn of_answer(status: u16, body: &Value) -> Self {
        let exit_code = match status {
            409 => CONFLICT,
            400..=499 => REFUSED,
            _ => COULD_NOT,
        };
        let fallback = format!("status {status}");
        Self::new(exit_code, body, fallback)
    }

    /// The error of an operation that failed after it was accepted: there is no status any more.
    pub(super) fn of_operation(error: &Value) -> Self {
        let exit_code = match error["error_code"].as_str() {
            Some("conflict" | "revision_conflict") => CONFLICT,
            Some(
                "malformed_request"
                | "not_found"
                | "payload_too_large"
                | "contract_violation"
                | "unacceptable_artifact"
                | "unacceptable_input"
                | "idempotency_mismatch",
            ) => REFUSED,
            Some(_) | None => COULD_NOT,
        };
        Self::new(exit_code, error, "failed".to_owned())
    }

    fn new(exit_code: u8, body: &Value, fallback: String) -> Self {
        let text = |name: &str| body[name].as_str().map(str::to_owned);
        Self {
            exit_code,
            code: text("error_code").unwrap_or_else(|| fallback.clone()),
            message: text("message").unwrap_or_else(|| "the server refuses".to_owned()),
            request: text("request_id").map_or(String::new(), |id| format!(", request {id}")),
            details: body["details"].as_array().cloned().unwrap_or_default(),
        }
    }

    /// What is wrong in particular, a line each.
    pub(super) fn details(&self) -> impl Iterator<Item = String> {
        self.details.iter().map(|detail| match detail {
            Value::String(text) => text.clone(),
            Value::Object(fields) => {
                let value = |value: &Value| match value {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                match (fields.get("bump"), fields.get("what")) {
                    (Some(bump), Some(what)) => format!("{:<6} {}", value(bump), value(what)),
                    _ => detail.to_string(),
                }
            }
            other => other.to_string(),
        })
    }
}

/// What the process ends with after an error of any command.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = error.downcast_ref::<OperateError>().map_or(COULD_NOT, OperateError::exit_code);
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn statuses_are_told_apart_by_what_a_script_can_do() {
        let table = [
            (400, REFUSED),
            (401, REFUSED),
            (404, REFUSED),
            (409, CONFLICT),
            (413, REFUSED),
            (422, REFUSED),
            (500, COULD_NOT),
            (503, COULD_NOT),
            (507, COULD_NOT),
        ];
        for (status, code) in table {
            assert_eq!(Refusal::of_answer(status, &Value::Null).exit_code, code, "{status}");
        }
    }

    #[test]
    fn operations_fail_with_the_same_codes() {
        let table = [
            ("conflict", CONFLICT),
            ("revision_conflict", CONFLICT),
            ("contract_violation", REFUSED),
            ("unacceptable_artifact", REFUSED),
            ("internal", COULD_NOT),
            ("insufficient_storage", COULD_NOT),
            ("of another time", COULD_NOT),
        ];
        for (code, exit_code) in table {
            let refusal = Refusal::of_operation(&json!({"error_code": code, "message": "no"}));
            assert_eq!(refusal.exit_code, exit_code, "{code}");
        }
    }

    #[test]
    fn the_exit_code_is_found_below_what_was_added_to_the_error() {
        let refusal = Refusal::of_answer(409, &json!({"error_code": "conflict"}));
        let error = Err::<(), _>(OperateError::from(refusal)).context("failed to promote");
        let error = error.unwrap_err();
        let code = error.downcast_ref().map(OperateError::exit_code);
        assert_eq!(code, Some(CONFLICT));
        assert_eq!(OperateError::Usage("no").exit_code(), USAGE);
        assert_eq!(OperateError::from(KeyError::Missing).exit_code(), COULD_NOT);
    }

    #[test]
    fn refusals_say_what_the_server_said() {
        let body = json!({
            "error_code": "contract_violation", "message": "too small a step", "request_id": "r1",
            "details": [{"bump": "major", "what": "output `score` is gone"}, "else", {"row": 1}],
        });
        let refusal = Refusal::of_answer(422, &body);
        assert_eq!(refusal.to_string(), "too small a step (contract_violation, request r1)");
        let details: Vec<_> = refusal.details().collect();
        assert_eq!(details, ["major  output `score` is gone", "else", "{\"row\":1}"]);
        let bare = Refusal::of_answer(502, &Value::Null);
        assert_eq!(bare.to_string(), "the server refuses (status 502)");
    }
}
