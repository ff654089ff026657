//! What is served: models, versions, signatures. Needs a key, because names say something too.

use std::time::Instant;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::predict::target;
use super::{Shared, query};
use crate::model::ModelName;
use crate::preinit::Start;
use crate::registry::{ModelVersions, Snapshot, VersionState};
use crate::rollout::WHOLE;
use crate::router::{self, Draw, RouteError};

/// `GET /models`
pub(super) async fn models(
    State(edge): Shared,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let caller = edge.authorize_for_some(&headers)?;
    let snapshot = edge.registry.snapshot();
    let models = snapshot.models.iter().filter(|(name, _)| caller.scopes().predicts(name));
    let models: Value = models.map(|(name, versions)| model_state(name, versions)).collect();
    Ok(Json(json!({ "models": models })))
}

/// `GET /models/{model}`
pub(super) async fn model(
    State(edge): Shared,
    Path(model): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let caller = edge.authorize(&headers)?;
    let (model, _) = target(&model, None)?;
    edge.permit(&caller, &model)?;
    let snapshot = edge.registry.snapshot();
    let versions = snapshot.models.get(&model).ok_or(RouteError::UnknownModel)?;
    Ok(Json(model_state(&model, versions)))
}

/// `GET /models/{model}/versions/{selector}`
pub(super) async fn version(
    State(edge): Shared,
    Path((model, selector)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let caller = edge.authorize(&headers)?;
    let (model, selector) = target(&model, Some(&selector))?;
    edge.permit(&caller, &model)?;
    let found = router::explain(&edge.registry.snapshot(), &model, &selector, Instant::now())?;
    // The one that gets most, if there are several.
    let (version, ..) = found.into_iter().next().ok_or(RouteError::NotReady)?;
    let (id, report) = (version.id(), version.report());
    Ok(Json(json!({
        "model": id.name.as_str(),
        "version": id.version.to_string(),
        "digest": version.digest().to_string(),
        "snapshot": report.start == Start::Snapshot,
        "metadata": version.metadata(),
        "signature": version.signature(),
    })))
}

/// What a selector is resolved for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    selector: Option<String>,
    key: Option<String>,
}

/// `GET /models/{model}/resolve?selector=…&key=…`
pub(super) async fn resolve(
    State(edge): Shared,
    Path(model): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let caller = edge.authorize(&headers)?;
    edge.permit(&caller, &target(&model, None)?.0)?;
    resolution(&edge.registry.snapshot(), &model, query.as_deref())
}

/// Which versions answer requests with a selector, and which one those of a caller with this key.
pub(crate) fn resolution(
    snapshot: &Snapshot,
    model: &str,
    query: Option<&str>,
) -> Result<Json<Value>, ApiError> {
    let question: Question = query::parse(query)?;
    let (model, selector) = target(model, question.selector.as_deref())?;
    let now = Instant::now();
    let matches = router::explain(snapshot, &model, &selector, now)?;
    let rows = matches.iter().map(|(version, reason, share)| {
        let version = version.id().version.to_string();
        json!({"version": version, "reason": reason.as_str(), "share": share})
    });
    let mut answer = json!({
        "model": model.as_str(),
        "selector": question.selector,
        "matches": rows.collect::<Value>(),
    });
    let place = question.key.map(|key| router::bucket(&model, key.as_bytes()));
    if place.is_some() || matches.len() == 1 {
        let draw = Draw { place: place.unwrap_or(0), shadow: WHOLE, caller: None };
        let route = router::route(snapshot, &model, &selector, draw, now)?;
        answer["version"] = json!(route.version.id().version.to_string());
        answer["reason"] = json!(route.reason.as_str());
        answer["place"] = json!(place);
    }
    Ok(Json(answer))
}

/// Every version of a model with its state.
fn model_state(name: &ModelName, model: &ModelVersions) -> Value {
    let routing = &model.routing;
    json!({
        "model": name.as_str(),
        "stable": routing.stable,
        "candidates": routing.candidates,
        "versions": version_states(model),
    })
}

fn version_states(model: &ModelVersions) -> Value {
    let versions = model.versions.iter().map(|(version, state)| {
        let mut row = json!({"version": version.to_string(), "state": state.as_str()});
        match state {
            VersionState::Failed(failure) => row["failed_step"] = json!(failure.step),
            VersionState::Ready(version) | VersionState::Parked(version) => {
                row["suspended"] = json!(!version.breaker().allows(Instant::now()));
            }
            VersionState::Loading | VersionState::Draining | VersionState::Retired => {}
        }
        row
    });
    versions.collect()
}
