//! What is under way on a connection, and since when nothing is.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::Version;
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::config::Limits;
use crate::edge::unread_body::Remainder;

/// What is under way on a connection.
pub(super) struct Activity {
    /// Requests and refused bodies that are being read, and responses that are streamed.
    working: AtomicUsize,
    /// Requests whose handlers are at work.
    unanswered: AtomicUsize,
    /// Whether there ever was a request.
    has_asked: AtomicBool,
    is_http2: AtomicBool,
    /// Whether the peer sends nothing more.
    is_half_closed: AtomicBool,
    times: Mutex<Times>,
    /// When responses were handed over that have not been taken, by their numbers.
    untaken: Mutex<(u64, BTreeMap<u64, Instant>)>,
    /// Bodies of refused requests, read on after the response. At most one for each request under way.
    remainders: Mutex<JoinSet<()>>,
    /// The connection has to make room for others.
    evict: Notify,
    is_evicted: AtomicBool,
}

struct Times {
    /// When there was something under way for the last time.
    last: Instant,
    /// When the first byte since then arrived.
    input: Option<Instant>,
}

/// What a connection is silent about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// It has begun a request and does not go on, or has never made one.
    Head,
    /// It is kept alive and makes no other request.
    Idle,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            working: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            has_asked: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            is_half_closed: AtomicBool::new(false),
            times: Mutex::new(Times { last: Instant::now(), input: None }),
            untaken: Mutex::default(),
            remainders: Mutex::default(),
            evict: Notify::new(),
            is_evicted: AtomicBool::new(false),
        }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn untaken(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Instant>)> {
        self.untaken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        *self.times() = Times { last: Instant::now(), input: None };
    }

    fn is_at_work(&self) -> bool {
        self.working.load(Ordering::Acquire) > 0 || !self.untaken().1.is_empty()
    }

    /// Whether there ever was a request.
    pub(super) fn has_asked(&self) -> bool {
        self.has_asked.load(Ordering::Relaxed)
    }

    pub(super) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    /// Bytes have arrived.
    pub(super) fn note_input(&self) {
        if self.working.load(Ordering::Acquire) == 0 {
            self.times().input.get_or_insert_with(Instant::now);
        }
    }

    /// The peer sends nothing more.
    pub(super) fn note_end_of_input(&self) {
        self.is_half_closed.store(true, Ordering::Relaxed);
    }

    /// Whether a handler of HTTP/1 works for a peer of which nobody knows whether it is there.
    pub(super) fn may_be_abandoned(&self) -> bool {
        self.is_half_closed.load(Ordering::Relaxed)
            && self.unanswered.load(Ordering::Acquire) > 0
            && !self.is_http2()
    }

    /// A request begins.
    pub(super) fn begin_request(self: &Arc<Self>, version: Version) -> Working {
        let mut working = Working::begin(self);
        self.is_http2.store(version == Version::HTTP_2, Ordering::Relaxed);
        self.has_asked.store(true, Ordering::Relaxed);
        self.unanswered.fetch_add(1, Ordering::AcqRel);
        working.is_unanswered = true;
        working
    }

    /// Read what is left of the body of a request that has been answered.
    pub(super) fn read_on(self: &Arc<Self>, remainder: Remainder) {
        let working = Working::begin(self);
        let mut remainders = self.remainders.lock().unwrap_or_else(PoisonError::into_inner);
        while remainders.try_join_next().is_some() {}
        remainders.spawn(async move {
            remainder.discard().await;
            drop(working);
        });
    }

    /// Ends when a response has been left lying for that long.
    pub(super) async fn untaken_for(&self, time: Duration) {
        loop {
            let oldest = self.untaken().1.first_key_value().map(|(_, since)| *since);
            let now = Instant::now();
            // What is handed over from now on is left for less.
            let end = oldest.unwrap_or(now) + time;
            if end <= now {
                return;
            }
            sleep_until(end).await;
        }
    }

    /// Ends when nothing has been under way for that long.
    pub(super) async fn idle_for(&self, time: Duration) {
        loop {
            // In this order: what ends in between has set the time before.
            let is_at_work = self.is_at_work();
            let now = Instant::now();
            // What is under way now ends later, so this is not too late.
            let end = if is_at_work { now } else { self.times().last } + time;
            if end <= now {
                return;
            }
            sleep_until(end).await;
        }
    }

    /// Ends when the connection has been silent for longer than it may be.
    pub(super) async fn silent(&self, limits: &Limits) -> Silence {
        let mut sleep = pin!(sleep_until(self.silent_at(limits).0));
        poll_fn(|context| {
            loop {
                let (end, silence) = self.silent_at(limits);
                if end <= Instant::now() {
                    return Poll::Ready(silence);
                }
                // A later end is seen when this one is over.
                if end < sleep.deadline() || sleep.is_elapsed() {
                    sleep.as_mut().reset(end);
                }
                ready!(sleep.as_mut().poll(context));
            }
        })
        .await
    }

    /// When the silence would be too long, if nothing happened until then.
    fn silent_at(&self, limits: &Limits) -> (Instant, Silence) {
        // In this order: what ends in between has set the time before.
        let is_at_work = self.is_at_work();
        if is_at_work {
            return (Instant::now() + limits.head_time.min(limits.idle_time), Silence::Idle);
        }
        let Times { last, input } = *self.times();
        if !self.has_asked() {
            return (last + limits.head_time, Silence::Head);
        }
        // Peers of HTTP/2 send frames that belong to no request.
        match input.filter(|_| !self.is_http2()) {
            Some(began) => (began + limits.head_time, Silence::Head),
            None => (last + limits.idle_time, Silence::Idle),
        }
    }

    /// Since when a connection that is kept alive has waited for its next request.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        // One that is being closed may take a while: others can make room as well.
        if !self.has_asked() || self.is_evicted.load(Ordering::Relaxed) || self.is_at_work() {
            return None;
        }
        Some(self.times().last)
    }

    /// Have the connection closed as if it had been idle for too long.
    pub(super) fn evict(&self) {
        self.is_evicted.store(true, Ordering::Relaxed);
        self.evict.notify_one();
    }

    /// Ends when the connection has to make room.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }
}

/// Something under way, until this is dropped.
pub(super) struct Working {
    activity: Arc<Activity>,
    is_unanswered: bool,
}

impl Working {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.working.fetch_add(1, Ordering::AcqRel);
        Self { activity: Arc::clone(activity), is_unanswered: false }
    }

    /// The handler is over.
    pub(super) fn answered(&mut self) {
        if std::mem::take(&mut self.is_unanswered) {
            self.activity.unanswered.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.answered();
        // The time first: whoever sees nothing at work sees when that was.
        self.activity.touch();
        self.activity.working.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A response, or a piece of it, that its caller has not taken, until this is dropped.
pub(super) struct Untaken(Arc<Activity>, u64);

impl Untaken {
    fn new(activity: &Arc<Activity>) -> Self {
        let mut untaken = activity.untaken();
        untaken.0 += 1;
        let number = untaken.0;
        untaken.1.insert(number, Instant::now());
        Self(Arc::clone(activity), number)
    }

    pub(super) fn begin(activity: &Arc<Activity>, answer: Response) -> Response {
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

/// The body of an answer that is [`Streamed`](super::Streamed): under way until it ends, and untaken from
/// its head, or a piece that was handed over, until the next one is asked for.
pub(super) struct Stream {
    body: Body,
    activity: Arc<Activity>,
    untaken: Option<Untaken>,
    _working: Working,
}

impl Stream {
    pub(super) fn begin(activity: &Arc<Activity>, working: Working, answer: Response) -> Response {
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
