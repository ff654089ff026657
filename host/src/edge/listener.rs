//! Connections: accepted up to a limit, served HTTP/1.1 and HTTP/2, and closed when they say nothing.
//!
//! Which of the two it is, the TLS handshake says, or without TLS the first bytes. A caller that does
//! not send the head of its next request in time is cut off, so that silent connections cannot use up
//! the limit; the handshake has that long as well. An answer has to be taken in that time and the time
//! for a body together. How long a body may take is bounded in `body`, how long an answer may take by
//! the deadline of the prediction. An answer that goes on for as long as its caller likes ([`Streamed`])
//! is left lying only while there is a piece of it that the caller does not take.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::Version;
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use hyper::rt::{Read, Write};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::observe::Way;
use super::tls::{self, Tls};
use crate::config::Limits;
use crate::observe::meters::Counted;

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

/// Where callers come in.
pub struct Entrance {
    /// The sockets, at least one: a name can have several addresses.
    pub listeners: Vec<TcpListener>,
    /// How connections are made private, if they are.
    pub tls: Option<Arc<Tls>>,
    /// Whom it is for.
    pub way: Way,
}

/// Serve until `stopping` says otherwise, then finish the requests that are under way.
pub async fn serve(
    entrance: Entrance,
    endpoints: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let server = Arc::new(Server {
        plain: http(limits.head_time),
        http2: http(limits.head_time).http2_only(),
        http1: http(limits.head_time).http1_only(),
        tls: entrance.tls,
        endpoints,
        limits,
    });
    let mut connections = JoinSet::new();
    let (mut refusing, mut first) = (false, 0);
    loop {
        // Over the limit, callers wait in the system's own queue until a connection ends.
        let room = connections.len() < limits.connections;
        let accepted = tokio::select! {
            () = stopped(&mut stopping) => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&entrance.listeners, &mut first), if room => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                refusing = false;
                let (server, way) = (Arc::clone(&server), entrance.way.clone());
                let stopping = stopping.clone();
                connections.spawn(async move {
                    way.meters().accepted.count();
                    let _open = Counted::on(&way.meters().open);
                    server.connection(stream, stopping).await;
                });
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
    while connections.join_next().await.is_some() {}
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

fn http(head_time: Duration) -> Http {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(head_time);
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
    limits: Limits,
}

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream, mut stopping: watch::Receiver<bool>) {
        // Answers are written at once, so there is nothing to gather. This and the next fail on a
        // connection that has ended, which the first read tells as well.
        let _ = stream.set_nodelay(true);
        // A caller that does not take its answers would hold the connection for ever.
        let take_time = self.limits.body_time.as_millis();
        let take_time = u32::try_from(take_time).unwrap_or(u32::MAX);
        let _ = set_tcp_user_timeout(&stream, take_time);
        let Some(tls) = &self.tls else {
            return self.speak(&self.plain, TokioIo::new(stream), stopping).await;
        };
        // What goes wrong here concerns the caller only, and there is no request to log.
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(self.limits.head_time, tls.accept(stream)) => shaken,
            () = stopped(&mut stopping) => return,
        };
        let Ok(Ok(stream)) = shaken else { return };
        let http = if tls::is_http2(&stream) { &self.http2 } else { &self.http1 };
        self.speak(http, TokioIo::new(stream), stopping).await;
    }

    async fn speak(
        &self,
        http: &Http,
        stream: impl Read + Write + Send + Unpin + 'static,
        mut stopping: watch::Receiver<bool>,
    ) {
        let activity = Arc::new(Activity::new());
        let endpoints = TowerToHyperService::new(self.endpoints.clone());
        let service = service_fn(|request: hyper::Request<_>| {
            let working = Working::begin(&activity, request.version());
            let answer = endpoints.call(request);
            let activity = Arc::clone(&activity);
            async move {
                let answer = answer.await;
                answer.map(|answer| {
                    if answer.extensions().get::<Streamed>().is_some() {
                        Stream::begin(&activity, working, answer)
                    } else {
                        let answer = Untaken::begin(&activity, answer);
                        drop(working);
                        answer
                    }
                })
            }
        });
        let mut connection = pin!(http.serve_connection(stream, service));
        // What has arrived is looked at first. How a connection ends concerns its caller only.
        let is_silent = tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            () = stopped(&mut stopping) => false,
            () = activity.idle_for(self.limits.head_time) => true,
            // The window of HTTP/2 is the caller's own: the kernel sees nothing of it.
            () = activity.untaken_for(self.limits.head_time + self.limits.body_time) => return,
        };
        // A connection between two requests is closed at once; one before its first is, too, because
        // it would be waited for until its head is complete.
        if !activity.asked.load(Ordering::Relaxed) {
            return;
        }
        connection.as_mut().graceful_shutdown();
        if is_silent {
            // There may be an answer that is still being taken.
            tokio::select! {
                biased;
                _ = connection.as_mut() => return,
                () = tokio::time::sleep(self.limits.body_time) => return,
                () = stopped(&mut stopping) => {}
            }
        }
        if !activity.is_http2.load(Ordering::Relaxed) {
            // The time to drain is the server's.
            return drop(connection.await);
        }
        // The caller would have to say goodbye as well, and need not.
        tokio::select! {
            _ = connection.as_mut() => {}
            () = activity.idle_for(GOODBYE_TIME) => {}
            () = activity.untaken_for(self.limits.head_time + self.limits.body_time) => {}
        }
    }
}

/// What is under way on a connection.
struct Activity {
    working: AtomicUsize,
    /// Whether there ever was a request.
    asked: AtomicBool,
    is_http2: AtomicBool,
    /// When there was something under way for the last time.
    last: Mutex<Instant>,
    /// When answers were handed over that have not been taken, by their numbers.
    untaken: Mutex<(u64, BTreeMap<u64, Instant>)>,
}

impl Activity {
    fn new() -> Self {
        Self {
            working: AtomicUsize::new(0),
            asked: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            last: Mutex::new(Instant::now()),
            untaken: Mutex::default(),
        }
    }

    fn untaken(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Instant>)> {
        self.untaken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when an answer has been left lying for that long.
    async fn untaken_for(&self, time: Duration) {
        loop {
            let oldest = self.untaken().1.first_key_value().map(|(_, since)| *since);
            let now = Instant::now();
            // What is handed over from now on is left for less.
            let end = oldest.unwrap_or(now) + time;
            if end <= now {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }

    fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Ends when nothing has been under way for that long.
    async fn idle_for(&self, time: Duration) {
        loop {
            // In this order: what ends in between has set the time before.
            let is_at_work =
                self.working.load(Ordering::Acquire) > 0 || !self.untaken().1.is_empty();
            let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            // What is under way now ends later, so this is not too late.
            let end = if is_at_work { now + time } else { last + time };
            if end <= now {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// A request under way, until this is dropped.
struct Working(Arc<Activity>);

impl Working {
    fn begin(activity: &Arc<Activity>, version: Version) -> Self {
        activity.working.fetch_add(1, Ordering::AcqRel);
        activity.is_http2.store(version == Version::HTTP_2, Ordering::Relaxed);
        activity.asked.store(true, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        // The time first: whoever sees nothing at work sees when that was.
        self.0.touch();
        self.0.working.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An answer, or a piece of it, that its caller has not taken, until this is dropped.
struct Untaken(Arc<Activity>, u64);

impl Untaken {
    fn new(activity: &Arc<Activity>) -> Self {
        let mut untaken = activity.untaken();
        untaken.0 += 1;
        let number = untaken.0;
        untaken.1.insert(number, Instant::now());
        Self(Arc::clone(activity), number)
    }

    fn begin(activity: &Arc<Activity>, answer: Response) -> Response {
        let guard = Self::new(activity);
        answer.map(|body| {
            // It owns what it is given, and leaves the body and its length as they are.
            Body::new(body.map_err(move |error| {
                let _owned = &guard;
                error
            }))
        })
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        self.0.touch();
        self.0.untaken().1.remove(&self.1);
    }
}

/// The body of an answer that is [`Streamed`]: under way until it ends, and untaken from its head, or a
/// piece that was handed over, until the next one is asked for.
struct Stream {
    body: Body,
    activity: Arc<Activity>,
    untaken: Option<Untaken>,
    _working: Working,
}

impl Stream {
    fn begin(activity: &Arc<Activity>, working: Working, answer: Response) -> Response {
        answer.map(|body| {
            let untaken = Some(Untaken::new(activity));
            let activity = Arc::clone(activity);
            Body::new(Self { body, activity, untaken, _working: working })
        })
    }
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // Whoever asks for more has taken what there was.
        self.untaken = None;
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_some() {
            self.untaken = Some(Untaken::new(&self.activity));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Ends when it is time to stop.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}
