//! The catalogue: models, versions and signatures. It needs a key, because names are confidential too.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};

use super::error::ApiError;
use super::observe::{Account, answered};
use super::pages::{Content, Key, Kind, Scope};
use super::target::target;
use super::{Edge, Shared, query};
use crate::api::catalogue::{
    Choice, Match, Model, ModelList, ModelVersion, Resolution, ResolveQuery, VersionDetails,
};
use crate::api::status::shares;
use guesthouse_control::registry::{ModelVersions, Snapshot, VersionState};
use guesthouse_control::rollout::{Share, WHOLE};
use guesthouse_control::router::{self, Draw, RouteError};
use guesthouse_model::ModelName;
use guesthouse_runtime::preinit::InstanceStart;
use guesthouse_runtime::version::ServableVersion;

/// `GET /models`
pub(super) async fn models(State(edge): Shared, parts: Parts) -> Response {
    let mut account = Account::of_head(&parts.headers, &parts.extensions);
    let outcome = async {
        let caller = edge.admit_reader_of_all(&parts.headers, &mut account)?;
        let make = |edge: &Edge, key: &Key| {
            let snapshot = edge.registry.snapshot();
            let models = key.scope.models(&snapshot);
            let models = models.map(|(name, model)| describe(name, model)).collect();
            Ok(Content::json(&ModelList { models }))
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
            Ok(Content::json(&describe(&model, versions)))
        };
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    answered(outcome, account)
}

/// The model of a path, if the request has a key that may read about it.
pub(super) fn known_model(
    edge: &Edge,
    model: &str,
    headers: &HeaderMap,
    account: &mut Account,
) -> Result<ModelName, ApiError> {
    // Without a key, nothing is revealed about the name.
    let caller = edge.identify(headers, account)?;
    let (model, _) = target(model, None)?;
    edge.admit_reader(&caller, &model, account)?;
    if !edge.registry.snapshot().models.contains_key(&model) {
        return Err(RouteError::UnknownModel.into());
    }
    Ok(model)
}

/// The version of a path, if the request has a key that may read about it. If several versions match the
/// selector, it is the one with the largest share.
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
        Json(VersionDetails {
            model: id.name.clone(),
            version: id.version.clone(),
            digest: version.digest(),
            snapshot: report.start == InstanceStart::Snapshot,
            metadata: version.metadata().clone(),
            signature: version.signature().clone(),
        })
        .into_response()
    });
    answered(outcome, account)
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
    answered(answer.map(|resolution| Json(resolution).into_response()), account)
}

/// Which versions answer requests with a selector, and which one answers the caller with the key.
pub(crate) fn resolution(
    snapshot: &Snapshot,
    model: &str,
    query: Option<&str>,
) -> Result<Resolution, ApiError> {
    let ResolveQuery { selector: written, key } = query::parse(query)?;
    let (model, selector) = target(model, written.as_deref())?;
    let now = Instant::now();
    let found = router::explain(snapshot, &model, &selector, now)?;
    let matches = found.iter().map(|(version, reason, share)| Match {
        version: version.id().version.clone(),
        reason: reason.as_str().to_owned(),
        share: Share::from_parts(*share),
    });
    let matches: Vec<_> = matches.collect();
    let place = key.map(|key| router::bucket(&model, key.as_bytes()));
    let mut choice = None;
    if place.is_some() || matches.len() == 1 {
        let draw = Draw { split: place.unwrap_or(0), shadow: WHOLE, caller: None };
        let route = router::route(snapshot, &model, &selector, draw, now)?;
        let version = route.version.id().version.clone();
        choice = Some(Choice { version, reason: route.reason.as_str().to_owned(), place });
    }
    Ok(Resolution { model, selector: written, matches, choice })
}

/// A model with its versions and their states.
fn describe(name: &ModelName, model: &ModelVersions) -> Model {
    let now = Instant::now();
    let versions = model.versions.iter().map(|(version, state)| ModelVersion {
        version: version.clone(),
        state: crate::api::status::VersionState::from(state).into(),
        failed_step: match state {
            VersionState::Failed(failure) => Some(failure.step.to_owned()),
            _ => None,
        },
        suspended: state.servable().map(|version| !version.breaker().allows(now)),
    });
    Model {
        model: name.clone(),
        stable: model.routing.stable.clone(),
        candidates: shares(model.routing.candidates.clone()),
        versions: versions.collect(),
    }
}
