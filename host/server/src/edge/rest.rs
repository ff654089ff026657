//! The REST endpoints that predict. They differ in how they name the version, and in whether a request is
//! one row or a batch.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::post;

use super::codec::Multiplicity;
use super::codec::rest::RestCodec;
use super::pipeline::predict_over_http;
use super::policy::Policy;
use super::state::{Edge, EdgeState};
use super::target::{Target, default_target, major_target, target};
use guesthouse_control::registry::Snapshot;
use guesthouse_model::Selector;

/// The endpoints whose paths end in `name`.
pub(super) fn endpoints(name: &str, multiplicity: Multiplicity) -> Router<Arc<Edge>> {
    let default = async move |State(edge): EdgeState, request: Request| {
        let target = |policy: &Policy, snapshot: &Snapshot| {
            default_target(snapshot, policy.default_model.as_ref(), Selector::Default)
        };
        predict(&edge, target, multiplicity, request).await
    };
    let major = async move |State(edge): EdgeState, Path(major): Path<String>, request: Request| {
        let target = |policy: &Policy, snapshot: &Snapshot| {
            major_target(snapshot, policy.default_model.as_ref(), &major)
        };
        predict(&edge, target, multiplicity, request).await
    };
    let model = async move |State(edge): EdgeState, Path(model): Path<String>, request: Request| {
        predict(&edge, |_, _| target(&model, None), multiplicity, request).await
    };
    let version = async move |State(edge): EdgeState,
                              Path((model, selector)): Path<(String, String)>,
                              request: Request| {
        let target = |_: &Policy, _: &Snapshot| target(&model, Some(&selector));
        predict(&edge, target, multiplicity, request).await
    };
    Router::new()
        .route(&format!("/{name}"), post(default))
        .route(&format!("/{{major}}/{name}"), post(major))
        .route(&format!("/models/{{model}}/{name}"), post(model))
        .route(&format!("/models/{{model}}/versions/{{selector}}/{name}"), post(version))
}

async fn predict(
    edge: &Edge,
    target: impl FnOnce(&Policy, &Snapshot) -> Target,
    multiplicity: Multiplicity,
    request: Request,
) -> Response {
    let codec = |parts: &_| RestCodec::new(parts, multiplicity);
    predict_over_http(edge, target, codec, |error| error, request).await
}
