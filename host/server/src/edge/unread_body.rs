//! The rest of a request body that was not read: it is read and discarded after the response, so that the
//! response arrives and the connection can be used again.
//!
//! Many callers send a whole body before they read the response; others wait for the response before they send
//! more. The response therefore does not wait for the body. If the connection were closed while the body is
//! still being sent, callers of the first kind would not receive the response. The bytes and the time for
//! discarding are limited.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::Version;
use axum::http::header::EXPECT;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};

/// The most bytes that are discarded, in multiples of the largest accepted body.
const DISCARD_FACTOR: usize = 8;

/// How long a caller may continue to send after the response. 5 s are enough for eight times 8 MiB over
/// 100 Mbit/s, and less than the drain time of a stopping server.
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// The body of a request, which is lent to its handler.
pub(super) struct LentBody {
    rest: Rest,
    /// Whether the caller waits for `100 Continue` before it sends the body.
    expects_continue: bool,
}

/// Where a [`TrackedBody`] puts its rest.
type Rest = Arc<Mutex<Option<UnreadRest>>>;

/// The rest of a body that was not read to its end.
struct UnreadRest {
    /// None if the body was cut off.
    body: Option<Body>,
    /// Whether the handler has polled it.
    polled: bool,
}

impl LentBody {
    /// Replace the body of the request by one that returns its rest.
    pub(super) fn lend(request: &mut Request) -> Self {
        let rest = Rest::default();
        let expects_continue =
            request.headers().contains_key(EXPECT) && request.version() != Version::HTTP_10;
        let body = std::mem::take(request.body_mut());
        let state = BodyState::Reading;
        let lent = TrackedBody { body, polled: false, state, rest: Arc::clone(&rest) };
        *request.body_mut() = Body::new(lent);
        Self { rest, expects_continue }
    }

    /// What is left after the handler; `largest` is the most bytes of an accepted body. After a timeout,
    /// nothing more is read.
    pub(super) fn leftover(self, largest: usize, timed_out: bool) -> Option<Leftover> {
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner).take();
        let UnreadRest { body, polled } = rest?;
        let most = largest.saturating_mul(DISCARD_FACTOR);
        let body = body.filter(|_| !timed_out);
        let remainder = body.map(|body| Remainder { body, most });
        // A caller that waits for `100 Continue` gets the response instead, and sends no body. Over HTTP/1 it
        // cannot send another request, because the body of this one is expected first.
        let body_withheld = self.expects_continue && !polled;
        Some(Leftover { remainder: Arc::new(Mutex::new(remainder)), body_withheld })
    }
}

/// An extension of a response: the rest of the request's body.
#[derive(Clone)]
pub(super) struct Leftover {
    remainder: Arc<Mutex<Option<Remainder>>>,
    /// Whether the caller does not send the body after such a response.
    body_withheld: bool,
}

impl Leftover {
    /// The rest to discard; if there is none, the connection cannot be used again.
    pub(super) fn take(&self, is_http1: bool) -> Option<Remainder> {
        let remainder = self.remainder.lock().unwrap_or_else(PoisonError::into_inner).take();
        remainder.filter(|_| !(is_http1 && self.body_withheld))
    }
}

/// The rest of a body, to be discarded.
pub(super) struct Remainder {
    body: Body,
    most: usize,
}

impl Remainder {
    /// Read and discard it. If the caller sends too much or takes too long, its connection is closed, or its
    /// stream over HTTP/2.
    pub(super) async fn discard(mut self) {
        let mut left = self.most;
        let discarded = async {
            while let Some(Ok(frame)) = self.body.frame().await {
                let Some(more) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else {
                    return;
                };
                left = more;
            }
        };
        let _ = tokio::time::timeout(DISCARD_TIME, discarded).await;
    }
}

/// A body that returns its rest when it is dropped.
struct TrackedBody {
    body: Body,
    polled: bool,
    state: BodyState,
    rest: Rest,
}

/// How far a body has been read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyState {
    Reading,
    /// Read to its end.
    Done,
    /// The connection was cut off.
    CutOff,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.polled = true;
        let frame = Pin::new(&mut self.body).poll_frame(context);
        match frame {
            Poll::Ready(None) => self.state = BodyState::Done,
            Poll::Ready(Some(Err(_))) => self.state = BodyState::CutOff,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        let body = match self.state {
            BodyState::Done => return,
            BodyState::Reading if self.body.is_end_stream() => return,
            BodyState::Reading => Some(std::mem::take(&mut self.body)),
            BodyState::CutOff => None,
        };
        let left = UnreadRest { body, polled: self.polled };
        *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
    }
}
