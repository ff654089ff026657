//! The Open Inference Protocol, version 2, over REST, with those of Triton's extensions that work here.
//!
//! Responses are `application/json`, except for those with tensors in binary form. Errors have their message
//! in the field `error`, as the protocol's clients expect.

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
use super::model_info::{self, InfoRequest};
use super::pages::{ModelScope, PageContent, PageKey, PageKind};
use super::pipeline::predict_over_http;
use super::policy::Policy;
use super::request_log::RequestLog;
use super::state::{Edge, EdgeState};
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

/// The model, and the version if the path names one.
type NamedPath = Path<Vec<(String, String)>>;

fn path_names(path: &[(String, String)]) -> (&str, &str) {
    let value = |name: &str| {
        let found = path.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    (value("model"), value("version"))
}

/// `GET /v2`
async fn server(State(edge): EdgeState) -> Response {
    json_response(&model_info::server(&edge))
}

/// `GET /v2/health/live`
async fn live() -> Response {
    json_response(&json!({"live": true}))
}

/// `GET /v2/health/ready`
async fn ready(State(edge): EdgeState) -> Response {
    if model_info::is_ready(&edge) {
        json_response(&json!({"live": true, "ready": true}))
    } else {
        ApiError::not_ready().into_response()
    }
}

/// `GET /v2/models/{model}` and `GET /v2/models/{model}/versions/{version}`
async fn metadata(State(edge): EdgeState, path: NamedPath, request: Request) -> Response {
    let (model, version) = path_names(&path);
    inform(&edge, &request, |mut info| info.metadata(model, version))
}

/// `GET …/ready`
async fn model_ready(State(edge): EdgeState, path: NamedPath, request: Request) -> Response {
    let (model, version) = path_names(&path);
    inform(&edge, &request, |mut info| match info.model_is_ready(model, version)? {
        true => Ok(json!({"name": model, "ready": true})),
        false => {
            let message = "the model's version is not ready";
            Err(ApiError::new(ErrorCode::NotReady, message))
        }
    })
}

/// `GET …/config`
async fn config(State(edge): EdgeState, path: NamedPath, request: Request) -> Response {
    let (model, version) = path_names(&path);
    inform(&edge, &request, |mut info| info.config(model, version))
}

/// `GET …/stats`
async fn statistics(State(edge): EdgeState, path: NamedPath, parts: Parts) -> Response {
    let (model, version) = path_names(&path);
    let mut log = RequestLog::new(&parts.headers, &parts.extensions);
    let mut info = InfoRequest { edge: &edge, headers: &parts.headers, log: &mut log };
    let outcome = async {
        if !version.is_empty() {
            let statistics = info.version_statistics(model, version)?;
            return Ok(json_response(&json!({"model_stats": [statistics]})));
        }
        let name = info.reader_of(model)?;
        let page = edge.page(
            PageKey::plain(PageKind::Statistics(Some(name.clone())), ModelScope::only(&name)),
            |edge, key| {
                Ok(PageContent::json(
                    &json!({"model_stats": model_info::statistics(edge, &key.scope)}),
                ))
            },
        );
        Ok(page.await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    log.attach_to(outcome)
}

/// `GET /v2/models/stats`: the statistics of all models, and the metadata of the model with the name `stats`,
/// if there is one.
async fn all_statistics(State(edge): EdgeState, parts: Parts) -> Response {
    let mut log = RequestLog::new(&parts.headers, &parts.extensions);
    let outcome = async {
        let caller = edge.admit_reader_of_all(&parts.headers, &mut log)?;
        let make = |edge: &Edge, key: &PageKey| {
            let mut answer = model_info::metadata_of_stats(edge, &key.scope);
            answer
                .insert("model_stats".to_owned(), json!(model_info::statistics(edge, &key.scope)));
            Ok(PageContent::json(&answer))
        };
        let page = edge
            .page(
                PageKey::plain(PageKind::Statistics(None), ModelScope::from_caller(&caller)),
                make,
            )
            .await?;
        Ok(page.respond(&parts.headers))
    };
    let outcome = outcome.await;
    log.attach_to(outcome)
}

fn json_response(answer: &impl Serialize) -> Response {
    // Serializing strings and numbers does not fail.
    let body = serde_json::to_vec(answer).unwrap_or_default();
    let json = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, json)], body).into_response()
}

fn inform<T: Serialize>(
    edge: &Edge,
    request: &Request,
    read: impl FnOnce(InfoRequest<'_>) -> Result<T, ApiError>,
) -> Response {
    let mut log = RequestLog::new(request.headers(), request.extensions());
    let headers = request.headers();
    let outcome = read(InfoRequest { edge, headers, log: &mut log });
    log.attach_to(outcome.map(|answer| json_response(&answer)))
}

/// `POST /v2/repository/index`
async fn index(State(edge): EdgeState, request: Request) -> Response {
    let mut log = RequestLog::new(request.headers(), request.extensions());
    let (parts, body) = request.into_parts();
    let outcome = async {
        let mut info = InfoRequest { edge: &edge, headers: &parts.headers, log: &mut log };
        // Before the body is read.
        info.reader_of_index()?;
        let body = read_small(&edge, &parts.headers, body).await?;
        let only_ready = request::parse_only_ready(&body)?;
        let make = move |edge: &Edge, _: &PageKey| {
            Ok(PageContent::json(&model_info::index(edge, only_ready)))
        };
        let page = edge
            .page(PageKey::plain(PageKind::Index { only_ready }, ModelScope::All), make)
            .await?;
        Ok(page.respond(&parts.headers))
    };
    let outcome = outcome.await;
    log.attach_to(outcome)
}

/// `POST /v2/repository/models/{model}/load`
async fn load(State(edge): EdgeState, path: NamedPath, request: Request) -> Response {
    change(&edge, request, async |mut info, parameters| {
        info.load(path_names(&path).0, &parameters).await
    })
    .await
}

/// `POST /v2/repository/models/{model}/unload`
async fn unload(State(edge): EdgeState, path: NamedPath, request: Request) -> Response {
    change(&edge, request, async |mut info, parameters| {
        info.unload(path_names(&path).0, &parameters).await
    })
    .await
}

async fn change(
    edge: &Edge,
    request: Request,
    make: impl AsyncFnOnce(InfoRequest<'_>, Parameters) -> Result<(), ApiError>,
) -> Response {
    let mut log = RequestLog::new(request.headers(), request.extensions());
    let (parts, body) = request.into_parts();
    let outcome = async {
        let mut info = InfoRequest { edge, headers: &parts.headers, log: &mut log };
        info.check_changes()?;
        let body = read_small(edge, info.headers, body).await?;
        let parameters = request::parse_parameters(&body)?;
        make(info, parameters).await?;
        Ok(json_response(&json!({})))
    };
    let outcome = outcome.await;
    log.attach_to(outcome)
}

/// A body that may be empty.
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
async fn infer(State(edge): EdgeState, path: NamedPath, request: Request) -> Response {
    let (model, version) = path_names(&path);
    let target = |_: &Policy, _: &Snapshot| named(model, version);
    let words = |error| in_protocol_words(error, model);
    let codec = |parts: &Parts| OipCodec::new(&parts.headers);
    predict_over_http(&edge, target, codec, words, request).await
}
