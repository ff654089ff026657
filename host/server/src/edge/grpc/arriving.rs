//! Messages on their way in: bounded in size, in time and in what all of them hold, before anybody
//! reads them.
//!
//! A message is five bytes, of which the last four are its length, and so many bytes more. What has come
//! counts among the bodies in flight until the method that answers it is done with it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use super::call::Call;
use crate::edge::body::{Bodies, too_large};
use crate::edge::error::{ApiError, ErrorCode};

/// Bytes before a message.
const HEAD: usize = 5;

/// Room for the messages of a call.
pub(super) struct Held {
    bodies: Bodies,
    /// For each message that is there and has not been taken, in their order; the last is for the one
    /// that is still coming.
    permits: Mutex<VecDeque<OwnedSemaphorePermit>>,
}

impl Held {
    pub(super) fn new(bodies: &Bodies) -> Self {
        Self { bodies: bodies.clone(), permits: Mutex::default() }
    }

    /// That many bytes more of the message that is coming.
    fn add(&self, bytes: usize) -> Result<(), ApiError> {
        let more = self.bodies.reserve(bytes)?;
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        match permits.back_mut() {
            Some(permit) => permit.merge(more),
            None => permits.push_back(more),
        }
        Ok(())
    }

    /// The next message begins.
    fn begin(&self) -> Result<(), ApiError> {
        let none = self.bodies.reserve(0)?;
        self.permits.lock().unwrap_or_else(PoisonError::into_inner).push_back(none);
        Ok(())
    }

    /// The room of the first message that has not been taken, and as much more as it takes inflated.
    pub(super) fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let first = self.permits.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let mut permit = match first {
            Some(permit) => permit,
            None => self.bodies.reserve(0)?,
        };
        let more = bytes.saturating_sub(permit.num_permits());
        if more > 0 {
            permit.merge(self.bodies.reserve(more)?);
        }
        Ok(permit)
    }
}

/// The body of a call.
pub(super) struct Arriving {
    body: Body,
    call: Arc<Call>,
    /// The largest message.
    most: usize,
    /// How long one may take.
    time: Duration,
    /// What is there of the bytes before a message.
    head: Vec<u8>,
    /// Whether there was a message.
    has_begun: bool,
    /// Bytes of the message that have not come.
    left: usize,
    /// When it has to be there: of a stream, only if it has begun.
    end: Option<Pin<Box<Sleep>>>,
    is_over: bool,
}

impl Arriving {
    pub(super) fn new(body: Body, call: &Arc<Call>, most: usize, time: Duration) -> Self {
        // Who may wait between messages may wait before the first.
        let end = (!call.method.is_stream).then(|| Box::pin(sleep_until(Instant::now() + time)));
        let call = Arc::clone(call);
        let (head, left, has_begun, is_over) = (Vec::new(), 0, false, false);
        Self { body, call, most, time, head, has_begun, left, end, is_over }
    }

    /// Follow what has come.
    fn follow(&mut self, mut data: &[u8]) -> Result<(), ApiError> {
        while !data.is_empty() {
            if self.left == 0 {
                if self.head.is_empty() {
                    self.begin()?;
                }
                let (head, rest) = data.split_at(data.len().min(HEAD - self.head.len()));
                self.head.extend_from_slice(head);
                data = rest;
                let Ok([_, length @ ..]) = <[u8; HEAD]>::try_from(&self.head[..]) else { break };
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                if self.left > self.most {
                    return Err(too_large(self.most));
                }
            } else {
                let taken = data.len().min(self.left);
                self.call.held.add(taken)?;
                self.left -= taken;
                data = &data[taken..];
            }
            if self.left == 0 {
                self.head.clear();
            }
        }
        self.watch();
        Ok(())
    }

    /// The next message begins.
    fn begin(&mut self) -> Result<(), ApiError> {
        if self.has_begun && !self.call.method.is_stream {
            return Err(ApiError::malformed("the method takes one message"));
        }
        self.has_begun = true;
        self.call.held.begin()
    }

    /// Give a message of a stream its time from when it begins. The one of other calls has it from
    /// their beginning, and with it the caller's word that there are no more.
    fn watch(&mut self) {
        if !self.call.method.is_stream {
            return;
        }
        if self.left == 0 && self.head.is_empty() {
            self.end = None;
        } else if self.end.is_none() {
            self.end = Some(Box::pin(sleep_until(Instant::now() + self.time)));
        }
    }

    fn refuse(&mut self, error: &ApiError) -> Option<Result<Frame<Bytes>, Status>> {
        self.is_over = true;
        self.body = Body::empty();
        Some(Err(self.call.fail(error)))
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let (Poll::Pending, Some(end)) = (&frame, &mut self.end) {
            ready!(end.as_mut().poll(context));
            let late = ApiError::new(ErrorCode::RequestTimeout, "the message did not come in time");
            return Poll::Ready(self.refuse(&late));
        }
        Poll::Ready(match ready!(frame) {
            Some(Ok(frame)) => match frame.data_ref().map(|data| self.follow(data)) {
                Some(Err(error)) => self.refuse(&error),
                Some(Ok(())) | None => Some(Ok(frame)),
            },
            Some(Err(_error)) => self.refuse(&ApiError::malformed("the message was cut off")),
            None => {
                self.is_over = true;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
