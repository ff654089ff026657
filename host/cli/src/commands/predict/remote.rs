//! Predicts with a model of a server, with retries.
//!
//! A server that is overloaded (429) or not ready (503) is asked again after an exponentially growing
//! delay with jitter, or after the time of its `Retry-After` if that is longer, until the deadline of the
//! row. Nothing else is retried: a prediction whose connection is lost may be running.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use backon::{BlockingRetryable as _, ExponentialBuilder};
use serde_json::Value;
use ureq::Agent;
use ureq::http::HeaderValue;

use super::rows::Row;
use super::{Predict, PredictArguments, RowError, body};
use crate::commands::exit_code::Failure;
use crate::commands::operate::{ServerError, ServerUrl, admin_key, trust};

/// The variable with the key, if no file is named.
const KEY_VARIABLE: &str = "GUESTHOUSE_KEY";

/// The first delay, and the longest. Jitter adds up to as much again, so that callers that were rejected
/// together do not come back together.
const MIN_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(5);

/// The largest response.
const MAX_RESPONSE_BYTES: u64 = 64 << 20;

/// A client of one model.
pub(super) struct Client {
    agent: Agent,
    url: String,
    server: ServerUrl,
    key: Option<HeaderValue>,
    version: Option<String>,
    deadline: Duration,
}

/// A request without outputs.
enum AttemptError {
    /// The server rejects the row.
    Rejected {
        code: String,
        message: String,
    },
    /// The server may have time later.
    Busy {
        message: String,
        retry_after: Option<Duration>,
    },
    /// There is no time left for another attempt.
    OutOfTime,
    Failed(anyhow::Error),
}

impl Client {
    pub(super) fn new(server: &ServerUrl, arguments: &PredictArguments) -> anyhow::Result<Self> {
        let key = admin_key::find_in(arguments.key_file.as_deref(), KEY_VARIABLE)?;
        let trust = trust::find(server.is_https(), arguments.ca.as_deref())?;
        // As for the admin API: the key and the rows reach the named server alone.
        let configuration = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .tls_config(trust);
        Ok(Self {
            agent: configuration.build().new_agent(),
            url: format!("{server}{}", body::path(arguments)),
            server: server.clone(),
            key,
            version: body::version_header(arguments).map(str::to_owned),
            deadline: arguments.deadline,
        })
    }

    fn attempt(&self, kind: &str, body: &[u8], left: Duration) -> Result<Value, AttemptError> {
        if left.is_zero() {
            return Err(AttemptError::OutOfTime);
        }
        let mut request = self.agent.post(&self.url).content_type(kind);
        if let Some(key) = &self.key {
            request = request.header("X-API-Key", key.clone());
        }
        if let Some(version) = &self.version {
            request = request.header("X-Model-Version", version);
        }
        let request = request.config().timeout_global(Some(left)).build();
        let failed = |error: ureq::Error| {
            let context = format!("no response from {}", self.server);
            AttemptError::Failed(anyhow::Error::from(error).context(context))
        };
        let mut response = request.send(body).map_err(failed)?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("Retry-After").and_then(seconds);
        let read = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).read_to_vec();
        let body = serde_json::from_slice(&read.map_err(failed)?).unwrap_or(Value::Null);
        match status {
            200..300 if body.is_object() => Ok(body),
            0..400 => Err(AttemptError::Failed(anyhow!(
                "{} responded {status} with a body that is not a prediction: \
                 name its public listener by --server",
                self.server
            ))),
            _ => Err(error(status, &body, retry_after)),
        }
    }
}

/// The error in a response.
fn error(status: u16, body: &Value, retry_after: Option<Duration>) -> AttemptError {
    let error = ServerError::from_response(status, body);
    let details: Vec<_> = error.details().collect();
    let message = match details.as_slice() {
        [] => error.to_string(),
        details => format!("{error}: {}", details.join("; ")),
    };
    match status {
        429 | 503 => AttemptError::Busy { message, retry_after },
        // A key or a path that is wrong for one row is wrong for all.
        400 | 409 | 413 | 422 => AttemptError::Rejected { code: error.code().to_owned(), message },
        400..500 => AttemptError::Failed(Failure::Rejected(message).into()),
        _ => AttemptError::Failed(anyhow!(message)),
    }
}

/// The seconds of `Retry-After`. Servers may send a date instead, which this one does not.
fn seconds(header: &HeaderValue) -> Option<Duration> {
    header.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

impl Predict for Client {
    fn predict(&mut self, row: &Row) -> Result<Value, RowError> {
        let (kind, body) = body::body(row).map_err(RowError::Failed)?;
        let deadline = Instant::now() + self.deadline;
        let backoff = ExponentialBuilder::default()
            .with_min_delay(MIN_DELAY)
            .with_max_delay(MAX_DELAY)
            .with_jitter()
            .without_max_times();
        // The error of the last response, and the time of the next request.
        let busy = Cell::new(None);
        let next = Cell::new(Instant::now());
        let attempt = || {
            let start = next.get().max(Instant::now());
            self.attempt(&kind, &body, deadline.saturating_duration_since(start))
        };
        let result = attempt
            .retry(backoff)
            .when(|error| matches!(error, AttemptError::Busy { .. }))
            // Sleeps here, because only here the error is known.
            .notify(|error, delay| {
                let AttemptError::Busy { message, retry_after } = error else { return };
                busy.set(Some(message.clone()));
                let delay = retry_after.map_or(delay, |asked_for| delay.max(asked_for));
                next.set(Instant::now() + delay);
                // Waiting for longer than there is time would only delay the error.
                if next.get() < deadline {
                    thread::sleep(delay);
                }
            })
            .sleep(|_delay: Duration| ())
            .call();
        result.map_err(|error| match error {
            AttemptError::Rejected { code, message } => {
                RowError::Rejected { code: Some(code), message }
            }
            AttemptError::Busy { message, .. } => RowError::Busy(message),
            AttemptError::OutOfTime => RowError::Busy(busy.take().unwrap_or_default()),
            AttemptError::Failed(error) => RowError::Failed(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_overload_and_unreadiness_are_retried() {
        let body = json!({"error_code": "x", "message": "no", "request_id": "r"});
        for (status, busy) in [(429, true), (503, true), (500, false), (422, false), (504, false)] {
            let found = error(status, &body, None);
            assert_eq!(matches!(found, AttemptError::Busy { .. }), busy, "{status}");
        }
        assert_eq!(seconds(&HeaderValue::from_static(" 3 ")), Some(Duration::from_secs(3)));
        assert_eq!(seconds(&HeaderValue::from_static("Fri, 27 Nov 2026 00:00:00 GMT")), None);
    }
}
