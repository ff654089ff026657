//! `POST /admin/v1/deploy`: receives an artifact into the store, then deploys it while the client polls
//! the operation.

use std::io::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{RawQuery, Request, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

use super::operations::{FailOnDrop, OperationHandle};
use super::{Admin, ChangeContext, Shared, stored, with_log};
use crate::api::operation::Deployment;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::request_log::RequestLog;
use crate::edge::{forwarded, media_type};
use guesthouse_artifact::{Artifact, MAX_ARTIFACT_BYTES};
use guesthouse_control::control::{ChangeOutcome, ControlError, DEPLOY_STEPS};
use guesthouse_control::rollout::Promotion;
use guesthouse_runtime::durable::{self, FileOperation};
use guesthouse_runtime::store::StoreError;

/// The longest time to receive an artifact, however steadily it arrives: 1 GiB over 2.5 Mbit/s. A slow
/// upload occupies one of the operations.
const RECEIVE_TIME: Duration = Duration::from_secs(3600);

/// Chunks of an artifact that wait to be written.
const QUEUED_CHUNKS: usize = 16;

pub(super) async fn deploy(
    State(admin): Shared,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    let mut log = RequestLog::new(request.headers(), request.extensions());
    let (parts, body) = request.into_parts();
    let start = async {
        let context = ChangeContext::new(&admin, &parts.headers, query.as_deref(), &mut log)?;
        media_type(&parts.headers, &["application/wasm", "application/octet-stream"])?;
        if body.is_end_stream() {
            return Err(ApiError::malformed("the body is empty, but must be an artifact"));
        }
        if body.size_hint().lower() > MAX_ARTIFACT_BYTES {
            return Err(too_large());
        }
        let operation = admin.operations.begin()?;
        let guard = FailOnDrop(operation.clone());
        operation.begin_step(DEPLOY_STEPS[0]);
        let file = match receive(&admin, body).await {
            Ok(file) => file,
            Err(error) => {
                operation.end(Err(error.body(log.request_id.as_str())));
                return Err(error);
            }
        };
        let progress = operation.progress();
        let (admin, request_id) = (Arc::clone(&admin), log.request_id.as_str().to_owned());
        // Golden examples run on this thread, so it has the stack that guests may use.
        let stack = admin.control.loader().engines.thread_stack_bytes();
        let thread = std::thread::Builder::new().name("deploy".to_owned()).stack_size(stack);
        let work = move || {
            let _guard = guard;
            let outcome = run(&admin, file, &context, &operation);
            operation.end(outcome.map_err(|error| error.body(&request_id)));
        };
        thread.spawn(work).map_err(|_error| ApiError::internal())?;
        Ok(progress)
    };
    let outcome = start.await;
    let response = match outcome {
        Ok(progress) => {
            let prefix = forwarded::prefix(&parts.headers).unwrap_or_default();
            let location = HeaderValue::from_str(&format!(
                "{prefix}/admin/v1/operations/{}",
                progress.operation
            ));
            let mut response = (StatusCode::ACCEPTED, Json(progress)).into_response();
            response.headers_mut().extend(location.ok().map(|location| (LOCATION, location)));
            response
        }
        Err(error) => error.into_response(),
    };
    with_log(response, log)
}

/// Receive the body into a file of the state folder.
async fn receive(admin: &Admin, mut body: Body) -> Result<NamedTempFile, ApiError> {
    let file = admin.control.loader().store.receive_artifact()?;
    let (chunks, receiver) = mpsc::channel(QUEUED_CHUNKS);
    // A slow disk must not block this thread, which serves other requests.
    let writing = tokio::task::spawn_blocking(move || write(file, receiver));
    let mut length = 0;
    let mut stopping = admin.stopping.clone();
    let latest = Instant::now() + RECEIVE_TIME;
    let received = loop {
        let deadline = latest.min(Instant::now() + admin.body_time);
        let frame = tokio::select! {
            frame = tokio::time::timeout_at(deadline, body.frame()) => frame,
            Ok(_) = stopping.wait_for(|stopping| *stopping) => break Err(ApiError::stopping()),
        };
        let frame = match frame {
            Err(_elapsed) => {
                let message = "the artifact did not come in time";
                break Err(ApiError::new(ErrorCode::RequestTimeout, message));
            }
            Ok(None) => break Ok(()),
            Ok(Some(Err(_))) => break Err(ApiError::malformed("the artifact was cut off")),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        length += data.len() as u64;
        if length > MAX_ARTIFACT_BYTES {
            break Err(too_large());
        }
        // The receiver is dropped if writing failed, which is reported below.
        if chunks.send(data).await.is_err() {
            break Ok(());
        }
    };
    drop(chunks);
    let written = writing.await.map_err(|_panic| ApiError::internal())??;
    received.map(|()| written)
}

fn too_large() -> ApiError {
    let message = format!("an artifact has at most {MAX_ARTIFACT_BYTES} bytes");
    ApiError::new(ErrorCode::PayloadTooLarge, message)
}

fn write(
    mut file: NamedTempFile,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<NamedTempFile, StoreError> {
    while let Some(chunk) = chunks.blocking_recv() {
        let written =
            durable::failpoint(FileOperation::Write).and_then(|()| file.write_all(&chunk));
        written.map_err(StoreError::new("cannot receive an artifact"))?;
    }
    Ok(file)
}

/// Verify and deploy the received artifact.
fn run(
    admin: &Admin,
    file: NamedTempFile,
    context: &ChangeContext,
    operation: &OperationHandle,
) -> Result<Deployment, ApiError> {
    let length =
        file.as_file().metadata().map_err(StoreError::new("cannot receive an artifact"))?.len();
    // Artifacts that do not fit into memory beside the others wait on the disk.
    let _permit = admin.artifact_memory.acquire(length);
    operation.begin_step("verify");
    let artifact = Artifact::open(file.path()).map_err(ControlError::from)?;
    let ask = context.ask(&("deploy", artifact.digest()));
    if !ask.dry_run {
        admin.control.loader().store.keep_received(file, artifact.digest())?;
    }
    let promotion = match context.query.promote {
        Some(true) => Promotion::Yes,
        Some(false) => Promotion::No,
        None => Promotion::IfFirst,
    };
    let begin_step = |step| operation.begin_step(step);
    match admin.control.deploy(artifact, promotion, &ask, &begin_step)? {
        ChangeOutcome::Made(changed) => Deployment::new(&changed).ok_or_else(ApiError::internal),
        ChangeOutcome::Replayed(text) => Ok(Deployment { replayed: true, ..stored(&text)? }),
    }
}
