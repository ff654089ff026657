//! Answers to the messages of a stream, in the order in which these came.
//!
//! So many are worked on at once; until the first of them is answered and that has been taken, no more
//! are read, and the caller's own window says so to it. An error ends one answer and not the stream,
//! unless it is of the caller's key.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Code, Status, Streaming};

use super::call::Call;
use super::{Serving, pb, status, tensors};
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::observe::{Endpoint, Line, Way};
use crate::edge::shadowed::Then;

/// Messages of a stream that are worked on at once: enough to fill batches, and not more than a version
/// takes that has answered nothing yet, so that one stream alone is not refused anything.
const MAX_AT_ONCE: usize = 16;

/// One answer.
struct Part {
    answer: Result<pb::ModelStreamInferResponse, ApiError>,
    then: Option<Then>,
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
                ready!(self.stopped.as_mut().poll(context));
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
    messages: Messages<pb::ModelInferRequest>,
    places: VecDeque<Place>,
    /// What is to be done when the last answer is on its way.
    then: Option<Then>,
    /// Whether no more messages are read; and why, if the caller has not ended them itself.
    end: Option<Option<Status>>,
}

impl Answers {
    pub(super) fn new(
        serving: Serving,
        call: Arc<Call>,
        messages: Streaming<pb::ModelInferRequest>,
    ) -> Self {
        let messages = Messages::new(&serving, &call, messages);
        let (places, then, end) = (VecDeque::new(), None, None);
        Self { serving, call, messages, places, then, end }
    }

    /// Read messages, as long as there is room for their answers.
    fn read(&mut self, context: &mut Context<'_>) {
        while self.end.is_none() && self.places.len() < MAX_AT_ONCE {
            match Pin::new(&mut self.messages).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(message))) => {
                    let work = part(self.serving.clone(), Arc::clone(&self.call), message);
                    self.places.push_back(Place::Working(Box::pin(work)));
                }
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
    type Item = Result<pb::ModelStreamInferResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        // Whoever asks for the next one has the last one on its way.
        this.then = None;
        this.read(context);
        this.work(context);
        match this.places.pop_front() {
            Some(Place::Done(part)) => {
                this.then = part.then;
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

/// Ends when the server is told to stop.
pub(super) async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Answer one message.
async fn part(serving: Serving, call: Arc<Call>, message: pb::ModelInferRequest) -> Part {
    let mut account = call.account();
    // The trace is the stream's, and would grow with it.
    account.traced = None;
    let endpoint = Endpoint::Method(Arc::clone(&call.method.path));
    let way = Way::Grpc(Arc::clone(&serving.edge.meters));
    let mut line = Line::part(account, endpoint, way);
    let id = message.id.clone();
    let marks_last = tensors::wants_last_marked(&message);
    let outcome = async {
        let _held = call.take_message(tensors::size(&message))?;
        serving.infer(&call.headers, message, &mut line.account).await
    };
    let outcome = outcome.await;
    let code = outcome.as_ref().err().map(|error| error.code);
    line.status = Some(code.map_or(200, |code| code.status().as_u16()));
    line.error_code = code.map(ErrorCode::as_str);
    line.grpc_status = Some(status::name(code.map_or(Code::Ok, ErrorCode::grpc)));
    match outcome {
        Ok((mut answer, then)) => {
            if marks_last {
                tensors::mark_last(&mut answer);
            }
            let (error_message, infer_response) = (String::new(), Some(answer));
            Part {
                answer: Ok(pb::ModelStreamInferResponse { error_message, infer_response }),
                then,
            }
        }
        // Nothing that it could send would be answered.
        Err(error) if error.code == ErrorCode::Unauthorized => {
            Part { answer: Err(error), then: None }
        }
        Err(error) => {
            // Which of them it was, says the id.
            let infer_response = Some(pb::ModelInferResponse { id, ..Default::default() });
            let error_message = error.message;
            Part {
                answer: Ok(pb::ModelStreamInferResponse { error_message, infer_response }),
                then: None,
            }
        }
    }
}
