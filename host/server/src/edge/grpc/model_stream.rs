//! `PredictStream` of models' services: each message of the stream is a row, answered in its order.
//!
//! The number of rows in progress is limited; beyond it nothing is read, and the caller waits. A row that is
//! not admitted waits for the rows before it and is tried again: the caller of a stream expects that it sends
//! as fast as there is capacity.

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
use super::predict::grpc;
use super::serving::Serving;
use crate::edge::body::RequestBody;
use crate::edge::codec::Multiplicity;
use crate::edge::codec::signature::SignatureCodec;
use crate::edge::compare::CompareOnDrop;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::idempotency;
use crate::edge::listener_kind::ListenerKind;
use crate::edge::model_services::RoutedService;
use crate::edge::pipeline::{PredictRequest, Reply, RequestHead};
use crate::edge::request_log::{Endpoint, RequestLog, RequestLogGuard};
use crate::edge::state::Edge;
use crate::typed;

/// The most rows of a stream in progress: as many as a batch of most models, so that one stream can fill
/// batches. The message of each may be in memory.
const MAX_IN_PROGRESS: usize = 64;

/// Answer `PredictStream`.
pub(super) async fn predict_stream(
    serving: &Serving,
    service: &RoutedService,
    call: Arc<Call>,
    request: Request,
) -> Response {
    let edge = &serving.edge;
    // A caller that may not use the model is rejected at once, and not at the first message.
    let checked = edge
        .authenticate(request.headers())
        .and_then(|caller| edge.check_model(&caller, &service.model))
        .and_then(|()| idempotency::reject_on_stream(request.headers()));
    if let Err(error) = checked {
        return call.fail(&error).into_http();
    }
    let rows = Rows {
        serving: serving.clone(),
        service: service.service.full_name().into(),
        headers: Arc::new(request.headers().clone()),
        log: call.log(),
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
    log: RequestLog,
    call: Arc<Call>,
}

/// What comes next in the stream of responses.
enum Next {
    /// The response to a row.
    Row(Task<RowResponse>),
    /// The end of the stream.
    End(Status),
}

/// A message, and the comparison that follows when it has been sent; or the error that ends the stream.
type RowResponse = Result<(Bytes, Option<CompareOnDrop>), Status>;

/// A task that is aborted when this is dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl StreamingService<Bytes> for Rows {
    type Response = Bytes;
    type ResponseStream = ResponseStream;
    type Future = std::future::Ready<Result<tonic::Response<ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let (sender, queue) = mpsc::channel(MAX_IN_PROGRESS);
        let reader = Task(tokio::spawn(self.clone().read(request.into_inner(), sender)));
        let (current, comparison, call) = (None, None, Arc::clone(&self.call));
        let responses = ResponseStream { queue, current, comparison, call, _reader: reader };
        std::future::ready(Ok(tonic::Response::new(responses)))
    }
}

impl Rows {
    /// Read rows and start a task for each, up to the most that may be in progress.
    async fn read(self, mut messages: Streaming<Bytes>, sender: mpsc::Sender<Next>) {
        let mut stopping = self.serving.stopping.clone();
        let mut previous = None;
        while let Ok(room) = sender.reserve().await {
            let message = tokio::select! {
                message = messages.next() => message,
                // Rows that arrived before are answered.
                _ = stopping.wait_for(|stopping| *stopping) => {
                    let status = self.call.fail(&ApiError::stopping());
                    return room.send(Next::End(status));
                }
            };
            let message = match message {
                None => return,
                Some(Ok(message)) => message,
                Some(Err(status)) => return room.send(Next::End(status)),
            };
            let permit = match self.call.take_permit(message.len()) {
                Ok(permit) => permit,
                Err(error) => return room.send(Next::End(self.call.fail(&error))),
            };
            let (done, after) = oneshot::channel();
            let row =
                Row { message, _permit: permit, previous: previous.replace(after), _done: done };
            room.send(Next::Row(Task(tokio::spawn(self.clone().answer(row)))));
        }
    }

    /// Answer a row. An error is the response to its row; an error about the caller's key ends the stream.
    async fn answer(self, mut row: Row) -> RowResponse {
        let edge = Arc::clone(&self.serving.edge);
        let endpoint = Endpoint::Method(Arc::clone(&self.call.method.path));
        let listener = ListenerKind::Grpc(Arc::clone(&edge.meters));
        let mut log = self.log.clone();
        // The trace belongs to the stream, and would grow with each row.
        log.trace = None;
        let mut guard = RequestLogGuard::for_stream_message(log, endpoint, listener);
        let outcome = self.predict(&edge, &mut row, &mut guard.log).await;
        let error = outcome.as_ref().err();
        guard.status = Some(error.map_or(200, |error| error.code.status().as_u16()));
        guard.error_code = error.map(|error| error.code.as_str());
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
        log: &mut RequestLog,
    ) -> Result<Reply, ApiError> {
        let (policy, snapshot) = (edge.policy.load_full(), Arc::clone(&edge.registry.snapshot()));
        let gone = || ApiError::new(ErrorCode::NotFound, "the model has no such version any more");
        let service = edge.services.find(&snapshot, &self.service).ok_or_else(gone)?;
        let target = Ok((service.model.clone(), service.class.selector()));
        let headers = &*self.headers;
        let head = RequestHead { edge, policy: &policy, snapshot, headers, target };
        let body = RequestBody::new(row.message.clone(), None);
        let mut request = PredictRequest::authenticate(head, log)?;
        loop {
            let codec = SignatureCodec::new(Arc::clone(&service), Multiplicity::Single);
            match (request.answer(codec, body.share(), log).await, row.previous.take()) {
                (Err(error), Some(previous)) if error.code == ErrorCode::Overloaded => {
                    // The sender is dropped with the previous row, and never sends.
                    let _ = previous.await;
                }
                (outcome, _) => return outcome,
            }
        }
    }
}

/// One row of a stream.
struct Row {
    message: Bytes,
    _permit: OwnedSemaphorePermit,
    /// Completes when the previous row has been answered.
    previous: Option<oneshot::Receiver<()>>,
    /// Completes the receiver of the next row when it is dropped.
    _done: oneshot::Sender<()>,
}

/// The responses, in the order of their rows.
struct ResponseStream {
    queue: mpsc::Receiver<Next>,
    current: Option<Task<RowResponse>>,
    /// Of the last response; dropped when that has been sent.
    comparison: Option<CompareOnDrop>,
    call: Arc<Call>,
    _reader: Task<()>,
}

impl Stream for ResponseStream {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.comparison = None;
        loop {
            if let Some(current) = &mut this.current {
                let outcome = ready!(Pin::new(&mut current.0).poll(context));
                this.current = None;
                let answer =
                    outcome.unwrap_or_else(|_panic| Err(this.call.fail(&ApiError::internal())));
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
