//! Work that takes longer than anybody should hold a connection open: started, and asked about.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::Shared;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::query;
use guesthouse_runtime::clock;

/// The most operations that are remembered; those that are under way always are.
const MAX_REMEMBERED: usize = 64;

/// The most that are under way: each has a thread and an artifact on the disk.
const MAX_RUNNING: usize = 8;

/// The longest that an answer waits for news.
const MAX_WAIT: u64 = 30;

/// Work under way, and what has become of it.
#[derive(Default)]
pub(super) struct Operations(Mutex<BTreeMap<String, watch::Sender<Progress>>>);

/// How far an operation is.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Progress {
    operation: String,
    state: &'static str,
    steps: Vec<Step>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
    #[serde(skip)]
    step_began: Option<Instant>,
}

#[derive(Debug, Clone, Serialize)]
struct Step {
    step: &'static str,
    /// None while it is under way.
    milliseconds: Option<u64>,
}

/// An operation, for those who work on it.
#[derive(Clone)]
pub(super) struct Working(watch::Sender<Progress>);

impl Operations {
    /// One more operation, unless there are many already.
    pub(super) fn begin(&self) -> Result<Working, ApiError> {
        let operation = clock::new_id().to_string();
        let progress = Progress {
            operation: operation.clone(),
            state: "running",
            steps: Vec::new(),
            result: None,
            error: None,
            step_began: None,
        };
        let sender = watch::Sender::new(progress);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = all.values().filter(|sender| sender.borrow().state == "running").count();
        if running >= MAX_RUNNING {
            let message = "too many deployments are under way";
            return Err(ApiError::new(ErrorCode::Overloaded, message));
        }
        // The numbers are in the order of time.
        while all.len() >= MAX_REMEMBERED {
            let over = all.iter().find(|(_, sender)| sender.borrow().state != "running");
            let Some(over) = over.map(|(operation, _)| operation.clone()) else { break };
            all.remove(&over);
        }
        all.insert(operation, sender.clone());
        Ok(Working(sender))
    }

    fn find(&self, operation: &str) -> Option<watch::Receiver<Progress>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(operation).map(watch::Sender::subscribe)
    }
}

impl Working {
    /// The next step begins.
    pub(super) fn step(&self, step: &'static str) {
        self.0.send_modify(|progress| {
            progress.end_step();
            progress.step_began = Some(Instant::now());
            progress.steps.push(Step { step, milliseconds: None });
        });
    }

    /// It is over.
    pub(super) fn end(&self, outcome: Result<Value, Value>) {
        self.0.send_modify(|progress| {
            progress.end_step();
            match outcome {
                Ok(result) => (progress.state, progress.result) = ("done", Some(result)),
                Err(error) => (progress.state, progress.error) = ("failed", Some(error)),
            }
        });
    }

    /// How far it is.
    pub(super) fn progress(&self) -> Progress {
        self.0.borrow().clone()
    }
}

impl Progress {
    fn end_step(&mut self) {
        let began = self.step_began.take();
        if let (Some(began), Some(step)) = (began, self.steps.last_mut()) {
            step.milliseconds = u64::try_from(began.elapsed().as_millis()).ok();
        }
    }

    /// Where it can be asked about.
    pub(super) fn location(&self) -> String {
        format!("/admin/v1/operations/{}", self.operation)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    wait_seconds: Option<u64>,
}

/// `GET /admin/v1/operations/{operation}?wait_seconds=…`: at once, or when there is news.
pub(super) async fn operation(
    State(admin): Shared,
    Path(operation): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<Progress>, ApiError> {
    admin.authorize(&headers)?;
    let Wait { wait_seconds } = query::parse(query.as_deref())?;
    let unknown = || ApiError::new(ErrorCode::NotFound, "there is no such operation any more");
    let mut receiver = admin.operations.find(&operation).ok_or_else(unknown)?;
    let wait = Duration::from_secs(wait_seconds.unwrap_or(0).min(MAX_WAIT));
    let mut stopping = admin.stopping.clone();
    let seen = receiver.borrow().steps.len();
    let is_news = |progress: &Progress| progress.state != "running" || progress.steps.len() > seen;
    // All ways of not getting news are answered with what is known.
    tokio::select! {
        _ = tokio::time::timeout(wait, receiver.wait_for(is_news)) => {}
        // An error means that the sender is gone, which is a stop as well.
        _ = stopping.wait_for(|stop| *stop) => {}
    }
    let progress = receiver.borrow().clone();
    Ok(Json(progress))
}

/// Ends an operation whose worker has not come to an end.
pub(super) struct EndIfLost(pub(super) Arc<Working>);

impl Drop for EndIfLost {
    fn drop(&mut self) {
        if self.0.progress().state == "running" {
            self.0.end(Err(ApiError::internal().body("")));
        }
    }
}
