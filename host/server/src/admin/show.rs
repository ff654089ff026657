//! What operators see: what is served, what was changed, what a shadow found.

use std::time::Instant;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, Shared, model_name, unknown_model};
use crate::edge::catalogue;
use crate::edge::error::ApiError;
use crate::edge::query;
use guesthouse_control::registry::{ModelVersions, VersionState};
use guesthouse_control::rollout::ModelState;
use guesthouse_model::ModelName;

/// The most entries of the history that are told at once.
const MAX_ENTRIES: usize = 1000;

/// `GET /admin/v1/status`
pub(super) async fn status(
    State(admin): Shared,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    admin.authorize(&headers)?;
    let render = move || Json(all_models(&admin));
    // It grows with the number of models.
    tokio::task::spawn_blocking(render).await.map_err(|_panic| ApiError::internal())
}

fn all_models(admin: &Admin) -> Value {
    let registry = admin.control.registry();
    // In this order, a revision is never newer than what is shown beside it.
    let (states, snapshot) = (registry.states(), registry.snapshot());
    let models = snapshot.models.iter().map(|(name, versions)| {
        of_model(name, versions, &states.get(name).cloned().unwrap_or_default())
    });
    let models: Value = models.collect();
    let head = admin.control.head();
    let (revision, audit_head) = &*head;
    json!({
        "revision": revision,
        "audit_head": audit_head,
        "loading": snapshot.loading,
        "models": models,
    })
}

/// `GET /admin/v1/models/{model}`
pub(super) async fn model(
    State(admin): Shared,
    Path(model): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    admin.authorize(&headers)?;
    let (name, registry) = (model_name(&model)?, admin.control.registry());
    let (state, snapshot) = (registry.state(&name), registry.snapshot());
    let versions = snapshot.models.get(&name).ok_or_else(unknown_model)?;
    Ok(Json(of_model(&name, versions, &state)))
}

fn of_model(name: &ModelName, model: &ModelVersions, state: &ModelState) -> Value {
    let now = Instant::now();
    let versions = model.versions.iter().map(|(version, shown)| {
        let digest = state.versions.get(version).map(|deployed| deployed.digest);
        let suspended = shown.servable().is_some_and(|version| !version.breaker().allows(now));
        let failure = match shown {
            VersionState::Failed(failure) => Some(failure),
            _ => None,
        };
        json!({
            "version": version,
            "digest": digest,
            "state": shown.as_str(),
            "suspended": suspended,
            "failed_step": failure.map(|failure| failure.step),
            "reason": failure.map(|failure| &*failure.reason),
            "retry_in_seconds": failure.and_then(|failure| failure.retry_at).map(in_seconds),
        })
    });
    let versions: Value = versions.collect();
    let routing = &model.routing;
    json!({
        "model": name,
        "revision": state.revision,
        "stable": routing.stable,
        "candidates": routing.candidates,
        "shadow": routing.shadow,
        "promoted": routing.promoted,
        "versions": versions,
    })
}

/// How far away it is, rounded up; 0 if it is past.
fn in_seconds(time: Instant) -> u64 {
    time.saturating_duration_since(Instant::now())
        .as_millis()
        .div_ceil(1000)
        .try_into()
        .unwrap_or(u64::MAX)
}

/// `GET /admin/v1/models/{model}/resolve`
pub(super) async fn resolve(
    State(admin): Shared,
    Path(model): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    admin.authorize(&headers)?;
    catalogue::resolution(&admin.control.registry().snapshot(), &model, query.as_deref())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    model: Option<ModelName>,
    limit: Option<usize>,
    before: Option<u64>,
}

/// `GET /admin/v1/history`
pub(super) async fn history(
    State(admin): Shared,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    admin.authorize(&headers)?;
    let Which { model, limit, before } = query::parse(query.as_deref())?;
    let limit = limit.unwrap_or(50).min(MAX_ENTRIES);
    let control = std::sync::Arc::clone(&admin.control);
    let read = move || control.ledger().history(model.as_ref(), before, limit);
    let entries =
        tokio::task::spawn_blocking(read).await.map_err(|_panic| ApiError::internal())??;
    Ok(Json(json!({ "entries": entries })))
}

/// `GET /admin/v1/models/{model}/shadow`
pub(super) async fn shadow(
    State(admin): Shared,
    Path(model): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    admin.authorize(&headers)?;
    let name = model_name(&model)?;
    let snapshot = admin.control.registry().snapshot();
    let versions = snapshot.models.get(&name).ok_or_else(unknown_model)?;
    let comparisons = admin.shadows.report(&name).comparisons;
    Ok(Json(json!({
        "model": name,
        "shadow": versions.routing.shadow,
        "comparisons": comparisons,
    })))
}
