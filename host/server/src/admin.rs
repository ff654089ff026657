//! The admin API: operators and their tools change what is served, and see what was changed.
//!
//! It has its own listener and its own scope of keys, so that it can be kept off the network of the
//! clients. Every change accepts an idempotency key, an expected revision and a dry run, and is recorded
//! in the history. A deployment, which takes long, is an operation that is started and polled.

mod artifact_memory;
mod deploy;
mod keys;
mod log;
mod openapi;
mod operations;
mod status;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use semver::Version;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use self::artifact_memory::ArtifactMemory;
pub use self::openapi::document as openapi;
use self::operations::Operations;
use crate::api::change::{
    CanaryRequest, ChangeQuery, EmptyRequest, ModelChange, PromoteRequest, RollbackRequest,
    ShadowRequest, WithRequestId, parse_stored,
};
use crate::config::MetricsListener;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::idempotency::{self, REPLAYED_HEADER};
use crate::edge::request_log::RequestLog;
use crate::edge::{
    Edge, access, admin_middleware, docs, media_type, metrics_at, query, target, with_middleware,
};
use guesthouse_control::control::{ChangeOptions, ChangeOutcome, Control};
use guesthouse_control::keys::Caller;
use guesthouse_control::ledger::{self, Author};
use guesthouse_control::rollout::{Operation, ShadowShare, Share};
use guesthouse_control::router::RouteError;
use guesthouse_control::shadow::Shadows;
use guesthouse_model::ModelName;

/// The largest body, in bytes, except for artifacts: a version and two words.
const MAX_BODY: usize = 16 << 10;

/// The longest reason of a change, in bytes.
const MAX_REASON: usize = 1024;

/// The state that the handlers share.
pub struct Admin {
    control: Arc<Control>,
    shadows: Arc<Shadows>,
    operations: Operations,
    artifact_memory: ArtifactMemory,
    /// How long a body may take, and how long an artifact may make no progress while it is received.
    body_time: Duration,
    /// Becomes true when the server stops. Requests that wait for progress then return at once.
    stopping: watch::Receiver<bool>,
}

type Shared = State<Arc<Admin>>;

impl Admin {
    /// The admin API of a server, for keys with the scope `admin`.
    pub fn new(
        control: Arc<Control>,
        shadows: Arc<Shadows>,
        body_time: Duration,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let (operations, artifact_memory) = (Operations::default(), ArtifactMemory::default());
        Self { control, shadows, operations, artifact_memory, body_time, stopping }
    }

    /// Authenticate the request, which needs a key with the scope `admin`.
    fn authorize(&self, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
        access::authenticate_admin(self.control.keys(), headers)
    }
}

/// The endpoints of the admin listener.
pub fn endpoints(admin: Arc<Admin>, edge: &Arc<Edge>) -> Router {
    let model = "/admin/v1/models/{model}";
    let endpoints = Router::new()
        .route("/admin/v1/status", get(status::status))
        .route("/admin/v1/history", get(status::history))
        .route("/admin/v1/log", get(log::show).put(log::set))
        .route("/admin/v1/deploy", post(deploy::deploy))
        .route("/admin/v1/keys", get(keys::list).post(keys::create))
        .route("/admin/v1/keys/{id}", delete(keys::revoke))
        .route("/admin/v1/operations/{operation}", get(operations::operation))
        .route(model, get(status::model))
        .route(&format!("{model}/resolve"), get(status::resolve))
        .route(&format!("{model}/promote"), post(promote))
        .route(&format!("{model}/canary"), post(canary))
        .route(&format!("{model}/shadow"), get(status::shadow).post(set_shadow))
        .route(&format!("{model}/rollback"), post(rollback))
        .route(&format!("{model}/versions/{{version}}"), delete(undeploy))
        .route("/openapi.json", get(openapi::show))
        .merge(docs::endpoints());
    let endpoints = endpoints.merge(metrics_at(MetricsListener::Admin, edge));
    with_middleware(endpoints, admin_middleware(edge, MAX_BODY)).with_state(admin)
}

/// The part of a change that does not depend on what is changed: who, on which conditions, and the
/// idempotency key.
struct ChangeContext {
    actor: String,
    query: ChangeQuery,
    idempotency_key: Option<String>,
}

impl ChangeContext {
    /// Authenticate the request and parse its query and headers.
    fn new(
        admin: &Admin,
        headers: &HeaderMap,
        query: Option<&str>,
        log: &mut RequestLog,
    ) -> Result<Self, ApiError> {
        let actor = admin.authorize(headers)?.name().to_owned();
        log.caller = Some(actor.clone());
        let query: ChangeQuery = query::parse(query)?;
        if query.reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON) {
            return Err(ApiError::malformed(format!("the reason is over {MAX_REASON} bytes")));
        }
        let idempotency_key = idempotency::key_from_headers(headers)?;
        Ok(Self { actor, query, idempotency_key })
    }

    /// The conditions for [`Control`]. `change` distinguishes the change from others with the same
    /// idempotency key, together with the query.
    fn ask(&self, change: &impl Serialize) -> ChangeOptions {
        let ChangeQuery { expected_revision, dry_run, reason, .. } = &self.query;
        let request = self
            .idempotency_key
            .as_ref()
            .map(|key| ledger::IdempotentRequest::new(&self.actor, key, &(change, &self.query)));
        ChangeOptions {
            author: Author { actor: self.actor.clone(), reason: reason.clone() },
            expected_revision: *expected_revision,
            dry_run: *dry_run,
            // A dry run has no effect that could be repeated.
            request: request.filter(|_| !dry_run),
        }
    }
}

async fn promote(
    admin: Shared,
    model: Path<String>,
    query: RawQuery,
    request: Request,
) -> Response {
    let operation = |body: PromoteRequest| {
        Ok(Operation::Promote { version: body.version, supersede: body.supersede })
    };
    change(admin, model, query, request, operation).await
}

async fn canary(admin: Shared, model: Path<String>, query: RawQuery, request: Request) -> Response {
    let operation = |body: CanaryRequest| {
        let CanaryRequest { version, weight, supersede } = body;
        Ok(Operation::Canary { version, weight: weight.parts(), supersede })
    };
    change(admin, model, query, request, operation).await
}

async fn set_shadow(
    admin: Shared,
    model: Path<String>,
    query: RawQuery,
    request: Request,
) -> Response {
    let operation = |body: ShadowRequest| match (body.version, body.share) {
        (None, None) => Ok(Operation::Shadow(None)),
        (None, Some(_)) => Err(ApiError::malformed("a share needs a version")),
        (Some(version), share) => {
            let share = share.unwrap_or(Share::ALL).parts();
            Ok(Operation::Shadow(Some(ShadowShare { version, share })))
        }
    };
    change(admin, model, query, request, operation).await
}

async fn rollback(
    admin: Shared,
    model: Path<String>,
    query: RawQuery,
    request: Request,
) -> Response {
    let operation = |body: RollbackRequest| Ok(Operation::Rollback { to: body.to });
    change(admin, model, query, request, operation).await
}

async fn undeploy(
    admin: Shared,
    Path((model, version)): Path<(String, String)>,
    query: RawQuery,
    request: Request,
) -> Response {
    let operation = |_: EmptyRequest| {
        let version = version.parse::<Version>();
        let version = version.map_err(|_error| ApiError::malformed("the version is malformed"))?;
        Ok(Operation::Undeploy { version })
    };
    change(admin, Path(model), query, request, operation).await
}

/// Make the change that the request describes.
async fn change<T: DeserializeOwned>(
    State(admin): Shared,
    Path(model): Path<String>,
    RawQuery(query): RawQuery,
    request: Request,
    operation: impl FnOnce(T) -> Result<Operation, ApiError>,
) -> Response {
    let mut log = RequestLog::new(request.headers(), request.extensions());
    let (parts, body) = request.into_parts();
    let outcome = async {
        let context = ChangeContext::new(&admin, &parts.headers, query.as_deref(), &mut log)?;
        if context.query.promote.is_some() {
            return Err(ApiError::malformed("`promote` is for deployments"));
        }
        let operation = operation(read_json(&parts.headers, body, &admin).await?)?;
        let name = model_name(&model)?;
        let ask = context.ask(&(name.as_str(), &operation));
        let begins_shadow = matches!(operation, Operation::Shadow(Some(_)));
        let shadowed = name.clone();
        let control = Arc::clone(&admin.control);
        // Waits for the disk, and perhaps for a version to be loaded. It continues if the client leaves.
        let work = tokio::task::spawn_blocking(move || control.change(&name, &operation, &ask));
        let answer = work.await.map_err(|_panic| ApiError::internal())??;
        if begins_shadow
            && matches!(&answer, ChangeOutcome::Made(changed) if changed.changed && !changed.dry_run)
        {
            // The results of the previous shadow are not about this one.
            admin.shadows.reset(&shadowed);
        }
        match answer {
            ChangeOutcome::Made(changed) => Ok((ModelChange::from(&*changed), false)),
            ChangeOutcome::Replayed(text) => Ok((stored(&text)?, true)),
        }
    };
    let outcome = outcome.await;
    let response = match outcome {
        Ok((body, is_replayed)) => change_response(body, is_replayed, log.request_id.as_str()),
        Err(error) => error.into_response(),
    };
    with_log(response, log)
}

fn with_log(mut response: Response, log: RequestLog) -> Response {
    response.extensions_mut().insert(log);
    response
}

/// The response to a change, which may have been made by an earlier request.
fn change_response<T: Serialize>(body: T, is_replayed: bool, request_id: &str) -> Response {
    let body = WithRequestId { body, request_id: request_id.to_owned() };
    let mut response = Json(body).into_response();
    if is_replayed {
        response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    }
    response
}

/// The outcome that the ledger keeps of an earlier request.
fn stored<T: DeserializeOwned>(text: &str) -> Result<T, ApiError> {
    parse_stored(text).ok_or_else(|| {
        tracing::error!("the ledger keeps an outcome that cannot be parsed");
        ApiError::internal()
    })
}

/// Read the body as JSON, bounded in size and time. An empty body is an empty object.
async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    admin: &Admin,
) -> Result<T, ApiError> {
    media_type(headers, &["application/json"])?;
    let too_large =
        |_| ApiError::new(ErrorCode::PayloadTooLarge, format!("the body is over {MAX_BODY} bytes"));
    let too_slow = |_| ApiError::new(ErrorCode::RequestTimeout, "the body did not arrive in time");
    let mut stopping = admin.stopping.clone();
    let bytes = tokio::select! {
        bytes = tokio::time::timeout(admin.body_time, to_bytes(body, MAX_BODY)) => bytes,
        // An error means that the sender was dropped, which is a stop as well.
        _ = stopping.wait_for(|stopping| *stopping) => return Err(ApiError::stopping()),
    };
    let bytes = bytes.map_err(too_slow)?.map_err(too_large)?;
    let bytes = if bytes.is_empty() { &b"{}"[..] } else { &bytes };
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::malformed(format!("the body is malformed: {error}")))
}

/// The model of a path. A malformed name is the name of no model.
fn model_name(text: &str) -> Result<ModelName, ApiError> {
    target::target(text, None).map(|(model, _)| model)
}

/// The error for a model that does not exist.
fn unknown_model() -> ApiError {
    RouteError::UnknownModel.into()
}
