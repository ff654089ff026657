//! The client of the admin API: where the server is, what a request carries, and what becomes of
//! one that gets no answer.
//!
//! Questions are asked once. A change whose connection is lost is sent again a few times, always
//! with the same idempotency key, so that the server does it once; if there is no answer in the
//! end, the caller learns that the outcome is unknown, and the key. Every answer is bounded in time
//! and size. What an answer means is left to others.

use std::error::Error;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use guesthouse_runtime::clock;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::uri::Uri;
use ureq::http::{HeaderValue, Response};
use ureq::typestate::WithBody;
use ureq::{Agent, Body, RequestBuilder, SendBody, Timeout};

use super::failure::{OperateError, Refusal};
use super::upload::{self, Upload, UploadError};
use super::{ServerArguments, key, trust};

/// To find the server, and again to be let in: it is on this machine or near.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// For the whole answer to a question that the server answers at once.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// For the whole answer to a change: a version that was retired is loaded again first.
const CHANGE_TIME: Duration = Duration::from_secs(300);

/// An artifact may be large and a network slow; but something has to go on.
const STALLED_TIME: Duration = Duration::from_secs(30);

/// For the answer to an artifact that has arrived: the server checks and stores it first.
const UPLOADED_TIME: Duration = Duration::from_secs(60);

/// Before the second, the third and the last attempt: a server that restarts needs seconds.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(3)];

/// No answer is longer: the history comes in pieces.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// The longest idempotency key that the server takes.
const MAX_IDEMPOTENCY_KEY_LENGTH: usize = 128;

/// The address of an admin API, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerUrl(String);

/// A text is not a [`ServerUrl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a server's address is like http://127.0.0.1:8002 or https://127.0.0.1:8002")]
pub(super) struct ServerUrlError;

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<Self, ServerUrlError> {
        let uri: Uri = text.parse().map_err(|_malformed| ServerUrlError)?;
        let authority = uri.authority().ok_or(ServerUrlError)?;
        let host_alone = authority.as_str() == authority.host();
        let good = matches!(uri.scheme_str(), Some("http" | "https"))
            && (host_alone || authority.port_u16().is_some())
            && !authority.host().is_empty()
            && !authority.as_str().contains('@')
            && !text.contains(['?', '#']);
        if good { Ok(Self(text.trim_end_matches('/').to_owned())) } else { Err(ServerUrlError) }
    }
}

impl ServerUrl {
    fn is_https(&self) -> bool {
        self.0.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What the server knows a repeated change by: 1 to 128 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdempotencyKey(String);

/// A text is not an [`IdempotencyKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key is 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} visible ASCII characters")]
pub(super) struct IdempotencyKeyError;

impl IdempotencyKey {
    /// One that nobody has used.
    pub(super) fn random() -> Self {
        Self(clock::new_id().to_string())
    }
}

impl FromStr for IdempotencyKey {
    type Err = IdempotencyKeyError;

    fn from_str(text: &str) -> Result<Self, IdempotencyKeyError> {
        let good = (1..=MAX_IDEMPOTENCY_KEY_LENGTH).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        if good { Ok(Self(text.to_owned())) } else { Err(IdempotencyKeyError) }
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The words of a query and their values; what has none is left out.
pub(super) type Query = [(&'static str, Option<String>)];

/// A change, as often as it has to be sent.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pub(super) path: String,
    pub(super) query: Vec<(&'static str, Option<String>)>,
    pub(super) key: IdempotencyKey,
    pub(super) content: Content<'a>,
}

/// What a change carries.
#[derive(Debug)]
pub(super) enum Content<'a> {
    /// Nothing: something is deleted.
    Delete,
    /// A few fields.
    Json(Value),
    /// An artifact.
    Upload(&'a Upload),
}

/// What the server answered, errors included.
#[derive(Debug)]
pub(super) struct Answer {
    server: ServerUrl,
    status: u16,
    /// The server did it before, and this is what it answered then.
    pub(super) replayed: bool,
    /// The server says that it may be asked again.
    again: bool,
    /// Null, if it is not JSON.
    pub(super) body: Value,
}

impl Answer {
    /// The server's error, if it is one.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        (self.status >= 400).then(|| Refusal::of_answer(self.status, &self.body))
    }

    /// Whether the server could not answer, rather than would not.
    pub(super) fn is_fault(&self) -> bool {
        self.status >= 500
    }

    /// What an answer that is no error says.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, OperateError> {
        if !(200..300).contains(&self.status) || self.body.is_null() {
            return Err(self.unexpected("it is no admin API"));
        }
        T::deserialize(&self.body).map_err(|error| self.unexpected(&error.to_string()))
    }

    /// What is wrong with an answer that is no error.
    pub(super) fn unexpected(&self, problem: &str) -> OperateError {
        let (server, status) = (self.server.clone(), self.status);
        OperateError::Unexpected { server, status, problem: problem.to_owned() }
    }

    /// Whether another request with the same key is under way.
    fn is_in_flight(&self) -> bool {
        self.status == 409 && self.again
    }
}

/// A server to talk to.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    server: ServerUrl,
    key: HeaderValue,
}

impl Client {
    pub(super) fn new(arguments: &ServerArguments) -> Result<Self, OperateError> {
        let key = key::find(arguments.key_file.as_deref())?;
        let trust = trust::find(arguments.server.is_https(), arguments.ca.as_deref())?;
        // The key goes to the server that was named: through no proxy that happens to be in the
        // environment, and nowhere that somebody redirects to.
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

    /// Ask something that the server answers at once.
    pub(super) fn ask(&self, path: &str, query: &Query) -> Result<Answer, OperateError> {
        self.ask_patiently(path, query, Duration::ZERO)
    }

    /// Ask something that the server takes some time to answer.
    pub(super) fn ask_patiently(
        &self,
        path: &str,
        query: &Query,
        time: Duration,
    ) -> Result<Answer, OperateError> {
        let request = self.dress(self.agent.get(self.url(path)), query);
        let request = request.config().timeout_global(Some(time + ANSWER_TIME)).build();
        let answer = request.call().and_then(|response| self.read(response));
        answer.map_err(|source| OperateError::Unreachable { server: self.server.clone(), source })
    }

    /// Have something changed: at most once, whatever becomes of the connection.
    pub(super) fn change(&self, change: &Change<'_>) -> Result<Answer, OperateError> {
        let mut pauses = PAUSES.into_iter();
        let mut lost = false;
        loop {
            let error = match self.attempt(change) {
                Ok(answer) if answer.is_in_flight() => match pauses.next() {
                    None => return Ok(answer),
                    Some(pause) => {
                        thread::sleep(pause);
                        continue;
                    }
                },
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let (source, pause) = match error {
                AttemptError::Upload(error) => return Err(error.into()),
                AttemptError::NotSent(source) if !lost => {
                    return Err(OperateError::Unreachable { server: self.server.clone(), source });
                }
                // A server that is too slow to answer is not helped by asking it again.
                AttemptError::Lost(source @ ureq::Error::Timeout(_)) => (source, None),
                AttemptError::NotSent(source) | AttemptError::Lost(source) => {
                    (source, pauses.next())
                }
            };
            lost = true;
            let Some(pause) = pause else {
                return Err(self.outcome_unknown(change, source.into()));
            };
            thread::sleep(pause);
        }
    }

    /// Nobody can say any more what became of a change.
    pub(super) fn outcome_unknown(
        &self,
        change: &Change<'_>,
        source: Box<dyn Error + Send + Sync>,
    ) -> OperateError {
        let (server, key) = (self.server.clone(), change.key.clone());
        OperateError::OutcomeUnknown { server, key, source }
    }

    fn attempt(&self, change: &Change<'_>) -> Result<Answer, AttemptError> {
        let url = self.url(&change.path);
        let key = change.key.to_string();
        let whole = Some(CHANGE_TIME);
        let response = match &change.content {
            Content::Delete => {
                let request = self.dress(self.agent.delete(url), &change.query);
                let request = request.header(IDEMPOTENCY_KEY, key);
                request.config().timeout_global(whole).build().call()
            }
            Content::Json(body) => {
                let request = self.dress(self.agent.post(url), &change.query);
                let request = request.header(IDEMPOTENCY_KEY, key).content_type("application/json");
                request.config().timeout_global(whole).build().send(body.to_string())
            }
            Content::Upload(upload) => {
                let request = self.dress(self.agent.post(url), &change.query);
                self.send(request.header(IDEMPOTENCY_KEY, key), upload)
            }
        };
        response.and_then(|response| self.read(response)).map_err(AttemptError::new)
    }

    fn send(
        &self,
        request: RequestBuilder<WithBody>,
        upload: &Upload,
    ) -> Result<Response<Body>, ureq::Error> {
        let mut body = upload.body().map_err(io::Error::other)?;
        request
            .content_type("application/octet-stream")
            .header("Content-Length", upload.length_bytes())
            // A server that refuses says so before all of it is sent.
            .header("Expect", "100-continue")
            .config()
            .timeout_per_write(Some(STALLED_TIME))
            .timeout_recv_response(Some(UPLOADED_TIME))
            .timeout_recv_body(Some(ANSWER_TIME))
            .build()
            .send(SendBody::from_reader(&mut body))
    }

    fn url(&self, path: &str) -> String {
        format!("{}/admin/v1/{path}", self.server)
    }

    fn dress<Any>(&self, request: RequestBuilder<Any>, query: &Query) -> RequestBuilder<Any> {
        let pairs = query.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
        request.header("X-API-Key", self.key.clone()).query_pairs(pairs)
    }

    fn read(&self, mut response: Response<Body>) -> Result<Answer, ureq::Error> {
        let headers = response.headers();
        let replayed = headers.get("Idempotency-Replayed").is_some_and(|value| value == "true");
        let again = headers.contains_key("Retry-After");
        let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec()?;
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (server, status) = (self.server.clone(), response.status().as_u16());
        Ok(Answer { server, status, replayed, again, body })
    }
}

const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// An attempt at a change brought no answer.
#[derive(Debug)]
enum AttemptError {
    /// The file could not be read on, so the server cannot have all of it.
    Upload(UploadError),
    /// The server was never reached.
    NotSent(ureq::Error),
    /// The server may have done it.
    Lost(ureq::Error),
}

impl AttemptError {
    /// When in doubt, it was sent.
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

/// Whether the server has not shown who it is: nothing is sent before that.
fn is_untrusted(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_plain_addresses() {
        let good = [
            ("http://127.0.0.1:8002", "http://127.0.0.1:8002"),
            ("http://localhost", "http://localhost"),
            ("http://[::1]:8002/", "http://[::1]:8002"),
            ("https://127.0.0.1:8002", "https://127.0.0.1:8002"),
            ("http://gateway:80/guesthouse/", "http://gateway:80/guesthouse"),
        ];
        for (text, url) in good {
            assert_eq!(text.parse::<ServerUrl>().unwrap().to_string(), url);
        }
        for bad in [
            "",
            "127.0.0.1:8002",
            "ftp://127.0.0.1:8002",
            "http://",
            "http://:8002",
            "http://host:99999",
            "http://somebody:secret@host:8002",
            "http://host:8002/?a=b",
            "http://host:8002/#a",
            "http://host name",
            "/admin",
        ] {
            assert_eq!(bad.parse::<ServerUrl>(), Err(ServerUrlError), "{bad}");
        }
    }

    #[test]
    fn idempotency_keys_are_what_the_server_takes() {
        let long = "k".repeat(MAX_IDEMPOTENCY_KEY_LENGTH);
        for good in ["a", "deploy-1.2.3/41", long.as_str()] {
            assert_eq!(good.parse::<IdempotencyKey>().unwrap().to_string(), good);
        }
        let longer = format!("{long}k");
        for bad in ["", "a b", "a\n", "é", longer.as_str()] {
            assert_eq!(bad.parse::<IdempotencyKey>(), Err(IdempotencyKeyError), "{bad}");
        }
        let random = IdempotencyKey::random();
        assert_eq!(random.to_string().parse(), Ok(random.clone()));
        assert_ne!(random, IdempotencyKey::random());
    }

    #[test]
    fn only_what_never_arrived_is_taken_for_not_sent() {
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
