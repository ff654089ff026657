//! The body of a gRPC call, as it arrives: limited in the size and in the time of each message, and in the
//! memory of all bodies together.
//!
//! A message has a prefix of five bytes, of which the last four are its length. Its bytes count among the
//! bodies in flight from when they arrive until the method that answers it has finished.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use super::call::Call;
use crate::edge::body::too_large;
use crate::edge::error::{ApiError, ErrorCode};

/// The length of the prefix of a message, in bytes.
const PREFIX: usize = 5;

/// The body of a call, which enforces the limits on messages.
pub(super) struct CallBody {
    body: Body,
    call: Arc<Call>,
    /// The largest message, in bytes.
    max_bytes: usize,
    /// How long a message may take to arrive.
    timeout: Duration,
    /// The bytes of the prefix of a message that have arrived.
    prefix: Vec<u8>,
    /// Whether a message has begun.
    has_message: bool,
    /// Bytes of the message that have not arrived yet.
    missing: usize,
    /// When the message times out. Between the messages of a stream there is no timeout.
    deadline: Option<Pin<Box<Sleep>>>,
    is_done: bool,
}

impl CallBody {
    pub(super) fn new(body: Body, call: &Arc<Call>, max_bytes: usize, timeout: Duration) -> Self {
        // The caller of a stream may wait before the first message, as it may between messages.
        let deadline =
            (!call.method.is_stream).then(|| Box::pin(sleep_until(Instant::now() + timeout)));
        Self {
            body,
            call: Arc::clone(call),
            max_bytes,
            timeout,
            prefix: Vec::new(),
            has_message: false,
            missing: 0,
            deadline,
            is_done: false,
        }
    }

    /// Track the messages in the bytes that have arrived.
    fn track(&mut self, mut data: &[u8]) -> Result<(), ApiError> {
        while !data.is_empty() {
            if self.missing == 0 {
                if self.prefix.is_empty() {
                    self.begin()?;
                }
                let (prefix, rest) = data.split_at(data.len().min(PREFIX - self.prefix.len()));
                self.prefix.extend_from_slice(prefix);
                data = rest;
                let Ok([_, length @ ..]) = <[u8; PREFIX]>::try_from(&self.prefix[..]) else {
                    break;
                };
                self.missing = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                if self.missing > self.max_bytes {
                    return Err(too_large(self.max_bytes));
                }
            } else {
                let taken = data.len().min(self.missing);
                self.call.permits.add(taken)?;
                self.missing -= taken;
                data = &data[taken..];
            }
            if self.missing == 0 {
                self.prefix.clear();
            }
        }
        self.reset_timeout();
        Ok(())
    }

    /// A message begins.
    fn begin(&mut self) -> Result<(), ApiError> {
        if self.has_message && !self.call.method.is_stream {
            return Err(ApiError::malformed("the method takes one message"));
        }
        self.has_message = true;
        self.call.permits.begin()
    }

    /// Start the timeout of a message of a stream when it begins. In other calls, the timeout includes the
    /// message and the end of the body, and starts with the call.
    fn reset_timeout(&mut self) {
        if !self.call.method.is_stream {
            return;
        }
        if self.missing == 0 && self.prefix.is_empty() {
            self.deadline = None;
        } else if self.deadline.is_none() {
            self.deadline = Some(Box::pin(sleep_until(Instant::now() + self.timeout)));
        }
    }

    fn fail(&mut self, error: &ApiError) -> Option<Result<Frame<Bytes>, Status>> {
        self.is_done = true;
        self.body = Body::empty();
        Some(Err(self.call.fail(error)))
    }
}

impl HttpBody for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_done {
            return Poll::Ready(None);
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let (Poll::Pending, Some(deadline)) = (&frame, &mut self.deadline) {
            ready!(deadline.as_mut().poll(context));
            let message = "the message did not arrive in time";
            let error = ApiError::new(ErrorCode::RequestTimeout, message);
            return Poll::Ready(self.fail(&error));
        }
        Poll::Ready(match ready!(frame) {
            Some(Ok(frame)) => match frame.data_ref().map(|data| self.track(data)) {
                Some(Err(error)) => self.fail(&error),
                Some(Ok(())) | None => Some(Ok(frame)),
            },
            Some(Err(_error)) => self.fail(&ApiError::malformed("the message was cut off")),
            None => {
                self.is_done = true;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_done || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
