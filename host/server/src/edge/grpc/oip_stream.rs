//! `ModelStreamInfer`: each message of the stream is a request of its own, answered in its order.
//!
//! The number of messages in progress is limited. No more are read until the response to the first of them
//! has been sent, and HTTP/2's flow control holds the caller back. An error is the response to its message;
//! only an error about the caller's key ends the stream.

use std::collections::VecDeque;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready as ready_or_pending};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio_stream::Stream;
use tonic::server::StreamingService;
use tonic::{Code, Status, Streaming};

use super::call::Call;
use super::oip_predict::{InferMessage, infer};
use super::predict::grpc;
use super::serving::{Serving, stopped};
use super::status;
use crate::edge::compare::CompareOnDrop;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::idempotency;
use crate::edge::listener_kind::ListenerKind;
use crate::edge::pb;
use crate::edge::pipeline::Reply;
use crate::edge::request_log::{Endpoint, RequestLogGuard};

/// The most messages of a stream in progress: enough to fill batches, and not more than the admission of a
/// version that has just been loaded, so that requests of a single stream are not shed.
const MAX_IN_PROGRESS: usize = 16;

/// The response to one message.
struct MessageResponse {
    /// An error ends the stream.
    message: Result<Bytes, ApiError>,
    comparison: Option<CompareOnDrop>,
}

/// Answer `ModelStreamInfer`.
pub(super) async fn model_stream_infer(serving: &Serving, request: Request) -> Response {
    let call = match Call::from_extensions(request.extensions()) {
        Ok(call) => call,
        Err(status) => return status.into_http(),
    };
    if let Err(error) = idempotency::reject_on_stream(&call.headers) {
        return call.fail(&error).into_http();
    }
    let service = InferStream { serving: serving.clone(), call };
    let response = grpc(&serving.edge.policy.load()).streaming(service, request).await;
    response.map(Body::new)
}

struct InferStream {
    serving: Serving,
    call: Arc<Call>,
}

impl StreamingService<Bytes> for InferStream {
    type Response = Bytes;
    type ResponseStream = ResponseStream;
    type Future = Ready<Result<tonic::Response<ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let Self { serving, call } = self;
        let responses =
            ResponseStream::new(serving.clone(), Arc::clone(call), request.into_inner());
        ready(Ok(tonic::Response::new(responses)))
    }
}

/// A message that was read.
enum Pending {
    InProgress(Pin<Box<dyn Future<Output = MessageResponse> + Send>>),
    /// Its response waits for the responses to earlier messages.
    Done(Box<MessageResponse>),
}

/// The messages of a stream, which ends with an error when the server stops. Messages that arrived before
/// are answered.
pub(super) struct MessageStream<M> {
    call: Arc<Call>,
    messages: Streaming<M>,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_done: bool,
}

impl<M> MessageStream<M> {
    pub(super) fn new(serving: &Serving, call: &Arc<Call>, messages: Streaming<M>) -> Self {
        let stopped = Box::pin(stopped(serving.stopping.clone()));
        Self { call: Arc::clone(call), messages, stopped, is_done: false }
    }
}

impl<M> Stream for MessageStream<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_done {
            return Poll::Ready(None);
        }
        let message = match Pin::new(&mut self.messages).poll_next(context) {
            Poll::Ready(message) => message,
            Poll::Pending => {
                ready_or_pending!(self.stopped.as_mut().poll(context));
                Some(Err(self.call.fail(&ApiError::stopping())))
            }
        };
        let message = message.map(|message| {
            message.map_err(|status| {
                // An error that the call knows is in its status already.
                let known = self.call.error().is_some();
                let library = status::library_error(status.code()).filter(|_| !known);
                library.map_or(status, |error| self.call.fail(&error))
            })
        });
        self.is_done = !matches!(message, Some(Ok(_)));
        Poll::Ready(message)
    }
}

/// The responses of a stream.
struct ResponseStream {
    serving: Serving,
    call: Arc<Call>,
    messages: MessageStream<Bytes>,
    pending: VecDeque<Pending>,
    /// Of the last response; dropped when that has been sent.
    comparison: Option<CompareOnDrop>,
    /// Whether all messages were read, and the error that ended them, if there was one.
    end: Option<Option<Status>>,
}

impl ResponseStream {
    pub(super) fn new(serving: Serving, call: Arc<Call>, messages: Streaming<Bytes>) -> Self {
        let messages = MessageStream::new(&serving, &call, messages);
        let (pending, comparison, end) = (VecDeque::new(), None, None);
        Self { serving, call, messages, pending, comparison, end }
    }

    /// Read messages, up to the most that may be in progress.
    fn read(&mut self, context: &mut Context<'_>) {
        while self.end.is_none() && self.pending.len() < MAX_IN_PROGRESS {
            match Pin::new(&mut self.messages).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(message))) => match InferMessage::decode(message) {
                    Ok(message) => {
                        let work = answer(self.serving.clone(), Arc::clone(&self.call), message);
                        self.pending.push_back(Pending::InProgress(Box::pin(work)));
                    }
                    Err(error) => self.end = Some(Some(self.call.fail(&error))),
                },
                Poll::Ready(Some(Err(status))) => self.end = Some(Some(status)),
                Poll::Ready(None) => self.end = Some(None),
            }
        }
    }

    fn poll_pending(&mut self, context: &mut Context<'_>) {
        for message in &mut self.pending {
            if let Pending::InProgress(work) = message
                && let Poll::Ready(response) = work.as_mut().poll(context)
            {
                *message = Pending::Done(Box::new(response));
            }
        }
    }
}

impl Stream for ResponseStream {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        // The next response is polled when the last one has been sent.
        this.comparison = None;
        this.read(context);
        this.poll_pending(context);
        match this.pending.pop_front() {
            Some(Pending::Done(response)) => {
                this.comparison = response.comparison;
                Poll::Ready(Some(response.message.map_err(|error| {
                    this.pending.clear();
                    this.end = Some(None);
                    this.call.fail(&error)
                })))
            }
            Some(in_progress @ Pending::InProgress(_)) => {
                this.pending.push_front(in_progress);
                Poll::Pending
            }
            None => match &mut this.end {
                Some(why) => Poll::Ready(why.take().map(Err)),
                None => Poll::Pending,
            },
        }
    }
}

/// Answer one message.
async fn answer(serving: Serving, call: Arc<Call>, message: InferMessage) -> MessageResponse {
    let mut log = call.log();
    // The trace belongs to the stream, and would grow with each message.
    log.trace = None;
    let endpoint = Endpoint::Method(Arc::clone(&call.method.path));
    let listener = ListenerKind::Grpc(Arc::clone(&serving.edge.meters));
    let mut guard = RequestLogGuard::for_stream_message(log, endpoint, listener);
    let id = message.request.id.clone();
    let outcome = infer(&serving.edge, &call, message, &mut guard.log).await;
    let code = outcome.as_ref().err().map(|error| error.code);
    guard.status = Some(code.map_or(200, |code| code.status().as_u16()));
    guard.error_code = code.map(ErrorCode::as_str);
    guard.grpc_status = Some(status::name(code.map_or(Code::Ok, ErrorCode::grpc)));
    match outcome {
        Ok(Reply { answer, comparison, .. }) => {
            MessageResponse { message: Ok(stream_answer(&answer.encoded.body)), comparison }
        }
        // Every later message would be rejected as well.
        Err(error) if error.code == ErrorCode::Unauthorized => {
            MessageResponse { message: Err(error), comparison: None }
        }
        Err(error) => {
            // The id says which message it was.
            let infer_response = Some(pb::ModelInferResponse { id, ..Default::default() });
            let error_message = error.message;
            let response = pb::ModelStreamInferResponse { error_message, infer_response };
            MessageResponse { message: Ok(response.encode_to_vec().into()), comparison: None }
        }
    }
}

/// A `ModelStreamInferResponse` with that `ModelInferResponse`.
fn stream_answer(response: &[u8]) -> Bytes {
    let mut message = Vec::with_capacity(response.len() + 11);
    encode_key(2, WireType::LengthDelimited, &mut message);
    encode_varint(response.len() as u64, &mut message);
    message.extend_from_slice(response);
    message.into()
}
