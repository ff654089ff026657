//! The activity of a connection: requests and responses in progress, and how long it has been idle.

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

/// The activity of a connection.
pub(super) struct Activity {
    /// Requests, bodies of rejected requests that are being read, and responses that are streamed.
    in_progress: AtomicUsize,
    /// Requests whose handlers have not completed.
    handlers: AtomicUsize,
    /// Whether there has been a request.
    has_had_request: AtomicBool,
    is_http2: AtomicBool,
    /// Whether the peer has closed its sending side.
    is_half_closed: AtomicBool,
    times: Mutex<Times>,
    /// When responses were handed over that the client has not read yet, by their numbers.
    unread: Mutex<(u64, BTreeMap<u64, Instant>)>,
    /// Tasks that read the rest of the bodies of rejected requests, after the response. At most one for
    /// each request in progress.
    remainders: Mutex<JoinSet<()>>,
    /// Wakes the task of the connection when it is evicted.
    evict: Notify,
    is_evicted: AtomicBool,
}

struct Times {
    /// When something was in progress for the last time.
    last: Instant,
    /// When the first byte since then arrived.
    input: Option<Instant>,
}

/// Why a connection is considered silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// The head of a request is incomplete, or there has been no request.
    Head,
    /// It is kept alive and has made no further request.
    Idle,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            in_progress: AtomicUsize::new(0),
            handlers: AtomicUsize::new(0),
            has_had_request: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            is_half_closed: AtomicBool::new(false),
            times: Mutex::new(Times { last: Instant::now(), input: None }),
            unread: Mutex::default(),
            remainders: Mutex::default(),
            evict: Notify::new(),
            is_evicted: AtomicBool::new(false),
        }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unread(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Instant>)> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        *self.times() = Times { last: Instant::now(), input: None };
    }

    fn is_busy(&self) -> bool {
        self.in_progress.load(Ordering::Acquire) > 0 || !self.unread().1.is_empty()
    }

    /// Whether there has been a request.
    pub(super) fn has_had_request(&self) -> bool {
        self.has_had_request.load(Ordering::Relaxed)
    }

    pub(super) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    /// Note that bytes have arrived.
    pub(super) fn note_input(&self) {
        if self.in_progress.load(Ordering::Acquire) == 0 {
            self.times().input.get_or_insert_with(Instant::now);
        }
    }

    /// Note that the peer has closed its sending side.
    pub(super) fn note_end_of_input(&self) {
        self.is_half_closed.store(true, Ordering::Relaxed);
    }

    /// Whether an HTTP/1 handler works for a half-closed peer, which may have left.
    pub(super) fn may_be_abandoned(&self) -> bool {
        self.is_half_closed.load(Ordering::Relaxed)
            && self.handlers.load(Ordering::Acquire) > 0
            && !self.is_http2()
    }

    /// Note that a request begins.
    pub(super) fn begin_request(self: &Arc<Self>, version: Version) -> InProgress {
        let mut in_progress = InProgress::begin(self);
        self.is_http2.store(version == Version::HTTP_2, Ordering::Relaxed);
        self.has_had_request.store(true, Ordering::Relaxed);
        self.handlers.fetch_add(1, Ordering::AcqRel);
        in_progress.has_handler = true;
        in_progress
    }

    /// Read and discard the rest of the body of a request that already has a response.
    pub(super) fn read_on(self: &Arc<Self>, remainder: Remainder) {
        let in_progress = InProgress::begin(self);
        let mut remainders = self.remainders.lock().unwrap_or_else(PoisonError::into_inner);
        while remainders.try_join_next().is_some() {}
        remainders.spawn(async move {
            remainder.discard().await;
            drop(in_progress);
        });
    }

    /// Completes when the client has not read a response for that long.
    pub(super) async fn unread_for(&self, time: Duration) {
        loop {
            let oldest = self.unread().1.first_key_value().map(|(_, since)| *since);
            let now = Instant::now();
            // A response that is handed over from now on has been unread for less.
            let end = oldest.unwrap_or(now) + time;
            if end <= now {
                return;
            }
            sleep_until(end).await;
        }
    }

    /// Completes when nothing has been in progress for that long.
    pub(super) async fn idle_for(&self, time: Duration) {
        loop {
            // In this order: a request that ends in between has set the time before.
            let is_busy = self.is_busy();
            let now = Instant::now();
            // A request in progress ends later, so this is not too late.
            let end = if is_busy { now } else { self.times().last } + time;
            if end <= now {
                return;
            }
            sleep_until(end).await;
        }
    }

    /// Completes when the connection has been silent for longer than it may be.
    pub(super) async fn silent(&self, limits: &Limits) -> Silence {
        let mut sleep = pin!(sleep_until(self.silent_at(limits).0));
        poll_fn(|context| {
            loop {
                let (end, silence) = self.silent_at(limits);
                if end <= Instant::now() {
                    return Poll::Ready(silence);
                }
                // A later end is noticed when this timer has elapsed.
                if end < sleep.deadline() || sleep.is_elapsed() {
                    sleep.as_mut().reset(end);
                }
                ready!(sleep.as_mut().poll(context));
            }
        })
        .await
    }

    /// When the connection will have been silent for too long, unless something happens.
    fn silent_at(&self, limits: &Limits) -> (Instant, Silence) {
        // In this order: a request that ends in between has set the time before.
        let is_busy = self.is_busy();
        if is_busy {
            return (Instant::now() + limits.head_time.min(limits.idle_time), Silence::Idle);
        }
        let Times { last, input } = *self.times();
        if !self.has_had_request() {
            return (last + limits.head_time, Silence::Head);
        }
        // HTTP/2 peers send frames that belong to no request.
        match input.filter(|_| !self.is_http2()) {
            Some(began) => (began + limits.head_time, Silence::Head),
            None => (last + limits.idle_time, Silence::Idle),
        }
    }

    /// Since when a kept-alive connection has been idle; `None` if it is busy or already evicted.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        // Closing may take a while, so an evicted connection is not chosen again.
        if !self.has_had_request() || self.is_evicted.load(Ordering::Relaxed) || self.is_busy() {
            return None;
        }
        Some(self.times().last)
    }

    /// Close the connection as if it had been idle for too long.
    pub(super) fn evict(&self) {
        self.is_evicted.store(true, Ordering::Relaxed);
        self.evict.notify_one();
    }

    /// Completes when the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }
}

/// Counts something as in progress until it is dropped.
pub(super) struct InProgress {
    activity: Arc<Activity>,
    has_handler: bool,
}

impl InProgress {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.in_progress.fetch_add(1, Ordering::AcqRel);
        Self { activity: Arc::clone(activity), has_handler: false }
    }

    /// Note that the handler of the request has completed.
    pub(super) fn handler_completed(&mut self) {
        if std::mem::take(&mut self.has_handler) {
            self.activity.handlers.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.handler_completed();
        // The time is set first, so that an idle connection always has the time since when it is idle.
        self.activity.touch();
        self.activity.in_progress.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Counts a response, or a chunk of it, as unread until it is dropped.
pub(super) struct Unread(Arc<Activity>, u64);

impl Unread {
    fn new(activity: &Arc<Activity>) -> Self {
        let mut unread = activity.unread();
        unread.0 += 1;
        let number = unread.0;
        unread.1.insert(number, Instant::now());
        Self(Arc::clone(activity), number)
    }

    /// Count the response as unread until its body is dropped.
    pub(super) fn wrap(activity: &Arc<Activity>, response: Response) -> Response {
        let guard = Self::new(activity);
        response.map(|body| {
            // The closure owns the guard, and changes neither the body nor its length.
            Body::new(body.map_err(move |error| {
                let _owned = &guard;
                error
            }))
        })
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.touch();
        self.0.unread().1.remove(&self.1);
    }
}

/// The body of a [`Streamed`](super::Streamed) response. It is in progress until it ends, and unread from
/// the time its head or a chunk is handed over until the next chunk is polled for.
pub(super) struct StreamedBody {
    body: Body,
    activity: Arc<Activity>,
    unread: Option<Unread>,
    _in_progress: InProgress,
}

impl StreamedBody {
    pub(super) fn wrap(
        activity: &Arc<Activity>,
        in_progress: InProgress,
        response: Response,
    ) -> Response {
        response.map(|body| {
            let unread = Some(Unread::new(activity));
            let activity = Arc::clone(activity);
            Body::new(Self { body, activity, unread, _in_progress: in_progress })
        })
    }
}

impl HttpBody for StreamedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // The previous chunk has been written.
        self.unread = None;
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_some() {
            self.unread = Some(Unread::new(&self.activity));
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
