//! Answers to the messages of a stream, in the order in which these came.
//!
//! So many are worked on at once; until the first of them is answered and that has been taken, no more
//! are read, and the caller's own window says so to it. An error ends one answer and not the stream,
//! unless it is of the caller's key.

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
use super::oip::{self, Message};
use super::raw::grpc;
use super::serving::{Serving, stopped};
use super::{pb, status};
use crate::edge::compare::CompareOnDrop;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::idempotency;
use crate::edge::observe::{Endpoint, Line, Way};
use crate::edge::pipeline::Reply;

/// Messages of a stream that are worked on at once: enough to fill batches, and not more than a version
/// takes that has answered nothing yet, so that one stream alone is not refused anything.
const MAX_AT_ONCE: usize = 16;

/// One answer.
struct Part {
    answer: Result<Bytes, ApiError>,
    comparison: Option<CompareOnDrop>,
}

/// Answer `ModelStreamInfer`.
pub(super) async fn model_stream_infer(serving: &Serving, request: Request) -> Response {
    let call = match Call::of(request.extensions()) {
        Ok(call) => call,
        Err(status) => return status.into_http(),
    };
    if let Err(error) = idempotency::refuse_on_stream(&call.headers) {
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
    type ResponseStream = Answers;
    type Future = Ready<Result<tonic::Response<Answers>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let Self { serving, call } = self;
        let answers = Answers::new(serving.clone(), Arc::clone(call), request.into_inner());
        ready(Ok(tonic::Response::new(answers)))
    }
}

/// A message.
enum Place {
    /// It is worked on.
    Working(Pin<Box<dyn Future<Output = Part> + Send>>),
    /// It is answered, and those before it are not.
    Done(Box<Part>),
}

/// The messages of a stream, until the server is told to stop: what has come by then is answered, and
/// the stream ends with that.
pub(crate) struct Messages<M> {
    call: Arc<Call>,
    messages: Streaming<M>,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_over: bool,
}

impl<M> Messages<M> {
    pub(crate) fn new(serving: &Serving, call: &Arc<Call>, messages: Streaming<M>) -> Self {
        let stopped = Box::pin(stopped(serving.stopping.clone()));
        Self { call: Arc::clone(call), messages, stopped, is_over: false }
    }
}

impl<M> Stream for Messages<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let message = match Pin::new(&mut self.messages).poll_next(context) {
            Poll::Ready(message) => message,
            Poll::Pending => {
                ready_or_pending!(self.stopped.as_mut().poll(context));
                Some(Err(self.call.fail(&ApiError::going_down())))
            }
        };
        let message = message.map(|message| {
            message.map_err(|status| {
                // Where the call knows why, it has said so.
                let known = self.call.error().is_some();
                let library = status::of_library(status.code()).filter(|_| !known);
                library.map_or(status, |error| self.call.fail(&error))
            })
        });
        self.is_over = !matches!(message, Some(Ok(_)));
        Poll::Ready(message)
    }
}

/// The answers of a stream.
pub(crate) struct Answers {
    serving: Serving,
    call: Arc<Call>,
    messages: Messages<Bytes>,
    places: VecDeque<Place>,
    /// Of the last answer; dropped when it is on its way.
    comparison: Option<CompareOnDrop>,
    /// Whether no more messages are read; and why, if the caller has not ended them itself.
    end: Option<Option<Status>>,
}

impl Answers {
    pub(super) fn new(serving: Serving, call: Arc<Call>, messages: Streaming<Bytes>) -> Self {
        let messages = Messages::new(&serving, &call, messages);
        let (places, comparison, end) = (VecDeque::new(), None, None);
        Self { serving, call, messages, places, comparison, end }
    }

    /// Read messages, as long as there is room for their answers.
    fn read(&mut self, context: &mut Context<'_>) {
        while self.end.is_none() && self.places.len() < MAX_AT_ONCE {
            match Pin::new(&mut self.messages).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(message))) => match Message::decode(message) {
                    Ok(message) => {
                        let work = part(self.serving.clone(), Arc::clone(&self.call), message);
                        self.places.push_back(Place::Working(Box::pin(work)));
                    }
                    Err(error) => self.end = Some(Some(self.call.fail(&error))),
                },
                Poll::Ready(Some(Err(status))) => self.end = Some(Some(status)),
                Poll::Ready(None) => self.end = Some(None),
            }
        }
    }

    fn work(&mut self, context: &mut Context<'_>) {
        for place in &mut self.places {
            if let Place::Working(work) = place
                && let Poll::Ready(part) = work.as_mut().poll(context)
            {
                *place = Place::Done(Box::new(part));
            }
        }
    }
}

impl Stream for Answers {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        // Whoever asks for the next one has the last one on its way.
        this.comparison = None;
        this.read(context);
        this.work(context);
        match this.places.pop_front() {
            Some(Place::Done(part)) => {
                this.comparison = part.comparison;
                Poll::Ready(Some(part.answer.map_err(|error| {
                    this.places.clear();
                    this.end = Some(None);
                    this.call.fail(&error)
                })))
            }
            Some(working @ Place::Working(_)) => {
                this.places.push_front(working);
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
async fn part(serving: Serving, call: Arc<Call>, message: Message) -> Part {
    let mut account = call.account();
    // The trace is the stream's, and would grow with it.
    account.traced = None;
    let endpoint = Endpoint::Method(Arc::clone(&call.method.path));
    let way = Way::Grpc(Arc::clone(&serving.edge.meters));
    let mut line = Line::part(account, endpoint, way);
    let id = message.request.id.clone();
    let outcome = oip::infer(&serving.edge, &call, message, &mut line.account).await;
    let code = outcome.as_ref().err().map(|error| error.code);
    line.status = Some(code.map_or(200, |code| code.status().as_u16()));
    line.error_code = code.map(ErrorCode::as_str);
    line.grpc_status = Some(status::name(code.map_or(Code::Ok, ErrorCode::grpc)));
    match outcome {
        Ok(Reply { answer, comparison, .. }) => {
            Part { answer: Ok(stream_answer(&answer.encoded.body)), comparison }
        }
        // Nothing that it could send would be answered.
        Err(error) if error.code == ErrorCode::Unauthorized => {
            Part { answer: Err(error), comparison: None }
        }
        Err(error) => {
            // The id says which message it was.
            let infer_response = Some(pb::ModelInferResponse { id, ..Default::default() });
            let error_message = error.message;
            let answer = pb::ModelStreamInferResponse { error_message, infer_response };
            Part { answer: Ok(answer.encode_to_vec().into()), comparison: None }
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
