//! The admin API: operators and their tools change what is served, and see what was changed.
//!
//! It has a listener and keys of its own, so that it can be kept off the network that callers are on.
//! Every change takes an idempotency key and an expected revision, can be tried without effect, and is
//! in the history. Long work answers at once and is asked about.

mod deploy;
mod keys;
mod log;
mod operations;
mod room;
mod show;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use semver::Version;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use operations::Operations;

use crate::config::MetricsListener;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::idempotency::{self, REPLAYED_HEADER};
use crate::edge::observe::{Account, Around};
use crate::edge::{
    Edge, access, media_type, metrics_at, observed, predict, query, refused as error,
};
use guesthouse_control::control::{ChangeOptions, ChangeOutcome, Control};
use guesthouse_control::keys::Caller;
use guesthouse_control::ledger::{self, Author};
use guesthouse_control::rollout::{Operation, ShadowShare, Share};
use guesthouse_control::router::RouteError;
use guesthouse_control::shadow::Shadows;
use guesthouse_model::ModelName;

/// The largest body but for artifacts, in bytes: a version and two words.
const MAX_BODY: usize = 16 << 10;

/// The longest reason or idempotency key, in bytes.
const MAX_WORDS: usize = 1024;

/// Everything that operators' requests need.
pub struct Admin {
    control: Arc<Control>,
    shadows: Arc<Shadows>,
    operations: Operations,
    /// For the artifacts that are in memory.
    room: room::Room,
    /// How long an artifact may be silent while it is received, and a body may take.
    patience: Duration,
    /// Becomes true when the server stops: who waits for news is told what is known.
    stopping: watch::Receiver<bool>,
}

type Shared = State<Arc<Admin>>;

impl Admin {
    /// For who has a key with the scope `admin`.
    pub fn new(
        control: Arc<Control>,
        shadows: Arc<Shadows>,
        patience: Duration,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let (operations, room) = (Operations::default(), room::Room::default());
        Self { control, shadows, operations, room, patience, stopping }
    }

    /// Who asks.
    fn authorize(&self, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
        access::administrator(self.control.keys(), headers)
    }
}

/// The endpoints.
pub fn endpoints(admin: Arc<Admin>, edge: &Arc<Edge>) -> Router {
    let model = "/admin/v1/models/{model}";
    let endpoints = Router::new()
        .route("/admin/v1/status", get(show::status))
        .route("/admin/v1/history", get(show::history))
        .route("/admin/v1/log", get(log::show).put(log::set))
        .route("/admin/v1/deploy", post(deploy::deploy))
        .route("/admin/v1/keys", get(keys::list).post(keys::create))
        .route("/admin/v1/keys/{id}", delete(keys::revoke))
        .route("/admin/v1/operations/{operation}", get(operations::operation))
        .route(model, get(show::model))
        .route(&format!("{model}/resolve"), get(show::resolve))
        .route(&format!("{model}/promote"), post(promote))
        .route(&format!("{model}/canary"), post(canary))
        .route(&format!("{model}/shadow"), get(show::shadow).post(set_shadow))
        .route(&format!("{model}/rollback"), post(rollback))
        .route(&format!("{model}/versions/{{version}}"), delete(undeploy));
    let endpoints = endpoints.merge(metrics_at(MetricsListener::Admin, edge));
    observed(endpoints, Around { largest: MAX_BODY, ..edge.around_admin() }).with_state(admin)
}

/// What every change can be asked with.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Conditions {
    expected_revision: Option<u64>,
    #[serde(default)]
    dry_run: bool,
    reason: Option<String>,
    /// Of deployments only.
    promote: Option<bool>,
}

/// A change on its way from a request to [`Control`].
struct Asked {
    actor: String,
    conditions: Conditions,
    key: Option<String>,
}

impl Asked {
    fn of(
        admin: &Admin,
        headers: &HeaderMap,
        query: Option<&str>,
        account: &mut Account,
    ) -> Result<Self, ApiError> {
        let actor = admin.authorize(headers)?.name().to_owned();
        account.caller = Some(actor.clone());
        let conditions: Conditions = query::parse(query)?;
        if conditions.reason.as_ref().is_some_and(|reason| reason.len() > MAX_WORDS) {
            return Err(ApiError::malformed(format!("the reason is over {MAX_WORDS} bytes")));
        }
        let key = idempotency::key_of(headers)?;
        Ok(Self { actor, conditions, key })
    }

    /// `change` is everything that distinguishes this change from others under the same
    /// idempotency key, besides the conditions.
    fn ask(&self, change: &impl Serialize) -> ChangeOptions {
        let Conditions { expected_revision, dry_run, reason, .. } = &self.conditions;
        let request = self.key.as_ref().map(|key| {
            ledger::IdempotentRequest::new(&self.actor, key, &(change, &self.conditions))
        });
        ChangeOptions {
            author: Author { actor: self.actor.clone(), reason: reason.clone() },
            expected_revision: *expected_revision,
            dry_run: *dry_run,
            // A trial has no effect that could be repeated.
            request: request.filter(|_| !dry_run),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PromoteBody {
    version: Version,
    #[serde(default)]
    supersede: bool,
}

async fn promote(
    admin: Shared,
    model: Path<String>,
    query: RawQuery,
    request: Request,
) -> Response {
    let operation = |body: PromoteBody| {
        Ok(Operation::Promote { version: body.version, supersede: body.supersede })
    };
    change(admin, model, query, request, operation).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CanaryBody {
    version: Version,
    weight: Share,
    #[serde(default)]
    supersede: bool,
}

async fn canary(admin: Shared, model: Path<String>, query: RawQuery, request: Request) -> Response {
    let operation = |body: CanaryBody| {
        let CanaryBody { version, weight, supersede } = body;
        Ok(Operation::Canary { version, weight: weight.parts(), supersede })
    };
    change(admin, model, query, request, operation).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShadowBody {
    version: Option<Version>,
    share: Option<Share>,
}

async fn set_shadow(
    admin: Shared,
    model: Path<String>,
    query: RawQuery,
    request: Request,
) -> Response {
    let operation = |body: ShadowBody| match (body.version, body.share) {
        (None, None) => Ok(Operation::Shadow(None)),
        (None, Some(_)) => Err(ApiError::malformed("a share needs a version")),
        (Some(version), share) => {
            let share = share.unwrap_or(Share::ALL).parts();
            Ok(Operation::Shadow(Some(ShadowShare { version, share })))
        }
    };
    change(admin, model, query, request, operation).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackBody {
    to: Option<Version>,
}

async fn rollback(
    admin: Shared,
    model: Path<String>,
    query: RawQuery,
    request: Request,
) -> Response {
    let operation = |body: RollbackBody| Ok(Operation::Rollback { to: body.to });
    change(admin, model, query, request, operation).await
}

async fn undeploy(
    admin: Shared,
    Path((model, version)): Path<(String, String)>,
    query: RawQuery,
    request: Request,
) -> Response {
    let operation = |_: Nothing| {
        let version = version.parse::<Version>();
        let version = version.map_err(|_error| ApiError::malformed("the version is malformed"))?;
        Ok(Operation::Undeploy { version })
    };
    change(admin, Path(model), query, request, operation).await
}

/// A body that says nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// ChangeOptions for the change that the request describes.
async fn change<T: DeserializeOwned>(
    State(admin): Shared,
    Path(model): Path<String>,
    RawQuery(query): RawQuery,
    request: Request,
    operation: impl FnOnce(T) -> Result<Operation, ApiError>,
) -> Response {
    let mut account = Account::of(&request);
    let (parts, body) = request.into_parts();
    let make = async {
        let asked = Asked::of(&admin, &parts.headers, query.as_deref(), &mut account)?;
        if asked.conditions.promote.is_some() {
            return Err(ApiError::malformed("`promote` is for deployments"));
        }
        let operation = operation(read_json(&parts.headers, body, &admin).await?)?;
        let name = model_name(&model)?;
        let ask = asked.ask(&(name.as_str(), &operation));
        let begins_shadow = matches!(operation, Operation::Shadow(Some(_)));
        let shadowed = name.clone();
        let control = Arc::clone(&admin.control);
        // Waits for the disk, and perhaps for a version to be loaded; goes on if the caller leaves.
        let work = tokio::task::spawn_blocking(move || control.change(&name, &operation, &ask));
        let answer = work.await.map_err(|_panic| error::broken())??;
        if begins_shadow
            && matches!(&answer, ChangeOutcome::Made(changed) if changed.changed && !changed.dry_run)
        {
            // What another shadow has found is not about this one.
            admin.shadows.reset(&shadowed);
        }
        Ok::<_, ApiError>(answer)
    };
    let outcome = make.await;
    let response = match outcome {
        Ok(answer) => answered(answer, account.request_id.as_str()),
        Err(error) => error.into_response(),
    };
    with_account(response, account)
}

fn with_account(mut response: Response, account: Account) -> Response {
    response.extensions_mut().insert(account);
    response
}

/// The answer to a change, now or as it was given before.
fn answered(answer: ChangeOutcome, request_id: &str) -> Response {
    let (mut value, is_replayed) = answer_value(answer);
    value["request_id"] = request_id.into();
    let mut response = Json(value).into_response();
    if is_replayed {
        response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    }
    response
}

/// The answer in JSON, and whether it was given before.
fn answer_value(answer: ChangeOutcome) -> (Value, bool) {
    match answer {
        ChangeOutcome::Made(changed) => (serde_json::json!(changed), false),
        ChangeOutcome::Replayed(text) => (serde_json::from_str(&text).unwrap_or_default(), true),
    }
}

async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    admin: &Admin,
) -> Result<T, ApiError> {
    media_type(headers, &["application/json"])?;
    let too_large =
        |_| ApiError::new(ErrorCode::PayloadTooLarge, format!("the body is over {MAX_BODY} bytes"));
    let too_slow = |_| ApiError::new(ErrorCode::RequestTimeout, "the body did not come in time");
    let mut stopping = admin.stopping.clone();
    let bytes = tokio::select! {
        bytes = tokio::time::timeout(admin.patience, to_bytes(body, MAX_BODY)) => bytes,
        // An error means that the sender is gone, which is a stop as well.
        _ = stopping.wait_for(|stopping| *stopping) => return Err(ApiError::going_down()),
    };
    let bytes = bytes.map_err(too_slow)?.map_err(too_large)?;
    let bytes = if bytes.is_empty() { &b"{}"[..] } else { &bytes };
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::malformed(format!("the body is malformed: {error}")))
}

/// What is not a name is the name of nothing.
fn model_name(text: &str) -> Result<ModelName, ApiError> {
    predict::target(text, None).map(|(model, _)| model)
}

/// A model that is not there.
fn unknown_model() -> ApiError {
    RouteError::UnknownModel.into()
}
