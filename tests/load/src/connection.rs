//! One keep-alive connection: a request, its whole answer, a verdict.
//!
//! A connection that fails is opened again with the next request. It measures no time; that is for
//! the loops, which know from when.

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

/// The largest body of an answer that is read. The largest batch of a model server is far below.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Says in an answer which version of a model gave it.
const VERSION_HEADER: HeaderName = HeaderName::from_static("x-model-version");

/// Says in the trailers of a gRPC answer what came of the call; the code of a success.
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_OK: HeaderValue = HeaderValue::from_static("0");

/// The pause after a connection failed, so that a server that is gone is not asked in a busy loop.
const RECONNECT_PAUSE: Duration = Duration::from_millis(10);

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With the expected answer.
    Success,
    /// With a status that is expected as well.
    Also(StatusCode),
    /// With another status than the expected ones.
    Status(StatusCode),
    /// With the expected status and another body.
    WrongBody,
    /// The connection could not be made, or broke.
    Connection,
    /// There was no whole answer in time.
    Timeout,
}

impl Outcome {
    /// Its name in reports and traces.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Success => "success",
            Self::Also(status) | Self::Status(status) => status.as_str(),
            Self::WrongBody => "wrong_body",
            Self::Connection => "connection",
            Self::Timeout => "timeout",
        }
    }
}

/// How a request ended, and which version of a model answered it, if an answer says so.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) version: Option<HeaderValue>,
}

/// An endpoint and, most of the time, a way to it.
pub(crate) struct Connection {
    target: Arc<Target>,
    time_limit: Duration,
    sender: Option<Sender>,
}

/// The way to the server in one of its protocols.
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
    /// Connects, so that no request pays for it.
    pub(crate) async fn open(target: Arc<Target>, time_limit: Duration) -> io::Result<Self> {
        let sender = match timeout(time_limit, connect(&target)).await {
            Ok(sender) => Some(sender?),
            Err(_elapsed) => return Err(io::ErrorKind::TimedOut.into()),
        };
        Ok(Self { target, time_limit, sender })
    }

    /// Sends the request of this number and reads the answer.
    pub(crate) async fn ask(&mut self, number: usize) -> Answer {
        // Moved out: a connection with half an answer on it must not be used again.
        let sender = self.sender.take();
        let outcome = match timeout(self.time_limit, exchange(&self.target, sender, number)).await {
            Ok(Ok((sender, answer))) => {
                self.sender = Some(sender);
                return answer;
            }
            Ok(Err(_broken)) => Outcome::Connection,
            Err(_elapsed) => Outcome::Timeout,
        };
        Answer { outcome, version: None }
    }

    /// Waits a little, if the last request broke the connection.
    pub(crate) async fn recover(&self) {
        if self.sender.is_none() {
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }
}

/// The connection is of no more use. Why is of no interest: only the number of them counts.
struct Broken;

async fn exchange(
    target: &Target,
    sender: Option<Sender>,
    number: usize,
) -> Result<(Sender, Answer), Broken> {
    let mut sender = match sender {
        Some(sender) if !sender.is_closed() => sender,
        _ => connect(target).await.map_err(|_error| Broken)?,
    };
    let response = sender.send(target.request(number)).await;
    let (mut head, body) = response.map_err(|_error| Broken)?.into_parts();
    let version = head.headers.remove(&VERSION_HEADER);
    // The whole body is read even when the status is wrong: the connection goes on after it.
    let (body, trailers) = read(body).await?;
    let has_failed = target.is_grpc() && {
        // An answer without a message has its trailers in its head.
        let status = trailers.get(GRPC_STATUS).or_else(|| head.headers.get(GRPC_STATUS));
        status != Some(&GRPC_OK)
    };
    let outcome = if target.is_also_expected(head.status) {
        Outcome::Also(head.status)
    } else if head.status != target.expected_status() {
        Outcome::Status(head.status)
    } else if !has_failed && target.is_expected(&body) {
        Outcome::Success
    } else {
        Outcome::WrongBody
    };
    Ok((sender, Answer { outcome, version }))
}

async fn read(body: Incoming) -> Result<(Bytes, HeaderMap), Broken> {
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|_error| Broken)?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok((body.to_bytes(), trailers))
}

async fn connect(target: &Target) -> io::Result<Sender> {
    let stream = TcpStream::connect(target.address()).await?;
    // A request is one write; the system must not hold it back in the hope of another.
    stream.set_nodelay(true)?;
    let stream = TokioIo::new(stream);
    // The connection ends with the sender. Its error reaches us through the request that fails with it.
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
