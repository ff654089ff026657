//! What a refused request has not been read of: read and thrown away, so that the answer arrives.
//!
//! Many callers send all of a body before they look for an answer. If the connection is closed on
//! what they are still sending, they never see why. Both the bytes and the time for it are bounded.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::EXPECT;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};

/// What is read of a refused body, in multiples of the largest one that is accepted.
const DRAIN_FACTOR: usize = 8;

/// How long a refused caller may go on sending. 5 s carry eight times 8 MiB over 100 Mbit/s, and
/// are over before a stopping server has to cut it off.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// The body of a request after everybody else is done with it.
pub(super) struct Unread {
    rest: Rest,
    /// Whether the caller sends nothing until the body is asked for.
    asks_first: bool,
}

/// Where a [`Lent`] body leaves what is left of it, and whether anything was asked of it.
type Rest = Arc<Mutex<Option<(Body, bool)>>>;

impl Unread {
    /// Lend the body of the request to its handler.
    pub(super) fn of(request: &mut Request) -> Self {
        let rest = Rest::default();
        let asks_first = request.headers().contains_key(EXPECT);
        let body = std::mem::take(request.body_mut());
        let lent = Lent { body, polled: false, over: false, rest: Arc::clone(&rest) };
        *request.body_mut() = Body::new(lent);
        Self { rest, asks_first }
    }

    /// Read what is left, for a request that is refused; `largest` is the most bytes of a body that
    /// is accepted.
    pub(super) async fn drain(self, largest: usize) {
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((mut body, polled)) = rest else {
            return;
        };
        if self.asks_first && !polled {
            // The caller waits for a word before it sends anything: the answer is that word.
            return;
        }
        let mut left = largest.saturating_mul(DRAIN_FACTOR);
        let drained = async {
            while let Some(Ok(frame)) = body.frame().await {
                let Some(more) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else {
                    return;
                };
                left = more;
            }
        };
        // A caller that sends more, or takes longer, sees the connection close.
        let _ = tokio::time::timeout(DRAIN_TIME, drained).await;
    }
}

/// A body that goes back when it is dropped.
struct Lent {
    body: Body,
    polled: bool,
    /// Whether there is nothing left.
    over: bool,
    rest: Rest,
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
        self.over |= matches!(frame, Poll::Ready(None | Some(Err(_))));
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
        if !self.over && !self.body.is_end_stream() {
            let rest = (std::mem::take(&mut self.body), self.polled);
            *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(rest);
        }
    }
}
