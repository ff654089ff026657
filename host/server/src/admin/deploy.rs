//! `POST /admin/v1/deploy`: an artifact is received into the store, then deployed while the caller asks
//! how far it is.

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

use super::operations::{EndIfLost, Working};
use super::{Admin, Asked, Shared, answer_value, with_log};
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::request_log::RequestLog;
use crate::edge::{forwarded, media_type};
use guesthouse_artifact::{Artifact, MAX_ARTIFACT_BYTES};
use guesthouse_control::control::{ControlError, DEPLOY_STEPS};
use guesthouse_control::rollout::Promotion;
use guesthouse_runtime::durable::{self, FileOperation};
use guesthouse_runtime::store::StoreError;

/// How long an artifact may take to arrive, however steadily it does: 1 GiB over 2.5 Mbit/s. It holds
/// the turn of an operation, and one that drips must not hold it for ever.
const RECEIVE_TIME: Duration = Duration::from_secs(3600);

/// Pieces of an artifact that wait to be written.
const PIECES: usize = 16;

pub(super) async fn deploy(
    State(admin): Shared,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    let mut log = RequestLog::new(request.headers(), request.extensions());
    let (parts, body) = request.into_parts();
    let start = async {
        let asked = Asked::of(&admin, &parts.headers, query.as_deref(), &mut log)?;
        media_type(&parts.headers, &["application/wasm", "application/octet-stream"])?;
        if body.size_hint().lower() > MAX_ARTIFACT_BYTES {
            return Err(too_large());
        }
        let working = Arc::new(admin.operations.begin()?);
        let end = EndIfLost(Arc::clone(&working));
        working.step(DEPLOY_STEPS[0]);
        let file = match receive(&admin, body).await {
            Ok(file) => file,
            Err(error) => {
                working.end(Err(error.body(log.request_id.as_str())));
                return Err(error);
            }
        };
        let progress = working.progress();
        let (admin, request_id) = (Arc::clone(&admin), log.request_id.as_str().to_owned());
        // On a thread with the stack that guests may use: golden examples run on it.
        let stack = admin.control.loader().engines.thread_stack_bytes();
        let thread = std::thread::Builder::new().name("deploy".to_owned()).stack_size(stack);
        let work = move || {
            let _end = end;
            let outcome = run(&admin, file, &asked, &working);
            working.end(match outcome {
                Ok(result) => Ok(result),
                Err(error) => Err(ApiError::from(error).body(&request_id)),
            });
        };
        thread.spawn(work).map_err(|_error| ApiError::internal())?;
        Ok(progress)
    };
    let outcome = start.await;
    let response = match outcome {
        Ok(progress) => {
            let prefix = forwarded::prefix(&parts.headers).unwrap_or_default();
            let location = HeaderValue::from_str(&format!("{prefix}{}", progress.location()));
            let mut response = (StatusCode::ACCEPTED, Json(progress)).into_response();
            response.headers_mut().extend(location.ok().map(|location| (LOCATION, location)));
            response
        }
        Err(error) => error.into_response(),
    };
    with_log(response, log)
}

/// The body in a file of the state folder.
async fn receive(admin: &Admin, mut body: Body) -> Result<NamedTempFile, ApiError> {
    let file = admin.control.loader().store.receive_artifact()?;
    let (pieces, receiver) = mpsc::channel(PIECES);
    // Disks can be slow, and this thread serves others.
    let writing = tokio::task::spawn_blocking(move || write(file, receiver));
    let mut length = 0;
    let mut stopping = admin.stopping.clone();
    let latest = Instant::now() + RECEIVE_TIME;
    let received = loop {
        let patience = latest.min(Instant::now() + admin.patience);
        let frame = tokio::select! {
            frame = tokio::time::timeout_at(patience, body.frame()) => frame,
            Ok(_) = stopping.wait_for(|stopping| *stopping) => break Err(ApiError::going_down()),
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
        // The writer is gone if it failed, which is seen below.
        if pieces.send(data).await.is_err() {
            break Ok(());
        }
    };
    drop(pieces);
    let written = writing.await.map_err(|_panic| ApiError::internal())??;
    received.map(|()| written)
}

fn too_large() -> ApiError {
    let message = format!("an artifact has at most {MAX_ARTIFACT_BYTES} bytes");
    ApiError::new(ErrorCode::PayloadTooLarge, message)
}

fn write(
    mut file: NamedTempFile,
    mut pieces: mpsc::Receiver<Bytes>,
) -> Result<NamedTempFile, StoreError> {
    while let Some(piece) = pieces.blocking_recv() {
        let written =
            durable::failpoint(FileOperation::Write).and_then(|()| file.write_all(&piece));
        written.map_err(StoreError::new("cannot receive an artifact"))?;
    }
    Ok(file)
}

fn run(
    admin: &Admin,
    file: NamedTempFile,
    asked: &Asked,
    working: &Working,
) -> Result<serde_json::Value, ControlError> {
    let length =
        file.as_file().metadata().map_err(StoreError::new("cannot receive an artifact"))?.len();
    // What does not fit into memory beside the others waits on the disk.
    let _place = admin.room.enter(length);
    working.step("verify");
    let artifact = Artifact::open(file.path())?;
    let ask = asked.ask(&("deploy", artifact.digest()));
    if !ask.dry_run {
        admin.control.loader().store.keep_received(file, artifact.digest())?;
    }
    let promotion = match asked.conditions.promote {
        Some(true) => Promotion::Yes,
        Some(false) => Promotion::No,
        None => Promotion::IfFirst,
    };
    let answer = admin.control.deploy(artifact, promotion, &ask, &|step| working.step(step))?;
    let (mut value, is_replayed) = answer_value(answer);
    if is_replayed {
        value["replayed"] = true.into();
    }
    Ok(value)
}
