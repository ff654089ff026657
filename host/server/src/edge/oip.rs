//! The Open Inference Protocol, version 2, over REST, with those of Triton's extensions that work here.
//!
//! What a request means is in `infer`, and what is told of models in `infer::about`; here are the paths,
//! the bodies, and which answer is which. Every answer is `application/json`, but for those with tensors
//! in their raw form; errors have their words in `error`, as the protocol's clients expect.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde_json::json;

use super::body;
use super::codec::oip::{OipCodec, check_media_type, request};
use super::codec::tensors::{Parameters, in_protocol_words, named};
use super::error::{ApiError, ErrorCode};
use super::model_info::{self as about, Asker};
use super::observe::{Account, answered};
use super::pages::{Content, Key, Kind, Scope};
use super::pipeline::predict_over_http;
use super::{Edge, Policy, Shared};
use guesthouse_control::registry::Snapshot;

/// The endpoints.
pub(super) fn endpoints() -> Router<Arc<Edge>> {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/stats", get(all_statistics))
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/{model}/versions/{version}", get(metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready))
        .route("/v2/models/{model}/config", get(config))
        .route("/v2/models/{model}/versions/{version}/config", get(config))
        .route("/v2/models/{model}/stats", get(statistics))
        .route("/v2/models/{model}/versions/{version}/stats", get(statistics))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(unload))
}

/// Whether what is answered at a path is told in the protocol's words. Not of it are the predictions of
/// the default model's second major.
pub(super) fn has_path(path: &str) -> bool {
    let rest = path.strip_prefix("/v2");
    rest.is_some_and(|rest| {
        (rest.is_empty() || rest.starts_with('/'))
            && !["/predict", "/batch_predict"].contains(&rest)
    })
}

/// Whether that is the pattern of an endpoint that answers with tensors.
pub(super) fn is_inference(pattern: &str) -> bool {
    pattern.starts_with("/v2/") && pattern.ends_with("/infer")
}

/// The model, and the version if the path names one.
type Named = Path<Vec<(String, String)>>;

fn model_of(path: &[(String, String)]) -> (&str, &str) {
    let value = |name: &str| {
        let found = path.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    (value("model"), value("version"))
}

/// `GET /v2`
async fn server(State(edge): Shared) -> Response {
    tell(&about::server(&edge))
}

/// `GET /v2/health/live`
async fn live() -> Response {
    tell(&json!({"live": true}))
}

/// `GET /v2/health/ready`
async fn ready(State(edge): Shared) -> Response {
    if about::is_ready(&edge) {
        tell(&json!({"live": true, "ready": true}))
    } else {
        ApiError::not_ready().into_response()
    }
}

/// `GET /v2/models/{model}` and `GET /v2/models/{model}/versions/{version}`
async fn metadata(State(edge): Shared, path: Named, request: Request) -> Response {
    let (model, version) = model_of(&path);
    ask(&edge, &request, |mut asker| asker.metadata(model, version))
}

/// `GET …/ready`
async fn model_ready(State(edge): Shared, path: Named, request: Request) -> Response {
    let (model, version) = model_of(&path);
    ask(&edge, &request, |mut asker| match asker.model_is_ready(model, version)? {
        true => Ok(json!({"name": model, "ready": true})),
        false => {
            let message = "the model's version is not ready";
            Err(ApiError::new(ErrorCode::NotReady, message))
        }
    })
}

/// `GET …/config`
async fn config(State(edge): Shared, path: Named, request: Request) -> Response {
    let (model, version) = model_of(&path);
    ask(&edge, &request, |mut asker| asker.config(model, version))
}

/// `GET …/stats`
async fn statistics(State(edge): Shared, path: Named, parts: Parts) -> Response {
    let (model, version) = model_of(&path);
    let mut account = Account::of_head(&parts.headers, &parts.extensions);
    let mut asker = Asker { edge: &edge, headers: &parts.headers, account: &mut account };
    let outcome = async {
        if !version.is_empty() {
            let statistics = asker.version_statistics(model, version)?;
            return Ok(tell(&json!({"model_stats": [statistics]})));
        }
        let name = asker.reader_of(model)?;
        let page = edge.page(
            Key::plain(Kind::Statistics(Some(name.clone())), Scope::only(&name)),
            |edge, key| {
                Ok(Content::json(&json!({"model_stats": about::statistics(edge, &key.scope)})))
            },
        );
        Ok(page.await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    answered(outcome, account)
}

/// `GET /v2/models/stats`: what has been counted of all models, and beside it the metadata of the model
/// that is called `stats`, if there is one.
async fn all_statistics(State(edge): Shared, parts: Parts) -> Response {
    let mut account = Account::of_head(&parts.headers, &parts.extensions);
    let outcome = async {
        let caller = edge.admit_reader_of_all(&parts.headers, &mut account)?;
        let make = |edge: &Edge, key: &Key| {
            let mut answer = about::metadata_of_stats(edge, &key.scope);
            answer.insert("model_stats".to_owned(), json!(about::statistics(edge, &key.scope)));
            Ok(Content::json(&answer))
        };
        let page = edge.page(Key::plain(Kind::Statistics(None), Scope::of(&caller)), make).await?;
        Ok(page.respond(&parts.headers))
    };
    let outcome = outcome.await;
    answered(outcome, account)
}

fn tell(answer: &impl Serialize) -> Response {
    // What is told is made of texts and numbers.
    let body = serde_json::to_vec(answer).unwrap_or_default();
    let json = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, json)], body).into_response()
}

fn ask<T: Serialize>(
    edge: &Edge,
    request: &Request,
    question: impl FnOnce(Asker<'_>) -> Result<T, ApiError>,
) -> Response {
    let mut account = Account::of(request);
    let headers = request.headers();
    let outcome = question(Asker { edge, headers, account: &mut account });
    answered(outcome.map(|answer| tell(&answer)), account)
}

/// `POST /v2/repository/index`
async fn index(State(edge): Shared, request: Request) -> Response {
    let mut account = Account::of(&request);
    let (parts, body) = request.into_parts();
    let outcome = async {
        let mut asker = Asker { edge: &edge, headers: &parts.headers, account: &mut account };
        // Who may not ask is not listened to.
        asker.reader_of_index()?;
        let body = read_small(&edge, &parts.headers, body).await?;
        let only_ready = request::parse_only_ready(&body)?;
        let make = move |edge: &Edge, _: &Key| Ok(Content::json(&about::index(edge, only_ready)));
        let page = edge.page(Key::plain(Kind::Index { only_ready }, Scope::All), make).await?;
        Ok(page.respond(&parts.headers))
    };
    let outcome = outcome.await;
    answered(outcome, account)
}

/// `POST /v2/repository/models/{model}/load`
async fn load(State(edge): Shared, path: Named, request: Request) -> Response {
    change(&edge, request, async |mut asker, parameters| {
        asker.load(model_of(&path).0, &parameters).await
    })
    .await
}

/// `POST /v2/repository/models/{model}/unload`
async fn unload(State(edge): Shared, path: Named, request: Request) -> Response {
    change(&edge, request, async |mut asker, parameters| {
        asker.unload(model_of(&path).0, &parameters).await
    })
    .await
}

async fn change(
    edge: &Edge,
    request: Request,
    make: impl AsyncFnOnce(Asker<'_>, Parameters) -> Result<(), ApiError>,
) -> Response {
    let mut account = Account::of(&request);
    let (parts, body) = request.into_parts();
    let outcome = async {
        let mut asker = Asker { edge, headers: &parts.headers, account: &mut account };
        asker.changer()?;
        let body = read_small(edge, asker.headers, body).await?;
        let parameters = request::parse_parameters(&body)?;
        make(asker, parameters).await?;
        Ok(tell(&json!({})))
    };
    let outcome = outcome.await;
    answered(outcome, account)
}

/// A body that says little, or nothing at all.
async fn read_small(
    edge: &Edge,
    headers: &HeaderMap,
    body: axum::body::Body,
) -> Result<Bytes, ApiError> {
    let limits = edge.policy.load().limits;
    check_media_type(headers)?;
    let body = body::read(headers, body, &limits, &edge.bodies).await?;
    Ok(body.bytes)
}

/// `POST …/infer`
async fn infer(State(edge): Shared, path: Named, request: Request) -> Response {
    let (model, version) = model_of(&path);
    let target = |_: &Policy, _: &Snapshot| named(model, version);
    let words = |error| in_protocol_words(error, model);
    let codec = |parts: &Parts| OipCodec::new(&parts.headers);
    predict_over_http(&edge, target, codec, words, request).await
}
