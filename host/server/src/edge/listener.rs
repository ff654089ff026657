//! Connections: accepted up to a limit, served HTTP/1.1 and HTTP/2, and closed when they say nothing.
//!
//! Which of the two it is, the TLS handshake says, or without TLS the first bytes. A caller that does
//! not send the head of a request in time is cut off, so that silent connections cannot use up the
//! limit; the handshake has that long as well. One that has made a request is kept alive for longer,
//! but makes room where the limit is reached. An answer has to be taken in the time for a head and the
//! time for a body together. How long a body may take is bounded in `body`, how long an answer may take
//! by the deadline of the prediction. An answer that goes on for as long as its caller likes
//! ([`Streamed`]) is left lying only while there is a piece of it that the caller does not take.

mod activity;
mod socket;

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

use self::activity::{Activity, Silence, Stream, Untaken, Working};
pub(super) use self::socket::Socket;
use self::socket::Wire;
use super::forwarded::FORWARDED_PREFIX;
use super::observe::Way;
use super::tls::{self, Tls};
use super::unread::Leftover;
use crate::config::{Limits, TrustedProxies};
use crate::observe::server_metrics::GaugeGuard;

/// How long to wait when the machine refuses connections, for want of files or memory: short
/// enough that nobody notices when it is over, long enough not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Requests of one HTTP/2 connection at the same time: what the standard recommends to allow.
const MAX_STREAMS: u32 = 100;

/// Bytes in the headers of an HTTP/2 request, inflated. HTTP/1 has hyper's own limits: 100 headers
/// in about 400 KiB.
const MAX_HEADER_LIST: u32 = 16 << 10;

/// Bytes of one body, and of all bodies of a connection, that HTTP/2 callers may send ahead. Bodies
/// are read as they come, so this is for the way only: 20 Mbit/s over a tenth of a second.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Bytes of one HTTP/2 answer that wait in the connection.
const MAX_SEND_BUFFER: usize = 64 << 10;

/// How often an HTTP/2 caller that says nothing is asked whether it is there, and how long it has for
/// the answer: one that has vanished is found within half a minute, whatever it was waiting for.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIME: Duration = Duration::from_secs(15);

/// Requests that a caller may take back before they are looked at, and that may be wrong, before the
/// connection is closed. Who opens and resets streams in a loop costs work and waits for nothing.
const MAX_PENDING_RESETS: usize = 20;
const MAX_ERROR_RESETS: usize = 256;

/// How long a closing HTTP/2 connection with no request under way waits for its caller's last word:
/// a round trip over any network.
const GOODBYE_TIME: Duration = Duration::from_secs(1);

/// How often idle connections are looked for while there is no room for others, and how many make room
/// at once: looking at all takes a fraction of a millisecond, and hundreds per second can come.
const EVICT_INTERVAL: Duration = Duration::from_millis(100);
const EVICTED_AT_ONCE: usize = 64;

/// How long before an idle connection is closed its client is told to use it no more: a request that is
/// on its way by then has arrived. A fifth of the time, if that is less.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(5);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Where callers come in.
pub struct Entrance {
    /// The sockets, at least one: a name can have several addresses.
    pub listeners: Vec<TcpListener>,
    /// How connections are made private, if they are.
    pub tls: Option<Arc<Tls>>,
    /// Whom it is for.
    pub way: Way,
    /// Whose word is taken for what they were asked for.
    pub trusted: Arc<TrustedProxies>,
}

/// The connections of a listener.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// What is under way on each.
    activities: HashMap<Id, Arc<Activity>>,
}

impl Connections {
    /// Wait until one ends; none, if there is none.
    async fn ended(&mut self) -> Option<()> {
        let id = match self.tasks.join_next_with_id().await? {
            Ok((id, ())) => id,
            Err(error) => error.id(),
        };
        self.activities.remove(&id);
        Some(())
    }

    /// Have those closed that have been idle for longest, and for that long at least.
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

/// Serve until `stopping` says otherwise, then finish the requests that are under way.
pub async fn serve(
    entrance: Entrance,
    endpoints: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let server = Arc::new(Server {
        plain: http(),
        http2: http().http2_only(),
        http1: http().http1_only(),
        tls: entrance.tls,
        endpoints,
        keep_alive: keep_alive(limits.idle_time),
        trusted: entrance.trusted,
        limits,
    });
    let mut connections = Connections::default();
    let mut next_eviction = Instant::now();
    let (mut refusing, mut first) = (false, 0);
    loop {
        // Over the limit, callers wait in the system's own queue until a connection ends.
        let room = connections.tasks.len() < limits.connections;
        let accepted = tokio::select! {
            () = stopped(&mut stopping) => break,
            Some(()) = connections.ended() => continue,
            accepted = accept(&entrance.listeners, &mut first), if room => accepted,
            () = tokio::time::sleep_until(next_eviction), if !room => {
                connections.evict(limits.head_time);
                next_eviction = Instant::now() + EVICT_INTERVAL;
                continue;
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                refusing = false;
                let (server, way) = (Arc::clone(&server), entrance.way.clone());
                let (stopping, activity) = (stopping.clone(), Arc::new(Activity::new()));
                let is_trusted = server.trusted.contains(peer.ip());
                let connection = Connection { activity: Arc::clone(&activity), is_trusted };
                let task = connections.tasks.spawn(async move {
                    way.meters().accepted.count();
                    let _open = GaugeGuard::new(&way.meters().open);
                    server.connection(stream, &connection, stopping).await;
                });
                connections.activities.insert(task.id(), activity);
            }
            // The caller left while it waited.
            Err(error) if is_of_caller(&error) => {}
            Err(error) => {
                if !refusing {
                    tracing::error!(%error, "cannot accept connections");
                }
                refusing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Nobody may connect any more.
    drop(entrance.listeners);
    while connections.ended().await.is_some() {}
}

/// What clients are told of how long a connection is kept alive, if that is long enough to tell.
fn keep_alive(idle_time: Duration) -> Option<HeaderValue> {
    let seconds = (idle_time - KEEP_ALIVE_MARGIN.min(idle_time / 5)).as_secs();
    HeaderValue::try_from(format!("timeout={seconds}")).ok().filter(|_| seconds > 0)
}

/// The next connection of any of the sockets. They take turns in being asked first, so that callers
/// at one address cannot starve those at another.
async fn accept(
    listeners: &[TcpListener],
    first: &mut usize,
) -> io::Result<(TcpStream, SocketAddr)> {
    *first = first.wrapping_add(1) % listeners.len();
    let (before, after) = listeners.split_at(*first);
    poll_fn(|context| {
        let mut accepted = after.iter().chain(before).map(|one| one.poll_accept(context));
        accepted.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

fn is_of_caller(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

type Http = auto::Builder<TokioExecutor>;

fn http() -> Http {
    let mut http = auto::Builder::new(TokioExecutor::new());
    // How long a head may take, and whether the caller is there, is seen to here.
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

/// Marks an answer that comes piece by piece, whenever there is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streamed;

/// What all connections of a listener have in common.
struct Server {
    /// For callers that say what they speak by speaking it, and for those that have agreed on it.
    plain: Http,
    http2: Http,
    http1: Http,
    tls: Option<Arc<Tls>>,
    endpoints: Router,
    /// What clients of HTTP/1 are told of how long connections are kept alive.
    keep_alive: Option<HeaderValue>,
    trusted: Arc<TrustedProxies>,
    limits: Limits,
}

/// What is known of one.
struct Connection {
    activity: Arc<Activity>,
    /// Whether the peer is a proxy whose word is taken.
    is_trusted: bool,
}

/// How a connection came to its end.
#[derive(PartialEq, Eq)]
enum End {
    /// By itself, which may be because the last response was written.
    Over,
    /// It was cut off, or there was nothing to write.
    Closed,
}

impl Server {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        connection: &Connection,
        mut stopping: watch::Receiver<bool>,
    ) {
        // Answers are written at once, so there is nothing to gather. This and the next fail on a
        // connection that has ended, which the first read tells as well.
        let _ = stream.set_nodelay(true);
        // A caller that does not take its answers would hold the connection for ever.
        let take_time = self.limits.body_time.as_millis();
        let take_time = u32::try_from(take_time).unwrap_or(u32::MAX);
        let _ = set_tcp_user_timeout(&stream, take_time);
        let stream = Arc::new(stream);
        let socket = Socket::new(&stream);
        let activity = &connection.activity;
        let served = async {
            let Some(tls) = &self.tls else {
                return self.speak(&self.plain, socket, connection, stopping.clone()).await;
            };
            // What goes wrong here concerns the caller only, and there is no request to log.
            let mut stopping = stopping.clone();
            let shaken = tokio::select! {
                shaken = tokio::time::timeout(self.limits.head_time, tls.accept(socket)) => shaken,
                () = stopped(&mut stopping) => return End::Closed,
            };
            let Ok(Ok(socket)) = shaken else { return End::Closed };
            let http = if tls::is_http2(&socket) { &self.http2 } else { &self.http1 };
            self.speak(http, socket, connection, stopping).await
        };
        let end = tokio::select! {
            biased;
            end = served => end,
            // The requests that are under way are cancelled.
            () = socket::reset(&stream, activity) => End::Closed,
        };
        if end == End::Over && !activity.is_http2() {
            tokio::select! {
                () = socket::linger(&stream) => {}
                () = stopped(&mut stopping) => {}
            }
        }
    }

    async fn speak(
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
            let mut working = heads.activity.begin_request(request.version());
            let is_persistent = heads.request(&mut request);
            let answer = endpoints.call(request);
            async move {
                let answer = answer.await;
                working.answered();
                answer.map(|answer| heads.answer(answer, is_persistent, working))
            }
        });
        let stream = TokioIo::new(Wire::new(stream, activity));
        let mut connection = pin!(http.serve_connection(stream, service));
        // What has arrived is looked at first. How a connection ends concerns its caller only.
        let is_idle = tokio::select! {
            biased;
            _ = connection.as_mut() => return End::Over,
            () = stopped(&mut stopping) => false,
            silence = activity.silent(&self.limits) => match silence {
                Silence::Head => return End::Closed,
                Silence::Idle => true,
            },
            () = activity.evicted() => true,
            // The window of HTTP/2 is the caller's own: the kernel sees nothing of it.
            () = activity.untaken_for(self.limits.head_time + self.limits.body_time) => {
                return End::Closed;
            }
        };
        // A connection between two requests is closed at once; one before its first is, too, because
        // it would be waited for until its head is complete.
        if !activity.has_asked() {
            return End::Closed;
        }
        connection.as_mut().graceful_shutdown();
        if is_idle {
            // There may be an answer that is still being taken.
            tokio::select! {
                biased;
                _ = connection.as_mut() => return End::Closed,
                () = tokio::time::sleep(self.limits.body_time) => return End::Closed,
                () = stopped(&mut stopping) => {}
            }
        }
        if !activity.is_http2() {
            // The time to drain is the server's.
            let _ = connection.await;
            return End::Closed;
        }
        // The caller would have to say goodbye as well, and need not.
        tokio::select! {
            _ = connection.as_mut() => {}
            () = activity.idle_for(GOODBYE_TIME) => {}
            () = activity.untaken_for(self.limits.head_time + self.limits.body_time) => {}
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

/// What is done with the heads of requests and answers, because it concerns the connection.
struct Heads {
    activity: Arc<Activity>,
    is_trusted: bool,
    keep_alive: Option<HeaderValue>,
    stopping: watch::Receiver<bool>,
}

impl Heads {
    /// Whether the client of HTTP/1 wants to make another request. What others than proxies say in a
    /// proxy's header is removed.
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

    fn answer(&self, mut answer: Response, is_persistent: bool, working: Working) -> Response {
        let is_http1 = !self.activity.is_http2();
        let leftover = answer.extensions_mut().remove::<Leftover>();
        let must_close = leftover.is_some_and(|leftover| match leftover.take(is_http1) {
            Some(remainder) => {
                self.activity.read_on(remainder);
                false
            }
            None => true,
        });
        let headers = answer.headers_mut();
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
        if answer.extensions().get::<Streamed>().is_some() {
            Stream::begin(&self.activity, working, answer)
        } else {
            let answer = Untaken::begin(&self.activity, answer);
            drop(working);
            answer
        }
    }
}

fn has_connection_option(headers: &HeaderMap, wanted: &str) -> bool {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let mut options = values.flat_map(|value| value.split(','));
    options.any(|option| option.trim().eq_ignore_ascii_case(wanted))
}

/// Ends when it is time to stop.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}
