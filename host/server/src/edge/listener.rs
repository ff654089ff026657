//! Accepts connections up to a limit, serves HTTP/1.1 and HTTP/2 on them, and closes idle ones.
//!
//! The protocol is negotiated in the TLS handshake; without TLS, the first bytes tell it. A client that
//! does not send the head of a request in time is disconnected, so that silent connections cannot use up
//! the limit. The handshake has the same time. A connection that has made a request is kept alive for
//! longer, but is evicted when the limit is reached. A client must read a response within the time for a
//! head and the time for a body together. The time of a request body is bounded in `body`, the time until
//! a response by the deadline of the prediction. A response of unlimited duration ([`Streamed`]) counts as
//! unread only while there is a chunk that the client does not read.

mod activity;
mod socket;
pub(super) mod tls;

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONNECTION;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Version};
use axum::response::Response;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use self::activity::{Activity, InProgress, Silence, StreamedBody, Unread};
use self::socket::{Socket, Wire};
use self::tls::Tls;
use super::forwarded::FORWARDED_PREFIX;
use super::listener_kind::ListenerKind;
use super::unread_body::Leftover;
use crate::config::{Limits, TrustedProxies};
use crate::observe::server_metrics::GaugeGuard;

/// The delay after the machine failed to accept a connection, for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Concurrent requests of one HTTP/2 connection: the least that the standard recommends to allow.
const MAX_STREAMS: u32 = 100;

/// The size of the headers of an HTTP/2 request, decompressed. For HTTP/1, hyper limits them to 100
/// headers in about 400 KiB.
const MAX_HEADER_LIST: u32 = 16 << 10;

/// The flow-control windows of HTTP/2 for one body and for all bodies of a connection. Bodies are read as
/// they arrive, so the windows only cover the network: 20 Mbit/s with a tenth of a second of latency.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Bytes of one HTTP/2 response that are buffered in the connection.
const MAX_SEND_BUFFER: usize = 64 << 10;

/// The interval of pings on a silent HTTP/2 connection, and the time for the reply: a client that has
/// vanished is detected within half a minute.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIME: Duration = Duration::from_secs(15);

/// The streams that a client may reset before they are handled, and the streams with protocol errors,
/// before the connection is closed. They bound the work that a client causes by opening and resetting
/// streams in a loop.
const MAX_PENDING_RESETS: usize = 20;
const MAX_ERROR_RESETS: usize = 256;

/// How long a closing HTTP/2 connection without requests waits for the client to close it: a round trip
/// over any network.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// How often idle connections are evicted while the limit is reached, and how many at once. Looking at all
/// connections takes a fraction of a millisecond.
const EVICT_INTERVAL: Duration = Duration::from_millis(100);
const EVICTED_AT_ONCE: usize = 64;

/// How much earlier than the server closes an idle connection the client is told to stop using it, so
/// that a request on its way arrives in time. At most a fifth of the idle time.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(5);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// A listener: its sockets, and how their connections are served.
pub struct Listener {
    /// The sockets, at least one: a host name can have several addresses.
    pub sockets: Vec<TcpListener>,
    /// The certificate; `None` for plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// For whom the listener is.
    pub kind: ListenerKind,
    /// The proxies whose forwarding headers are honoured.
    pub trusted_proxies: Arc<TrustedProxies>,
}

/// The connections of a listener.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// The activity of each connection.
    activities: HashMap<Id, Arc<Activity>>,
}

impl Connections {
    /// Wait until a connection ends; `None` if there are none.
    async fn ended(&mut self) -> Option<()> {
        let id = match self.tasks.join_next_with_id().await? {
            Ok((id, ())) => id,
            Err(error) => error.id(),
        };
        self.activities.remove(&id);
        Some(())
    }

    /// Close the connections that have been idle for longest, and for the given time at least.
    fn evict(&self, time: Duration) {
        let now = Instant::now();
        let idle = self.activities.values().filter_map(|activity| {
            let since = activity.idle_since()?;
            (now.duration_since(since) >= time).then_some((since, activity))
        });
        let mut idle: Vec<_> = idle.collect();
        idle.sort_unstable_by_key(|(since, _)| *since);
        for (_, activity) in idle.into_iter().take(EVICTED_AT_ONCE) {
            activity.evict();
        }
    }
}

/// Serve until `stopping` is true, then complete the requests in progress.
pub async fn serve(
    listener: Listener,
    endpoints: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let server = Arc::new(Server {
        plain: http(),
        http2: http().http2_only(),
        http1: http().http1_only(),
        tls: listener.tls,
        endpoints,
        keep_alive: keep_alive(limits.idle_time),
        trusted_proxies: listener.trusted_proxies,
        limits,
    });
    let mut connections = Connections::default();
    let mut next_eviction = Instant::now();
    let (mut is_failing, mut first) = (false, 0);
    loop {
        // Over the limit, clients wait in the kernel's accept queue until a connection ends.
        let has_room = connections.tasks.len() < limits.connections;
        let accepted = tokio::select! {
            () = stopped(&mut stopping) => break,
            Some(()) = connections.ended() => continue,
            accepted = accept(&listener.sockets, &mut first), if has_room => accepted,
            () = tokio::time::sleep_until(next_eviction), if !has_room => {
                connections.evict(limits.head_time);
                next_eviction = Instant::now() + EVICT_INTERVAL;
                continue;
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                is_failing = false;
                let (server, kind) = (Arc::clone(&server), listener.kind.clone());
                let (stopping, activity) = (stopping.clone(), Arc::new(Activity::new()));
                let is_trusted = server.trusted_proxies.contains(peer.ip());
                let connection = Connection { activity: Arc::clone(&activity), is_trusted };
                let task = connections.tasks.spawn(async move {
                    kind.metrics().accepted.count();
                    let _open = GaugeGuard::new(&kind.metrics().open);
                    server.connection(stream, &connection, stopping).await;
                });
                connections.activities.insert(task.id(), activity);
            }
            // The client left while it waited.
            Err(error) if is_client_error(&error) => {}
            Err(error) => {
                if !is_failing {
                    tracing::error!(%error, "cannot accept connections");
                }
                is_failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Stop accepting connections.
    drop(listener.sockets);
    while connections.ended().await.is_some() {}
}

/// The value of `Keep-Alive`, which tells clients how long a connection may be idle; `None` below a
/// second.
fn keep_alive(idle_time: Duration) -> Option<HeaderValue> {
    let seconds = (idle_time - KEEP_ALIVE_MARGIN.min(idle_time / 5)).as_secs();
    HeaderValue::try_from(format!("timeout={seconds}")).ok().filter(|_| seconds > 0)
}

/// Accept a connection from any of the sockets. They are polled in rotation, so that clients of one
/// address cannot starve those of another.
async fn accept(sockets: &[TcpListener], first: &mut usize) -> io::Result<(TcpStream, SocketAddr)> {
    *first = first.wrapping_add(1) % sockets.len();
    let (before, after) = sockets.split_at(*first);
    poll_fn(|context| {
        let mut accepted = after.iter().chain(before).map(|one| one.poll_accept(context));
        accepted.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

fn is_client_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

type Http = auto::Builder<TokioExecutor>;

fn http() -> Http {
    let mut http = auto::Builder::new(TokioExecutor::new());
    // The time of a head and half-closed connections are handled in this module.
    http.http1().timer(TokioTimer::new()).header_read_timeout(None).half_close(true);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIME);
    http
}

/// Marks a response whose chunks are produced over an unlimited time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streamed;

/// The state that all connections of a listener share.
struct Server {
    /// Detects the protocol from the first bytes; the others serve the protocol of the TLS handshake.
    plain: Http,
    http2: Http,
    http1: Http,
    tls: Option<Arc<Tls>>,
    endpoints: Router,
    /// The value of `Keep-Alive` for HTTP/1.
    keep_alive: Option<HeaderValue>,
    trusted_proxies: Arc<TrustedProxies>,
    limits: Limits,
}

/// One connection.
struct Connection {
    activity: Arc<Activity>,
    /// Whether the peer is a trusted proxy.
    is_trusted: bool,
}

/// How a connection has ended.
#[derive(PartialEq, Eq)]
enum End {
    /// HTTP completed it, possibly after writing the last response.
    Completed,
    /// It was closed, or there was nothing to write.
    Closed,
}

impl Server {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        connection: &Connection,
        mut stopping: watch::Receiver<bool>,
    ) {
        // Responses are written in one go, so there is nothing to coalesce. This and the next call fail on
        // a connection that has ended, which the first read reports as well.
        let _ = stream.set_nodelay(true);
        // A client that does not read its responses must not hold the connection for ever.
        let read_time = self.limits.body_time.as_millis();
        let read_time = u32::try_from(read_time).unwrap_or(u32::MAX);
        let _ = set_tcp_user_timeout(&stream, read_time);
        let stream = Arc::new(stream);
        let socket = Socket::new(&stream);
        let activity = &connection.activity;
        let served = async {
            let Some(tls) = &self.tls else {
                return self.serve_http(&self.plain, socket, connection, stopping.clone()).await;
            };
            // A failed handshake concerns the client only, and there is no request to log.
            let mut stopping = stopping.clone();
            let handshake = tokio::select! {
                handshake = tokio::time::timeout(self.limits.head_time, tls.accept(socket)) => handshake,
                () = stopped(&mut stopping) => return End::Closed,
            };
            let Ok(Ok(socket)) = handshake else { return End::Closed };
            let http = if tls::is_http2(&socket) { &self.http2 } else { &self.http1 };
            self.serve_http(http, socket, connection, stopping).await
        };
        let end = tokio::select! {
            biased;
            end = served => end,
            // The requests in progress are cancelled.
            () = socket::reset(&stream, activity) => End::Closed,
        };
        if end == End::Completed && !activity.is_http2() {
            tokio::select! {
                () = socket::linger(&stream) => {}
                () = stopped(&mut stopping) => {}
            }
        }
    }

    async fn serve_http(
        &self,
        http: &Http,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        connection: &Connection,
        mut stopping: watch::Receiver<bool>,
    ) -> End {
        let activity = &connection.activity;
        let heads = Arc::new(self.heads(connection, &stopping));
        let endpoints = TowerToHyperService::new(self.endpoints.clone());
        let service = service_fn(move |mut request: hyper::Request<_>| {
            let heads = Arc::clone(&heads);
            let mut in_progress = heads.activity.begin_request(request.version());
            let is_persistent = heads.request(&mut request);
            let response = endpoints.call(request);
            async move {
                let response = response.await;
                in_progress.handler_completed();
                response.map(|response| heads.response(response, is_persistent, in_progress))
            }
        });
        let stream = TokioIo::new(Wire::new(stream, activity));
        let mut connection = pin!(http.serve_connection(stream, service));
        // Bytes that have arrived are handled first. An error of the connection concerns its client only.
        let is_idle = tokio::select! {
            biased;
            _ = connection.as_mut() => return End::Completed,
            () = stopped(&mut stopping) => false,
            silence = activity.silent(&self.limits) => match silence {
                Silence::Head => return End::Closed,
                Silence::Idle => true,
            },
            () = activity.evicted() => true,
            // The kernel's timeout does not cover HTTP/2, where the client controls the window.
            () = activity.unread_for(self.limits.head_time + self.limits.body_time) => {
                return End::Closed;
            }
        };
        // hyper closes a connection between two requests at once, but would wait for the head of a first
        // request.
        if !activity.has_had_request() {
            return End::Closed;
        }
        connection.as_mut().graceful_shutdown();
        if is_idle {
            // The client may still be reading a response.
            tokio::select! {
                biased;
                _ = connection.as_mut() => return End::Closed,
                () = tokio::time::sleep(self.limits.body_time) => return End::Closed,
                () = stopped(&mut stopping) => {}
            }
        }
        if !activity.is_http2() {
            // The caller of `serve` bounds the time to drain.
            let _ = connection.await;
            return End::Closed;
        }
        // The client should close the connection as well, but need not.
        tokio::select! {
            _ = connection.as_mut() => {}
            () = activity.idle_for(CLOSE_TIME) => {}
            () = activity.unread_for(self.limits.head_time + self.limits.body_time) => {}
        }
        End::Closed
    }

    fn heads(&self, connection: &Connection, stopping: &watch::Receiver<bool>) -> Heads {
        Heads {
            activity: Arc::clone(&connection.activity),
            is_trusted: connection.is_trusted,
            keep_alive: self.keep_alive.clone(),
            stopping: stopping.clone(),
        }
    }
}

/// Handles the connection-specific headers of requests and responses.
struct Heads {
    activity: Arc<Activity>,
    is_trusted: bool,
    keep_alive: Option<HeaderValue>,
    stopping: watch::Receiver<bool>,
}

impl Heads {
    /// Whether the HTTP/1 client keeps the connection for another request. Removes the forwarding header
    /// of a peer that is not a trusted proxy.
    fn request<T>(&self, request: &mut hyper::Request<T>) -> bool {
        if !self.is_trusted {
            request.headers_mut().remove(FORWARDED_PREFIX);
        }
        let has_option = |option| has_connection_option(request.headers(), option);
        match request.version() {
            Version::HTTP_11 => !has_option("close"),
            Version::HTTP_10 => has_option("keep-alive"),
            _ => false,
        }
    }

    fn response(
        &self,
        mut response: Response,
        is_persistent: bool,
        in_progress: InProgress,
    ) -> Response {
        let is_http1 = !self.activity.is_http2();
        let leftover = response.extensions_mut().remove::<Leftover>();
        let must_close = leftover.is_some_and(|leftover| match leftover.take(is_http1) {
            Some(remainder) => {
                self.activity.read_on(remainder);
                false
            }
            None => true,
        });
        let headers = response.headers_mut();
        if is_http1 && must_close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        } else if let Some(keep_alive) = &self.keep_alive
            && is_persistent
            && !*self.stopping.borrow()
            && !headers.contains_key(CONNECTION)
        {
            headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
            headers.insert(KEEP_ALIVE, keep_alive.clone());
        }
        if response.extensions().get::<Streamed>().is_some() {
            StreamedBody::wrap(&self.activity, in_progress, response)
        } else {
            let response = Unread::wrap(&self.activity, response);
            drop(in_progress);
            response
        }
    }
}

fn has_connection_option(headers: &HeaderMap, wanted: &str) -> bool {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let mut options = values.flat_map(|value| value.split(','));
    options.any(|option| option.trim().eq_ignore_ascii_case(wanted))
}

/// Completes when the server stops.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender was dropped, which is a stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}
