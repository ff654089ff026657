//! Answers on their way out: whatever happens meanwhile, they end with a status, and that is in the log.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::HeaderMap;
use hyper::body::{Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status};

use super::call::Call;
use super::status;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::observe::Line;
use crate::observe::server_metrics::ServerMetrics;

/// The body of an answer.
pub(super) struct Leaving {
    body: Body,
    /// Whether its status has been sent.
    is_over: bool,
    /// What ends it before its time; nothing, if it has to be there as a whole already.
    cut: Option<Cut>,
    log: Log,
}

/// What ends a stream.
pub(super) struct Cut {
    deadline: Option<Pin<Box<Sleep>>>,
    interrupted: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Cut {
    pub(super) fn new(deadline: Option<Instant>, mut interrupted: watch::Receiver<bool>) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        let interrupted = async move {
            if interrupted.wait_for(|interrupted| *interrupted).await.is_err() {
                // Nobody is there any more to interrupt it.
                std::future::pending::<()>().await;
            }
        };
        Self { deadline, interrupted: Box::pin(interrupted) }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ApiError> {
        if self.interrupted.as_mut().poll(context).is_ready() {
            return Poll::Ready(ApiError::going_down());
        }
        match &mut self.deadline {
            Some(deadline) => deadline.as_mut().poll(context).map(|()| late()),
            None => Poll::Pending,
        }
    }
}

/// What a caller is told whose own time is over.
pub(super) fn late() -> ApiError {
    ApiError::new(ErrorCode::DeadlineExceeded, "there was no answer in time")
}

/// The line in the log, which is written when this is dropped.
pub(super) struct Log {
    pub(super) line: Line,
    pub(super) call: Option<Arc<Call>>,
    /// Why there is no answer, if that was known at its head.
    pub(super) error: Option<ErrorCode>,
    pub(super) meters: Arc<ServerMetrics>,
}

impl Log {
    /// The call ends with that.
    fn end(&mut self, code: Code) {
        let of_call = || self.call.as_ref().and_then(|call| call.error());
        let known = self.error.or_else(of_call);
        let error = known.or_else(|| status::of_library(code).map(|error| error.code));
        self.line.grpc_status = Some(status::name(code));
        self.line.status = Some(error.map_or(200, |error| error.status().as_u16()));
        self.line.error_code = error.map(|error| error.as_str());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.meters.grpc.in_flight.decrement();
        if let Some(call) = &self.call {
            self.line.account = call.account();
        }
        if self.line.status.is_none() {
            self.line.grpc_status = Some(status::name(Code::Cancelled));
        }
    }
}

impl Leaving {
    pub(super) fn new(body: Body, headers: &HeaderMap, cut: Option<Cut>, mut log: Log) -> Self {
        if let Some(code) = code(headers) {
            log.end(code);
        }
        Self { body, is_over: false, cut, log }
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if this.is_over {
            return Poll::Ready(None);
        }
        let mut frame = Pin::new(&mut this.body).poll_frame(context);
        if let (Poll::Pending, Some(cut)) = (&frame, &mut this.cut) {
            let Poll::Ready(error) = cut.poll(context) else { return Poll::Pending };
            let status = match &this.log.call {
                Some(call) => call.fail(&error),
                None => status::of(&error),
            };
            let mut trailers = HeaderMap::new();
            // What does not fit into trailers is not sent; ours is ASCII.
            let _ = status.add_header(&mut trailers);
            this.body = Body::empty();
            this.is_over = true;
            frame = Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if let Poll::Ready(Some(Ok(frame))) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
            && let Some(code) = code(trailers)
        {
            let known = this.log.call.as_ref().and_then(|call| call.error());
            if let (None, Some(error)) = (known, status::of_library(code)) {
                let _ = status::of(&error).add_header(trailers);
            }
            this.log.end(code);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
