//! Operations: work that takes longer than a client should hold a connection open. They are started, and
//! then polled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use tokio::sync::watch;

use super::Shared;
use crate::api::error::ErrorBody;
use crate::api::operation::{Deployment, Operation, OperationQuery, OperationState, Step};
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::query;
use guesthouse_runtime::clock;

/// The most operations that are kept. Running ones are never dropped.
const MAX_KEPT: usize = 64;

/// The most operations that run at the same time. Each has a thread and an artifact on the disk.
const MAX_RUNNING: usize = 8;

/// The longest time that a response is held back until there is progress, in seconds.
const MAX_WAIT: u64 = 30;

/// The running operations and the latest completed ones, by id.
#[derive(Default)]
pub(super) struct Operations(Mutex<BTreeMap<String, watch::Sender<Progress>>>);

/// The progress of an operation.
#[derive(Debug, Clone)]
struct Progress {
    operation: Operation,
    step_began: Option<Instant>,
}

/// Reports the progress of an operation.
#[derive(Clone)]
pub(super) struct OperationHandle(Arc<watch::Sender<Progress>>);

impl Operations {
    /// Begin an operation, unless [`MAX_RUNNING`] are in progress.
    pub(super) fn begin(&self) -> Result<OperationHandle, ApiError> {
        let id = clock::new_id().to_string();
        let operation = Operation {
            operation: id.clone(),
            state: OperationState::Running,
            steps: Vec::new(),
            result: None,
            error: None,
        };
        let sender = watch::Sender::new(Progress { operation, step_began: None });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = all.values().filter(|sender| sender.borrow().is_running()).count();
        if running >= MAX_RUNNING {
            let message = "too many deployments are in progress";
            return Err(ApiError::new(ErrorCode::Overloaded, message));
        }
        // Ids are ordered by time.
        while all.len() >= MAX_KEPT {
            let completed = all.iter().find(|(_, sender)| !sender.borrow().is_running());
            let Some(completed) = completed.map(|(id, _)| id.clone()) else { break };
            all.remove(&completed);
        }
        all.insert(id, sender.clone());
        Ok(OperationHandle(Arc::new(sender)))
    }

    fn find(&self, id: &str) -> Option<watch::Receiver<Progress>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(id).map(watch::Sender::subscribe)
    }
}

impl OperationHandle {
    /// End the current step and begin the next one.
    pub(super) fn begin_step(&self, step: &'static str) {
        self.0.send_modify(|progress| {
            progress.end_step();
            progress.step_began = Some(Instant::now());
            let step = Step { step: step.to_owned(), milliseconds: None };
            progress.operation.steps.push(step);
        });
    }

    /// End the operation.
    pub(super) fn end(&self, outcome: Result<Deployment, ErrorBody>) {
        self.0.send_modify(|progress| {
            progress.end_step();
            let Operation { state, result, error, .. } = &mut progress.operation;
            match outcome {
                Ok(deployment) => (*state, *result) = (OperationState::Done, Some(deployment)),
                Err(body) => (*state, *error) = (OperationState::Failed, Some(body)),
            }
        });
    }

    /// The progress so far.
    pub(super) fn progress(&self) -> Operation {
        self.0.borrow().operation.clone()
    }
}

impl Progress {
    fn is_running(&self) -> bool {
        self.operation.state == OperationState::Running
    }

    fn end_step(&mut self) {
        let began = self.step_began.take();
        if let (Some(began), Some(step)) = (began, self.operation.steps.last_mut()) {
            step.milliseconds = u64::try_from(began.elapsed().as_millis()).ok();
        }
    }
}

/// `GET /admin/v1/operations/{operation}?wait_seconds=…`: responds at once, or when there is progress.
pub(super) async fn operation(
    State(admin): Shared,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<Operation>, ApiError> {
    admin.authorize(&headers)?;
    let OperationQuery { wait_seconds } = query::parse(query.as_deref())?;
    let unknown = || ApiError::new(ErrorCode::NotFound, "there is no such operation any more");
    let mut receiver = admin.operations.find(&id).ok_or_else(unknown)?;
    let wait = Duration::from_secs(wait_seconds.unwrap_or(0).min(MAX_WAIT));
    let mut stopping = admin.stopping.clone();
    let seen = receiver.borrow().operation.steps.len();
    let has_progress =
        |progress: &Progress| !progress.is_running() || progress.operation.steps.len() > seen;
    // Whatever ends the wait, the response is the progress so far.
    tokio::select! {
        _ = tokio::time::timeout(wait, receiver.wait_for(has_progress)) => {}
        // An error means that the sender was dropped, which is a stop as well.
        _ = stopping.wait_for(|stop| *stop) => {}
    }
    let operation = receiver.borrow().operation.clone();
    Ok(Json(operation))
}

/// Fails the operation on drop if it is still running: its worker panicked or was cancelled.
pub(super) struct FailOnDrop(pub(super) OperationHandle);

impl Drop for FailOnDrop {
    fn drop(&mut self) {
        if self.0.progress().state == OperationState::Running {
            self.0.end(Err(ApiError::internal().body("")));
        }
    }
}
