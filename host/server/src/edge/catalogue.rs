//! What is served: models, versions, signatures. Needs a key, because names say something too.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::observe::{Account, answered};
use super::pages::{Content, Key, Kind, Scope};
use super::predict::target;
use super::{Edge, Shared, query};
use guesthouse_control::registry::{ModelVersions, Snapshot, VersionState};
use guesthouse_control::rollout::WHOLE;
use guesthouse_control::router::{self, Draw, RouteError};
use guesthouse_model::ModelName;
use guesthouse_runtime::preinit::Start;
use guesthouse_runtime::version::ServableVersion;

/// `GET /models`
pub(super) async fn models(State(edge): Shared, parts: Parts) -> Response {
    let mut account = Account::of_head(&parts.headers, &parts.extensions);
    let outcome = async {
        let caller = edge.admit_reader_of_all(&parts.headers, &mut account)?;
        let make = |edge: &Edge, key: &Key| {
            let snapshot = edge.registry.snapshot();
            let models = key.scope.models(&snapshot);
            let models: Value = models.map(|(name, model)| model_state(name, model)).collect();
            Ok(Content::json(&json!({ "models": models })))
        };
        let key = Key::new(Kind::Models, Scope::of(&caller), &parts.headers);
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    answered(outcome, account)
}

/// `GET /models/{model}`
pub(super) async fn model(
    State(edge): Shared,
    Path(model): Path<String>,
    parts: Parts,
) -> Response {
    let mut account = Account::of_head(&parts.headers, &parts.extensions);
    let outcome = async {
        let model = known_model(&edge, &model, &parts.headers, &mut account)?;
        let key = Key::new(Kind::Model(model.clone()), Scope::only(&model), &parts.headers);
        let make = move |edge: &Edge, _: &Key| {
            let snapshot = edge.registry.snapshot();
            let versions = snapshot.models.get(&model).ok_or(RouteError::UnknownModel)?;
            Ok(Content::json(&model_state(&model, versions)))
        };
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    answered(outcome, account)
}

/// The model of a path, for somebody who may ask about it.
pub(super) fn known_model(
    edge: &Edge,
    model: &str,
    headers: &HeaderMap,
    account: &mut Account,
) -> Result<ModelName, ApiError> {
    // Nobody without a key is told whether the name is one.
    let caller = edge.identify(headers, account)?;
    let (model, _) = target(model, None)?;
    edge.admit_reader(&caller, &model, account)?;
    if !edge.registry.snapshot().models.contains_key(&model) {
        return Err(RouteError::UnknownModel.into());
    }
    Ok(model)
}

/// The version that a path asks about, for somebody who may do so: the one that gets most, if there are
/// several.
pub(super) fn known_version(
    edge: &Edge,
    (model, selector): (&str, &str),
    headers: &HeaderMap,
    account: &mut Account,
) -> Result<Arc<ServableVersion>, ApiError> {
    let caller = edge.identify(headers, account)?;
    let (model, selector) = target(model, Some(selector))?;
    edge.admit_reader(&caller, &model, account)?;
    let found = router::explain(&edge.registry.snapshot(), &model, &selector, Instant::now())?;
    let (version, ..) = found.into_iter().next().ok_or(RouteError::NotReady)?;
    Ok(version)
}

/// `GET /models/{model}/versions/{selector}`
pub(super) async fn version(
    State(edge): Shared,
    Path((model, selector)): Path<(String, String)>,
    parts: Parts,
) -> Response {
    let mut account = Account::of_head(&parts.headers, &parts.extensions);
    let found = known_version(&edge, (&model, &selector), &parts.headers, &mut account);
    let outcome = found.map(|version| {
        let (id, report) = (version.id(), version.report());
        Json(json!({
            "model": id.name.as_str(),
            "version": id.version.to_string(),
            "digest": version.digest().to_string(),
            "snapshot": report.start == Start::Snapshot,
            "metadata": version.metadata(),
            "signature": version.signature(),
        }))
        .into_response()
    });
    answered(outcome, account)
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
    parts: Parts,
) -> Response {
    let mut account = Account::of_head(&parts.headers, &parts.extensions);
    let answer = known_model(&edge, &model, &parts.headers, &mut account)
        .and_then(|_| resolution(&edge.registry.snapshot(), &model, query.as_deref()));
    answered(answer.map(|answer| answer.into_response()), account)
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
        let draw = Draw { split: place.unwrap_or(0), shadow: WHOLE, caller: None };
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
