//! The catalogue: models, versions and signatures. It needs a key, because names are confidential too.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};

use super::error::ApiError;
use super::pages::{ModelScope, PageContent, PageKey, PageKind};
use super::query;
use super::request_log::RequestLog;
use super::state::{Edge, EdgeState};
use super::target::target;
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
pub(super) async fn models(State(edge): EdgeState, parts: Parts) -> Response {
    let mut log = RequestLog::new(&parts.headers, &parts.extensions);
    let outcome = async {
        let caller = edge.admit_reader_of_all(&parts.headers, &mut log)?;
        let make = |edge: &Edge, key: &PageKey| {
            let snapshot = edge.registry.snapshot();
            let models = key.scope.models(&snapshot);
            let models = models.map(|(name, model)| describe(name, model)).collect();
            Ok(PageContent::json(&ModelList { models }))
        };
        let key = PageKey::new(PageKind::Models, ModelScope::from_caller(&caller), &parts.headers);
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    log.attach_to(outcome)
}

/// `GET /models/{model}`
pub(super) async fn model(
    State(edge): EdgeState,
    Path(model): Path<String>,
    parts: Parts,
) -> Response {
    let mut log = RequestLog::new(&parts.headers, &parts.extensions);
    let outcome = async {
        let model = known_model(&edge, &model, &parts.headers, &mut log)?;
        let key =
            PageKey::new(PageKind::Model(model.clone()), ModelScope::only(&model), &parts.headers);
        let make = move |edge: &Edge, _: &PageKey| {
            let snapshot = edge.registry.snapshot();
            let versions = snapshot.models.get(&model).ok_or(RouteError::UnknownModel)?;
            Ok(PageContent::json(&describe(&model, versions)))
        };
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    log.attach_to(outcome)
}

/// The model of a path, if the request has a key that may read about it.
pub(super) fn known_model(
    edge: &Edge,
    model: &str,
    headers: &HeaderMap,
    log: &mut RequestLog,
) -> Result<ModelName, ApiError> {
    // Without a key, nothing is revealed about the name.
    let caller = edge.identify(headers, log)?;
    let (model, _) = target(model, None)?;
    edge.admit_reader(&caller, &model, log)?;
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
    log: &mut RequestLog,
) -> Result<Arc<ServableVersion>, ApiError> {
    let caller = edge.identify(headers, log)?;
    let (model, selector) = target(model, Some(selector))?;
    edge.admit_reader(&caller, &model, log)?;
    let found = router::explain(&edge.registry.snapshot(), &model, &selector, Instant::now())?;
    let (version, ..) = found.into_iter().next().ok_or(RouteError::NotReady)?;
    Ok(version)
}

/// `GET /models/{model}/versions/{selector}`
pub(super) async fn version(
    State(edge): EdgeState,
    Path((model, selector)): Path<(String, String)>,
    parts: Parts,
) -> Response {
    let mut log = RequestLog::new(&parts.headers, &parts.extensions);
    let found = known_version(&edge, (&model, &selector), &parts.headers, &mut log);
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
    log.attach_to(outcome)
}

/// `GET /models/{model}/resolve?selector=…&key=…`
pub(super) async fn resolve(
    State(edge): EdgeState,
    Path(model): Path<String>,
    RawQuery(query): RawQuery,
    parts: Parts,
) -> Response {
    let mut log = RequestLog::new(&parts.headers, &parts.extensions);
    let answer = known_model(&edge, &model, &parts.headers, &mut log)
        .and_then(|_| resolution(&edge.registry.snapshot(), &model, query.as_deref()));
    log.attach_to(answer.map(|resolution| Json(resolution).into_response()))
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
