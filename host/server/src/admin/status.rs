//! What operators see: what is served, what was changed, and what a shadow found.

use std::time::Instant;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;

use super::{Admin, Shared, model_name, unknown_model};
use crate::api::catalogue::Resolution;
use crate::api::change::ShadowReport;
use crate::api::history::{History, HistoryEntry, HistoryQuery};
use crate::api::status::{ArithmeticGrant, ModelStatus, Status, VersionStatus};
use crate::edge::catalogue;
use crate::edge::error::ApiError;
use crate::edge::query;
use guesthouse_control::registry::{ModelVersions, VersionState};
use guesthouse_control::rollout::ModelState;
use guesthouse_model::ModelName;

/// The number of history entries in a response, unless the query sets it.
const DEFAULT_ENTRIES: usize = 50;

/// The most history entries in a response.
const MAX_ENTRIES: usize = 1000;

/// `GET /admin/v1/status`
pub(super) async fn status(
    State(admin): Shared,
    headers: HeaderMap,
) -> Result<Json<Status>, ApiError> {
    admin.authorize(&headers)?;
    let render = move || Json(all_models(&admin));
    // The time grows with the number of models.
    tokio::task::spawn_blocking(render).await.map_err(|_panic| ApiError::internal())
}

fn all_models(admin: &Admin) -> Status {
    let registry = admin.control.registry();
    // In this order, a revision is never newer than the versions beside it.
    let (states, snapshot) = (registry.states(), registry.snapshot());
    let models = snapshot.models.iter().map(|(name, versions)| {
        model_status(name, versions, &states.get(name).cloned().unwrap_or_default())
    });
    let models = models.collect();
    let head = admin.control.head();
    let (revision, audit_head) = &*head;
    Status {
        revision: *revision,
        audit_head: Some(audit_head.clone()),
        loading: snapshot.loading,
        models,
    }
}

/// `GET /admin/v1/models/{model}`
pub(super) async fn model(
    State(admin): Shared,
    Path(model): Path<String>,
    headers: HeaderMap,
) -> Result<Json<ModelStatus>, ApiError> {
    admin.authorize(&headers)?;
    let (name, registry) = (model_name(&model)?, admin.control.registry());
    let (state, snapshot) = (registry.state(&name), registry.snapshot());
    let versions = snapshot.models.get(&name).ok_or_else(unknown_model)?;
    Ok(Json(model_status(&name, versions, &state)))
}

fn model_status(name: &ModelName, model: &ModelVersions, state: &ModelState) -> ModelStatus {
    let now = Instant::now();
    let versions = model.versions.iter().map(|(version, shown)| {
        let failure = match shown {
            VersionState::Failed(failure) => Some(failure),
            _ => None,
        };
        VersionStatus {
            version: version.clone(),
            digest: state.versions.get(version).map(|deployed| deployed.digest),
            state: crate::api::status::VersionState::from(shown).into(),
            suspended: shown.servable().is_some_and(|version| !version.breaker().allows(now)),
            arithmetic: shown
                .servable()
                .map(|version| ArithmeticGrant::from(version.arithmetic()).into()),
            failed_step: failure.map(|failure| failure.step.to_owned()),
            reason: failure.map(|failure| failure.reason.to_string()),
            retry_in_seconds: failure.and_then(|failure| failure.retry_at).map(in_seconds),
        }
    });
    ModelStatus {
        model: name.clone(),
        revision: state.revision,
        routing: model.routing.clone().into(),
        versions: versions.collect(),
    }
}

/// The time until the instant, rounded up; 0 if it is past.
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
) -> Result<Json<Resolution>, ApiError> {
    admin.authorize(&headers)?;
    catalogue::resolution(&admin.control.registry().snapshot(), &model, query.as_deref()).map(Json)
}

/// `GET /admin/v1/history`
pub(super) async fn history(
    State(admin): Shared,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<History>, ApiError> {
    admin.authorize(&headers)?;
    let HistoryQuery { model, limit, before } = query::parse(query.as_deref())?;
    let limit = limit.unwrap_or(DEFAULT_ENTRIES).min(MAX_ENTRIES);
    let control = std::sync::Arc::clone(&admin.control);
    let read = move || control.ledger().history(model.as_ref(), before, limit);
    let entries =
        tokio::task::spawn_blocking(read).await.map_err(|_panic| ApiError::internal())??;
    Ok(Json(History { entries: entries.into_iter().map(HistoryEntry::from).collect() }))
}

/// `GET /admin/v1/models/{model}/shadow`
pub(super) async fn shadow(
    State(admin): Shared,
    Path(model): Path<String>,
    headers: HeaderMap,
) -> Result<Json<ShadowReport>, ApiError> {
    admin.authorize(&headers)?;
    let name = model_name(&model)?;
    let snapshot = admin.control.registry().snapshot();
    let versions = snapshot.models.get(&name).ok_or_else(unknown_model)?;
    let comparisons = admin.shadows.report(&name).comparisons;
    let shadow = versions.routing.shadow.clone().map(Into::into);
    Ok(Json(ShadowReport { model: name, shadow, comparisons }))
}
