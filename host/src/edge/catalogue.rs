//! What is served: models, versions, signatures. Needs a key, because names say something too.

use std::time::Instant;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::Shared;
use super::error::ApiError;
use super::predict::target;
use crate::preinit::Start;
use crate::registry::{ModelVersions, Snapshot, VersionState};
use crate::router::{self, RouteError};

/// `GET /models`
pub(super) async fn models(
    State(edge): Shared,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    edge.authorize(&headers)?;
    Ok(Json(json!({"models": states(&edge.registry.snapshot())})))
}

/// `GET /models/{model}`
pub(super) async fn model(
    State(edge): Shared,
    Path(model): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    edge.authorize(&headers)?;
    let (model, _) = target(&model, None)?;
    let snapshot = edge.registry.snapshot();
    let versions = snapshot.models.get(&model).ok_or(RouteError::UnknownModel)?;
    Ok(Json(json!({"model": model.as_str(), "versions": version_states(versions)})))
}

/// `GET /models/{model}/versions/{selector}`
pub(super) async fn version(
    State(edge): Shared,
    Path((model, selector)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    edge.authorize(&headers)?;
    let (model, selector) = target(&model, Some(&selector))?;
    let route = router::route(&edge.registry.snapshot(), &model, &selector, 0, Instant::now())?;
    let (id, report) = (route.version.id(), route.version.report());
    Ok(Json(json!({
        "model": id.name.as_str(),
        "version": id.version.to_string(),
        "digest": route.version.digest().to_string(),
        "snapshot": report.start == Start::Snapshot,
        "metadata": route.version.metadata(),
        "signature": route.version.signature(),
    })))
}

/// Every version of every model with its state.
fn states(snapshot: &Snapshot) -> Value {
    let models = snapshot.models.iter().map(
        |(name, versions)| json!({"model": name.as_str(), "versions": version_states(versions)}),
    );
    models.collect()
}

fn version_states(model: &ModelVersions) -> Value {
    let versions = model.versions.iter().map(|(version, state)| {
        let mut row = json!({"version": version.to_string(), "state": state.as_str()});
        match state {
            VersionState::Failed(step) => row["failed_step"] = json!(step),
            VersionState::Ready(version) => {
                row["suspended"] = json!(!version.breaker().allows(Instant::now()));
            }
            VersionState::Loading => {}
        }
        row
    });
    versions.collect()
}
