//! A keep-alive connection that sends one request at a time and classifies its result.
//!
//! A connection that fails is reopened for the next request. Time is measured by the loops, which
//! know when a request was due.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::StatusCode;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::target::Target;

/// The limit of a response body. The largest batch of a model server is far below.
const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// The response header that names the version of the model.
const VERSION_HEADER: HeaderName = HeaderName::from_static("x-model-version");

/// The trailer with the status of a gRPC call, and its value for a success.
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_OK: HeaderValue = HeaderValue::from_static("0");

/// The pause after a failed connection, so that an unreachable server does not cause a busy loop.
const RECONNECT_PAUSE: Duration = Duration::from_millis(10);

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With the expected response.
    Success,
    /// With a status that is tolerated.
    Tolerated(StatusCode),
    /// With any other status.
    Status(StatusCode),
    /// With the expected status and an unexpected body or gRPC status.
    WrongBody,
    /// The connection could not be opened, or broke.
    Connection,
    /// No complete response arrived in time.
    Timeout,
}

impl Outcome {
    /// The name in reports and traces.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Success => "success",
            Self::Tolerated(status) | Self::Status(status) => status.as_str(),
            Self::WrongBody => "wrong_body",
            Self::Connection => "connection",
            Self::Timeout => "timeout",
        }
    }
}

/// The outcome of a request, and the version of the model that the response names.
#[derive(Debug, Clone)]
pub(crate) struct RequestResult {
    pub(crate) outcome: Outcome,
    pub(crate) version: Option<HeaderValue>,
}

/// A target, and a connection to it unless the last request broke it.
pub(crate) struct Connection {
    target: Arc<Target>,
    time_limit: Duration,
    sender: Option<Sender>,
}

/// The sending half of a connection in one of the protocols.
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

impl Connection {
    /// Connects, so that no request includes the handshake.
    pub(crate) async fn open(target: Arc<Target>, time_limit: Duration) -> io::Result<Self> {
        let sender = match timeout(time_limit, connect(&target)).await {
            Ok(sender) => Some(sender?),
            Err(_elapsed) => return Err(io::ErrorKind::TimedOut.into()),
        };
        Ok(Self { target, time_limit, sender })
    }

    /// Sends the request of this number and reads its response.
    pub(crate) async fn send(&mut self, number: usize) -> RequestResult {
        // Taken out: a connection with half of a response must not be reused.
        let sender = self.sender.take();
        let outcome = match timeout(self.time_limit, exchange(&self.target, sender, number)).await {
            Ok(Ok((sender, result))) => {
                self.sender = Some(sender);
                return result;
            }
            Ok(Err(_broken)) => Outcome::Connection,
            Err(_elapsed) => Outcome::Timeout,
        };
        RequestResult { outcome, version: None }
    }

    /// Waits a little if the last request broke the connection.
    pub(crate) async fn recover(&self) {
        if self.sender.is_none() {
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }
}

/// The connection cannot be reused. The cause does not matter: only the number of failures is
/// reported.
struct Broken;

async fn exchange(
    target: &Target,
    sender: Option<Sender>,
    number: usize,
) -> Result<(Sender, RequestResult), Broken> {
    let mut sender = match sender {
        Some(sender) if !sender.is_closed() => sender,
        _ => connect(target).await.map_err(|_error| Broken)?,
    };
    let response = sender.send(target.request(number)).await;
    let (mut head, body) = response.map_err(|_error| Broken)?.into_parts();
    let version = head.headers.remove(&VERSION_HEADER);
    // The body is read even if the status is wrong, because the connection is reused.
    let (body, trailers) = read(body).await?;
    let has_failed = target.is_grpc() && {
        // A response without a message carries its trailers in the head.
        let status = trailers.get(GRPC_STATUS).or_else(|| head.headers.get(GRPC_STATUS));
        status != Some(&GRPC_OK)
    };
    let outcome = if target.is_tolerated(head.status) {
        Outcome::Tolerated(head.status)
    } else if head.status != target.expected_status() {
        Outcome::Status(head.status)
    } else if !has_failed && target.is_expected(&body) {
        Outcome::Success
    } else {
        Outcome::WrongBody
    };
    Ok((sender, RequestResult { outcome, version }))
}

async fn read(body: Incoming) -> Result<(Bytes, HeaderMap), Broken> {
    let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await.map_err(|_error| Broken)?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok((body.to_bytes(), trailers))
}

async fn connect(target: &Target) -> io::Result<Sender> {
    let stream = TcpStream::connect(target.address()).await?;
    // A request is a single write, which must not wait for more data.
    stream.set_nodelay(true)?;
    let stream = TokioIo::new(stream);
    // The task ends with the sender. Its error appears as the error of a request.
    if target.is_grpc() {
        let handshake = http2::handshake(TokioExecutor::new(), stream).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Sender::Http2(sender))
    } else {
        let handshake = http1::handshake(stream).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Sender::Http1(sender))
    }
}
