//! What has not been read of a request that is answered: read on and thrown away after the answer, so that
//! the answer arrives, and the connection can be used again.
//!
//! Many callers send all of a body before they look for an answer; others send nothing more until they
//! have one. So the answer does not wait for the body. If the connection were closed on what is still
//! being sent, the callers of the first kind would never see the answer. Both the bytes and the time for
//! reading on are bounded.

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

/// What is read on of a body, in multiples of the largest one that is accepted.
const DISCARD_FACTOR: usize = 8;

/// How long a caller that has its answer may go on sending. 5 s carry eight times 8 MiB over 100 Mbit/s,
/// and are over before a stopping server has to cut it off.
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// The body of a request after everybody else is done with it.
pub(super) struct LentBody {
    rest: Rest,
    /// Whether the caller sends nothing until the body is asked for.
    asks_first: bool,
}

/// Where a [`Lent`] body leaves what is left of it.
type Rest = Arc<Mutex<Option<Left>>>;

/// What is left of a body that has not come to its end.
struct Left {
    /// None, if it cannot come to its end any more.
    body: Option<Body>,
    /// Whether anything was asked of it.
    polled: bool,
}

impl LentBody {
    /// Lend the body of the request to its handler.
    pub(super) fn lend(request: &mut Request) -> Self {
        let rest = Rest::default();
        let asks_first =
            request.headers().contains_key(EXPECT) && request.version() != Version::HTTP_10;
        let body = std::mem::take(request.body_mut());
        let state = LentState::Reading;
        let lent = Lent { body, polled: false, state, rest: Arc::clone(&rest) };
        *request.body_mut() = Body::new(lent);
        Self { rest, asks_first }
    }

    /// What is left after the answer; `largest` is the most bytes of a body that is accepted. Who was too
    /// slow for it has had its time.
    pub(super) fn leftover(self, largest: usize, was_too_slow: bool) -> Option<Leftover> {
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Left { body, polled } = rest?;
        let most = largest.saturating_mul(DISCARD_FACTOR);
        let body = body.filter(|_| !was_too_slow);
        let remainder = body.map(|body| Remainder { body, most });
        // A caller that waits for a word takes the answer for it, and sends nothing. In HTTP/1 it cannot
        // make another request, because the body of this one would be in front of it.
        let is_promised = self.asks_first && !polled;
        Some(Leftover { remainder: Arc::new(Mutex::new(remainder)), is_promised })
    }
}

/// On an answer: what is left to read of its request.
#[derive(Clone)]
pub(super) struct Leftover {
    remainder: Arc<Mutex<Option<Remainder>>>,
    /// Whether the caller has promised to send nothing after such an answer.
    is_promised: bool,
}

impl Leftover {
    /// What is to be read on; if none, the connection cannot be used again.
    pub(super) fn take(&self, is_http1: bool) -> Option<Remainder> {
        let remainder = self.remainder.lock().unwrap_or_else(PoisonError::into_inner).take();
        remainder.filter(|_| !(is_http1 && self.is_promised))
    }
}

/// The rest of a body that nobody needs.
pub(super) struct Remainder {
    body: Body,
    most: usize,
}

impl Remainder {
    /// Read and throw it away. A caller that sends too much, or takes too long, sees the connection close,
    /// or in HTTP/2 the stream.
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

/// A body that goes back when it is dropped.
struct Lent {
    body: Body,
    polled: bool,
    state: LentState,
    rest: Rest,
}

/// How far a body has been read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LentState {
    Reading,
    /// To its end.
    Over,
    /// To where it was cut off.
    Broken,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.polled = true;
        let frame = Pin::new(&mut self.body).poll_frame(context);
        match frame {
            Poll::Ready(None) => self.state = LentState::Over,
            Poll::Ready(Some(Err(_))) => self.state = LentState::Broken,
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

impl Drop for Lent {
    fn drop(&mut self) {
        let body = match self.state {
            LentState::Over => return,
            LentState::Reading if self.body.is_end_stream() => return,
            LentState::Reading => Some(std::mem::take(&mut self.body)),
            LentState::Broken => None,
        };
        let left = Left { body, polled: self.polled };
        *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
    }
}
