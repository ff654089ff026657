//! The body of a gRPC response: it always ends with a status, which is logged.

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
use crate::edge::request_log::RequestLogGuard;
use crate::observe::server_metrics::ServerMetrics;

/// The body of a response.
pub(super) struct ResponseBody {
    body: Body,
    /// Whether its status has been sent.
    is_done: bool,
    /// What may end a stream early; none for a response that is complete.
    cutoff: Option<StreamCutoff>,
    guard: CallGuard,
}

/// Ends a stream at its deadline, or when the server interrupts what is under way.
pub(super) struct StreamCutoff {
    deadline: Option<Pin<Box<Sleep>>>,
    interrupted: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl StreamCutoff {
    pub(super) fn new(deadline: Option<Instant>, mut interrupted: watch::Receiver<bool>) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        let interrupted = async move {
            if interrupted.wait_for(|interrupted| *interrupted).await.is_err() {
                // The sender is gone, so that nothing can interrupt the stream any more.
                std::future::pending::<()>().await;
            }
        };
        Self { deadline, interrupted: Box::pin(interrupted) }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ApiError> {
        if self.interrupted.as_mut().poll(context).is_ready() {
            return Poll::Ready(ApiError::stopping());
        }
        match &mut self.deadline {
            Some(deadline) => deadline.as_mut().poll(context).map(|()| deadline_exceeded()),
            None => Poll::Pending,
        }
    }
}

/// The error for a call whose own deadline has passed.
pub(super) fn deadline_exceeded() -> ApiError {
    ApiError::new(ErrorCode::DeadlineExceeded, "the deadline passed before there was an answer")
}

/// Logs and counts a call when it is dropped.
pub(super) struct CallGuard {
    pub(super) log: RequestLogGuard,
    pub(super) call: Option<Arc<Call>>,
    /// The error, if it was known when the response began.
    pub(super) error: Option<ErrorCode>,
    pub(super) metrics: Arc<ServerMetrics>,
}

impl CallGuard {
    /// Note the status that the call ends with.
    fn set_status(&mut self, code: Code) {
        let call_error = || self.call.as_ref().and_then(|call| call.error());
        let known = self.error.or_else(call_error);
        let error = known.or_else(|| status::library_error(code).map(|error| error.code));
        self.log.grpc_status = Some(status::name(code));
        self.log.status = Some(error.map_or(200, |error| error.status().as_u16()));
        self.log.error_code = error.map(|error| error.as_str());
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.metrics.grpc.in_flight.decrement();
        if let Some(call) = &self.call {
            self.log.log = call.log();
        }
        if self.log.status.is_none() {
            self.log.grpc_status = Some(status::name(Code::Cancelled));
        }
    }
}

impl ResponseBody {
    pub(super) fn new(
        body: Body,
        headers: &HeaderMap,
        cutoff: Option<StreamCutoff>,
        mut guard: CallGuard,
    ) -> Self {
        if let Some(code) = code(headers) {
            guard.set_status(code);
        }
        Self { body, is_done: false, cutoff, guard }
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if this.is_done {
            return Poll::Ready(None);
        }
        let mut frame = Pin::new(&mut this.body).poll_frame(context);
        if let (Poll::Pending, Some(cutoff)) = (&frame, &mut this.cutoff) {
            let Poll::Ready(error) = cutoff.poll(context) else { return Poll::Pending };
            let status = match &this.guard.call {
                Some(call) => call.fail(&error),
                None => status::from_error(&error),
            };
            let mut trailers = HeaderMap::new();
            // An error means that the status does not fit into trailers; ours is ASCII.
            let _ = status.add_header(&mut trailers);
            this.body = Body::empty();
            this.is_done = true;
            frame = Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if let Poll::Ready(Some(Ok(frame))) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
            && let Some(code) = code(trailers)
        {
            let known = this.guard.call.as_ref().and_then(|call| call.error());
            if let (None, Some(error)) = (known, status::library_error(code)) {
                let _ = status::from_error(&error).add_header(trailers);
            }
            this.guard.set_status(code);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.is_done || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
