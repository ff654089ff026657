//! The HTTP client of the admin API.
//!
//! Reads are sent once. A change whose connection is lost is retried a few times, always with the same
//! idempotency key, so that the server makes it once; if there is no response in the end, the error says
//! that the outcome is unknown, and names the key. Every response is bounded in time and size. The
//! meaning of a body is left to the commands.

use std::error::Error;
use std::io;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{HeaderValue, Response};
use ureq::typestate::WithBody;
use ureq::{Agent, Body, RequestBuilder, SendBody, Timeout};

use super::error::{OperateError, ServerError};
use super::idempotency_key::IdempotencyKey;
use super::server_url::ServerUrl;
use super::upload::{self, Upload, UploadError};
use super::{ServerArguments, admin_key, trust};

/// The time to resolve the server's name, and the time to connect. The server is on this machine or near.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// The time of a request that the server answers at once.
const READ_TIME: Duration = Duration::from_secs(30);

/// The time of a change. The server may have to load a retired version again.
const CHANGE_TIME: Duration = Duration::from_secs(300);

/// The longest time without progress while an artifact is sent, which may be large.
const STALLED_TIME: Duration = Duration::from_secs(30);

/// The time until the response to an artifact that was sent. The server verifies and stores it first.
const UPLOADED_TIME: Duration = Duration::from_secs(60);

/// The delays before the retries. A server that restarts needs seconds.
const RETRY_DELAYS: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(3)];

/// The largest response. The history is read in pages.
const MAX_RESPONSE_BYTES: u64 = 64 << 20;

/// The parameters of a query. Those without a value are left out.
pub(super) type Query = [(&'static str, Option<String>)];

/// The request for a change.
#[derive(Debug)]
pub(super) struct ChangeRequest<'a> {
    pub(super) path: String,
    pub(super) query: Vec<(&'static str, Option<String>)>,
    pub(super) key: IdempotencyKey,
    pub(super) payload: Payload<'a>,
}

/// The method and body of a change.
#[derive(Debug)]
pub(super) enum Payload<'a> {
    /// `DELETE` without a body.
    Delete,
    /// `POST` with a JSON body.
    Json(Value),
    /// `POST` with an artifact.
    Upload(&'a Upload),
}

impl Payload<'_> {
    /// `POST` with this body.
    pub(super) fn json(body: &impl Serialize) -> Self {
        Self::Json(serde_json::to_value(body).expect("bodies of requests are JSON"))
    }
}

/// A response of the server, which may be an error.
#[derive(Debug)]
pub(super) struct ServerResponse {
    server: ServerUrl,
    status: u16,
    /// Whether the change was made by an earlier request with the same idempotency key.
    pub(super) is_replayed: bool,
    /// Whether the response has `Retry-After`.
    has_retry_after: bool,
    /// The JSON body; null if it is not JSON.
    pub(super) body: Value,
}

impl ServerResponse {
    /// The error, if it is one.
    pub(super) fn error(&self) -> Option<ServerError> {
        (self.status >= 400).then(|| ServerError::from_response(self.status, &self.body))
    }

    /// Whether it is an error of the server and not of the request.
    pub(super) fn is_server_fault(&self) -> bool {
        self.status >= 500
    }

    /// Parse the body of a response that is not an error.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, OperateError> {
        if !(200..300).contains(&self.status) || self.body.is_null() {
            return Err(self.unexpected("it is not an admin API"));
        }
        T::deserialize(&self.body).map_err(|error| self.unexpected(&error.to_string()))
    }

    /// The error for a response that is not an error and cannot be understood.
    pub(super) fn unexpected(&self, problem: &str) -> OperateError {
        let (server, status) = (self.server.clone(), self.status);
        OperateError::Unexpected { server, status, problem: problem.to_owned() }
    }

    /// Whether another request with the same idempotency key is in progress.
    fn is_in_progress(&self) -> bool {
        self.status == 409 && self.has_retry_after
    }
}

/// A client of one server.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    server: ServerUrl,
    key: HeaderValue,
}

impl Client {
    pub(super) fn new(arguments: &ServerArguments) -> Result<Self, OperateError> {
        let key = admin_key::find(arguments.key_file.as_deref())?;
        let trust = trust::find(arguments.server.is_https(), arguments.ca.as_deref())?;
        // The key must reach the named server alone: not a proxy of the environment, and not the target
        // of a redirect.
        let configuration = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .tls_config(trust)
            .timeout_resolve(Some(CONNECT_TIME))
            .timeout_connect(Some(CONNECT_TIME));
        let agent = configuration.build().new_agent();
        Ok(Self { agent, server: arguments.server.clone(), key })
    }

    /// Read something that the server returns at once.
    pub(super) fn get(&self, path: &str, query: &Query) -> Result<ServerResponse, OperateError> {
        self.get_with_wait(path, query, Duration::ZERO)
    }

    /// Read something for which the server may hold the response back for this long.
    pub(super) fn get_with_wait(
        &self,
        path: &str,
        query: &Query,
        wait: Duration,
    ) -> Result<ServerResponse, OperateError> {
        let request = self.authorized(self.agent.get(self.url(path)), query);
        let request = request.config().timeout_global(Some(wait + READ_TIME)).build();
        let response = request.call().and_then(|response| self.read(response));
        response.map_err(|source| OperateError::Unreachable { server: self.server.clone(), source })
    }

    /// Send a change, with retries. It is made at most once.
    pub(super) fn change(
        &self,
        change: &ChangeRequest<'_>,
    ) -> Result<ServerResponse, OperateError> {
        let mut delays = RETRY_DELAYS.into_iter();
        let mut may_be_made = false;
        loop {
            let error = match self.attempt(change) {
                Ok(response) if response.is_in_progress() => match delays.next() {
                    None => return Ok(response),
                    Some(delay) => {
                        thread::sleep(delay);
                        continue;
                    }
                },
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let (source, delay) = match error {
                AttemptError::Upload(error) => return Err(error.into()),
                AttemptError::NotSent(source) if !may_be_made => {
                    return Err(OperateError::Unreachable { server: self.server.clone(), source });
                }
                // A retry does not help a server that is too slow.
                AttemptError::Lost(source @ ureq::Error::Timeout(_)) => (source, None),
                AttemptError::NotSent(source) | AttemptError::Lost(source) => {
                    (source, delays.next())
                }
            };
            may_be_made = true;
            let Some(delay) = delay else {
                return Err(self.outcome_unknown(change, source.into()));
            };
            thread::sleep(delay);
        }
    }

    /// The error for a change that was sent and got no response.
    pub(super) fn outcome_unknown(
        &self,
        change: &ChangeRequest<'_>,
        source: Box<dyn Error + Send + Sync>,
    ) -> OperateError {
        let (server, key) = (self.server.clone(), change.key.clone());
        OperateError::OutcomeUnknown { server, key, source }
    }

    fn attempt(&self, change: &ChangeRequest<'_>) -> Result<ServerResponse, AttemptError> {
        let url = self.url(&change.path);
        let key = change.key.to_string();
        let timeout = Some(CHANGE_TIME);
        let response = match &change.payload {
            Payload::Delete => {
                let request = self.authorized(self.agent.delete(url), &change.query);
                let request = request.header(IDEMPOTENCY_KEY, key);
                request.config().timeout_global(timeout).build().call()
            }
            Payload::Json(body) => {
                let request = self.authorized(self.agent.post(url), &change.query);
                let request = request.header(IDEMPOTENCY_KEY, key).content_type("application/json");
                request.config().timeout_global(timeout).build().send(body.to_string())
            }
            Payload::Upload(upload) => {
                let request = self.authorized(self.agent.post(url), &change.query);
                self.upload(request.header(IDEMPOTENCY_KEY, key), upload)
            }
        };
        response.and_then(|response| self.read(response)).map_err(AttemptError::new)
    }

    fn upload(
        &self,
        request: RequestBuilder<WithBody>,
        upload: &Upload,
    ) -> Result<Response<Body>, ureq::Error> {
        let mut body = upload.body().map_err(io::Error::other)?;
        request
            .content_type("application/octet-stream")
            .header("Content-Length", upload.length_bytes())
            // A server that rejects the request does so before the artifact is sent.
            .header("Expect", "100-continue")
            .config()
            .timeout_per_write(Some(STALLED_TIME))
            .timeout_recv_response(Some(UPLOADED_TIME))
            .timeout_recv_body(Some(READ_TIME))
            .build()
            .send(SendBody::from_reader(&mut body))
    }

    fn url(&self, path: &str) -> String {
        format!("{}/admin/v1/{path}", self.server)
    }

    /// Add the admin key and the query.
    fn authorized<Any>(&self, request: RequestBuilder<Any>, query: &Query) -> RequestBuilder<Any> {
        let pairs = query.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
        request.header("X-API-Key", self.key.clone()).query_pairs(pairs)
    }

    fn read(&self, mut response: Response<Body>) -> Result<ServerResponse, ureq::Error> {
        let headers = response.headers();
        let is_replayed = headers.get("Idempotency-Replayed").is_some_and(|value| value == "true");
        let has_retry_after = headers.contains_key("Retry-After");
        let body = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).read_to_vec()?;
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (server, status) = (self.server.clone(), response.status().as_u16());
        Ok(ServerResponse { server, status, is_replayed, has_retry_after, body })
    }
}

const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// An attempt to send a change got no response.
#[derive(Debug)]
enum AttemptError {
    /// The file could not be read to its end, so the server does not have it.
    Upload(UploadError),
    /// The server was never reached.
    NotSent(ureq::Error),
    /// The server may have received the change.
    Lost(ureq::Error),
}

impl AttemptError {
    /// Classify the error. In doubt, the change was sent.
    fn new(error: ureq::Error) -> Self {
        match error {
            ureq::Error::HostNotFound
            | ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => Self::NotSent(error),
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Self::NotSent(error.into())
            }
            ureq::Error::Io(error) if is_untrusted(&error) => Self::NotSent(error.into()),
            ureq::Error::Io(error) => match upload::reason(error) {
                Ok(reason) => Self::Upload(reason),
                Err(error) => Self::Lost(error.into()),
            },
            other => Self::Lost(other),
        }
    }
}

/// Whether the server's certificate is not trusted. Nothing is sent before it is.
fn is_untrusted(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failed_connections_count_as_not_sent() {
        let io = |kind: io::ErrorKind| ureq::Error::Io(kind.into());
        for error in [
            io(io::ErrorKind::ConnectionRefused),
            ureq::Error::HostNotFound,
            ureq::Error::Timeout(Timeout::Connect),
        ] {
            assert!(matches!(AttemptError::new(error), AttemptError::NotSent(_)));
        }
        for error in [
            io(io::ErrorKind::ConnectionReset),
            io(io::ErrorKind::BrokenPipe),
            io(io::ErrorKind::UnexpectedEof),
            ureq::Error::Timeout(Timeout::Global),
            ureq::Error::Timeout(Timeout::RecvResponse),
        ] {
            assert!(matches!(AttemptError::new(error), AttemptError::Lost(_)));
        }
    }
}
