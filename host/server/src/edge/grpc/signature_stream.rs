//! Streams: each message is a request of its own, answered in its place, whatever becomes of the others.
//!
//! So many are under way at once for each stream; beyond them nothing is read, and the caller waits.
//! Where a version takes no more requests, a stream waits for its own earlier ones before it says so: it
//! is one caller, who has said that it sends as much as there is room for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::{Stream, StreamExt as _};
use tonic::server::StreamingService;
use tonic::{Status, Streaming};

use super::call::Call;
use super::raw::grpc;
use super::services::Offered;
use super::serving::Serving;
use crate::edge::Edge;
use crate::edge::body::RequestBody;
use crate::edge::codec::Multiplicity;
use crate::edge::codec::signature::SignatureCodec;
use crate::edge::compare::CompareOnDrop;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::idempotency;
use crate::edge::observe::{Account, Endpoint, Line, Way};
use crate::edge::pipeline::{PredictRequest, Reply, RequestHead};
use crate::typed;

/// The rows of a stream that are under way at once: as many as a batch of most models has, so that one
/// stream can fill batches. A message of each may be in memory.
const MAX_UNDER_WAY: usize = 64;

pub(super) async fn stream(
    serving: &Serving,
    offered: &Offered,
    call: Arc<Call>,
    request: Request,
) -> Response {
    let edge = &serving.edge;
    // Whoever may not ask need not begin.
    let allowed = edge
        .authorize(request.headers())
        .and_then(|caller| edge.permit(&caller, &offered.model))
        .and_then(|()| idempotency::refuse_on_stream(request.headers()));
    if let Err(error) = allowed {
        return call.fail(&error).into_http();
    }
    let rows = Rows {
        serving: serving.clone(),
        service: offered.service.full_name().into(),
        headers: Arc::new(request.headers().clone()),
        account: call.account(),
        call,
    };
    let response = grpc(&edge.policy.load()).streaming(rows, request).await;
    response.map(Body::new)
}

/// What all rows of a stream have in common.
#[derive(Clone)]
struct Rows {
    serving: Serving,
    service: Arc<str>,
    headers: Arc<HeaderMap>,
    account: Account,
    call: Arc<Call>,
}

/// What comes next in a stream of answers.
enum Next {
    /// The answer to a row, when it is there.
    Row(Task<RowAnswer>),
    /// Nothing any more.
    End(Status),
}

/// A message of the stream, and what is to be compared once it has been sent.
type RowAnswer = Result<(Bytes, Option<CompareOnDrop>), Status>;

/// Work that ends with whoever waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl StreamingService<Bytes> for Rows {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = std::future::Ready<Result<tonic::Response<Answers>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let (sender, queue) = mpsc::channel(MAX_UNDER_WAY);
        let reader = Task(tokio::spawn(self.clone().read(request.into_inner(), sender)));
        let (current, comparison, call) = (None, None, Arc::clone(&self.call));
        let answers = Answers { queue, current, comparison, call, _reader: reader };
        std::future::ready(Ok(tonic::Response::new(answers)))
    }
}

impl Rows {
    /// Begin with each row as soon as there is room for it.
    async fn read(self, mut messages: Streaming<Bytes>, sender: mpsc::Sender<Next>) {
        let mut stopping = self.serving.stopping.clone();
        let mut before = None;
        while let Ok(room) = sender.reserve().await {
            let message = tokio::select! {
                message = messages.next() => message,
                // What has come is answered.
                _ = stopping.wait_for(|stopping| *stopping) => {
                    let status = self.call.fail(&ApiError::going_down());
                    return room.send(Next::End(status));
                }
            };
            let message = match message {
                None => return,
                Some(Ok(message)) => message,
                Some(Err(status)) => return room.send(Next::End(status)),
            };
            let held = match self.call.take_message(message.len()) {
                Ok(held) => held,
                Err(error) => return room.send(Next::End(self.call.fail(&error))),
            };
            let (done, after) = oneshot::channel();
            let row = Row { message, _held: held, before: before.replace(after), _done: done };
            room.send(Next::Row(Task(tokio::spawn(self.clone().answer(row)))));
        }
    }

    /// The answer to a row, in whose place there may be an error. What is wrong with the caller itself
    /// ends the stream.
    async fn answer(self, mut row: Row) -> RowAnswer {
        let edge = Arc::clone(&self.serving.edge);
        let endpoint = Endpoint::Method(Arc::clone(&self.call.method.path));
        let way = Way::Grpc(Arc::clone(&edge.meters));
        let mut account = self.account.clone();
        // The trace is the stream's, and has an end of its own.
        account.traced = None;
        let mut line = Line::part(account, endpoint, way);
        let outcome = self.predict(&edge, &mut row, &mut line.account).await;
        let error = outcome.as_ref().err();
        line.status = Some(error.map_or(200, |error| error.code.status().as_u16()));
        line.error_code = error.map(|error| error.code.as_str());
        match outcome {
            Ok(Reply { answer, comparison, .. }) => {
                Ok((typed::encode_stream_response(&answer.encoded.body).into(), comparison))
            }
            Err(error) if matches!(error.code, ErrorCode::Unauthorized | ErrorCode::Forbidden) => {
                Err(self.call.fail(&error))
            }
            Err(error) => {
                let message = typed::encode_stream_error(error.code.as_str(), &error.message);
                Ok((message.into(), None))
            }
        }
    }

    async fn predict(
        &self,
        edge: &Edge,
        row: &mut Row,
        account: &mut Account,
    ) -> Result<Reply, ApiError> {
        let (policy, snapshot) = (edge.policy.load_full(), Arc::clone(&edge.registry.snapshot()));
        let gone = || ApiError::new(ErrorCode::NotFound, "the model has no such version any more");
        let offered = edge.services.find(&snapshot, &self.service).ok_or_else(gone)?;
        let target = Ok((offered.model.clone(), offered.class.selector()));
        let headers = &*self.headers;
        let head = RequestHead { edge, policy: &policy, snapshot, headers, target };
        let body = RequestBody::new(row.message.clone(), None);
        let mut request = PredictRequest::authenticate(head, account)?;
        loop {
            let codec = SignatureCodec::new(Arc::clone(&offered), Multiplicity::Single);
            match (request.answer(codec, body.share(), account).await, row.before.take()) {
                (Err(error), Some(before)) if error.code == ErrorCode::Overloaded => {
                    // Nothing is ever sent: it ends with the row before.
                    let _ = before.await;
                }
                (outcome, _) => return outcome,
            }
        }
    }
}

/// One row of a stream.
struct Row {
    message: Bytes,
    _held: OwnedSemaphorePermit,
    /// Says when the row before has been answered.
    before: Option<oneshot::Receiver<()>>,
    /// Says the same of this one.
    _done: oneshot::Sender<()>,
}

/// The answers in the order of their rows.
struct Answers {
    queue: mpsc::Receiver<Next>,
    current: Option<Task<RowAnswer>>,
    /// Of the last answer, which is on its way when the next one is asked for.
    comparison: Option<CompareOnDrop>,
    call: Arc<Call>,
    _reader: Task<()>,
}

impl Stream for Answers {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.comparison = None;
        loop {
            if let Some(current) = &mut this.current {
                let outcome = ready!(Pin::new(&mut current.0).poll(context));
                this.current = None;
                let answer = outcome.unwrap_or_else(|_panic| {
                    let message = "the server failed on this request";
                    Err(this.call.fail(&ApiError::new(ErrorCode::Internal, message)))
                });
                return Poll::Ready(Some(answer.map(|(message, comparison)| {
                    this.comparison = comparison;
                    message
                })));
            }
            match ready!(this.queue.poll_recv(context)) {
                Some(Next::Row(task)) => this.current = Some(task),
                Some(Next::End(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}
