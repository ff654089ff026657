//! The Open Inference Protocol, version 2, over REST, with those of Triton's extensions that work here.
//!
//! What a request means is in `infer`, and what is told of models in `infer::about`; here are the paths,
//! the bodies, and which answer is which. Every answer is `application/json`, but for those with tensors
//! in their raw form; errors have their words in `error`, as the protocol's clients expect.

mod answer;
mod elements;
mod reader;
mod request;
#[cfg(any(test, feature = "fuzzing"))]
mod round_trip;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde_json::json;

use self::answer::Forms;
use self::reader::{Read, Reader};
use self::request::{Layout, RestRequest};
use super::body::{self, Form};
use super::error::{ApiError, ErrorCode};
use super::infer::about::{self, Asker};
use super::infer::{InferRequest, Inferred, Parameters, in_protocol_words, infer_with, named};
use super::observe::{Account, answered};
use super::pages::{Content, Key, Kind, Scope};
use super::passage::{Asked, Passage};
use super::{Edge, Policy, Shared, shadowed};
use guesthouse_model::{Datatype, Signature, Tensor};

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

/// Read a body, of which so many bytes are JSON if that is said.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz_body(body: &[u8], length: Option<usize>) {
    round_trip::read(body, length.map_or(Layout::Json, Layout::JsonThenTensors));
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
        let mut only_ready = None;
        let body = read_small(&edge, &parts.headers, body).await?;
        fields(&body, |reader, field| match field {
            "ready" => request::once(reader, &mut only_ready, |reader| reader.boolean()),
            _ => reader.skip(),
        })?;
        let only_ready = only_ready.unwrap_or(false);
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
        let mut parameters = None;
        let body = read_small(edge, asker.headers, body).await?;
        fields(&body, |reader, field| match field {
            "parameters" => request::once(reader, &mut parameters, request::parameters),
            _ => reader.skip(),
        })?;
        make(asker, parameters.unwrap_or_default()).await?;
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
) -> Result<body::Received, ApiError> {
    let limits = edge.policy.load().limits;
    body::read_tensors(headers, body, &limits, &edge.bodies).await
}

fn fields(
    body: &[u8],
    field: impl FnMut(&mut Reader<'_>, &str) -> Read<()>,
) -> Result<(), ApiError> {
    let text =
        str::from_utf8(body).map_err(|_error| ApiError::malformed("the JSON is not UTF-8"))?;
    if text.trim_ascii().is_empty() {
        return Ok(());
    }
    let mut reader = Reader::new(text);
    reader.object(field)?;
    Ok(reader.end()?)
}

/// `POST …/infer`
async fn infer(State(edge): Shared, path: Named, request: Request) -> Response {
    let (model, version) = model_of(&path);
    let mut account = Account::of(&request);
    let mut interrupted = edge.interrupted.clone();
    let policy = edge.policy.load_full();
    let target = named(model, version);
    let asked = Asked { edge: &edge, policy: &policy, target, form: Form::Single };
    let outcome = tokio::select! {
        outcome = run(asked, request, &mut account) => outcome,
        // The guest that works for it is interrupted when this is dropped.
        Ok(_) = interrupted.wait_for(|interrupted| *interrupted) => Err(ApiError::going_down()),
    };
    let outcome = outcome.and_then(|(inferred, forms)| {
        respond(&edge, &policy, inferred, &forms, account.request_id.as_str())
    });
    answered(outcome.map_err(|error| in_protocol_words(error, &edge, model)), account)
}

async fn run(
    asked: Asked<'_>,
    request: Request,
    account: &mut Account,
) -> Result<(Inferred, Forms), ApiError> {
    let (parts, body) = request.into_parts();
    let mut passage = Passage::begin(asked, &parts.headers, account)?;
    let layout = Layout::of(&parts.headers)?;
    passage.knock(account)?;
    let (edge, limits) = (passage.edge, &passage.policy.limits);
    let body = body::read_tensors(&parts.headers, body, limits, &edge.bodies).await?;
    let complete = Instant::now();
    if layout == Layout::Raw {
        let request = InferRequest {
            id: None,
            parameters: Parameters::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
        };
        let fill = |signature: &Signature, request: &mut InferRequest| {
            request.inputs.push(raw_input(signature, &body)?);
            Ok(())
        };
        let inferred = infer_with(&mut passage, request, complete, account, fill).await?;
        // Who sends no JSON reads none.
        return Ok((inferred, Forms::of(true, &[])?));
    }
    let RestRequest { request, binary_outputs } = request::parse(&body, layout)?;
    let forms = Forms::of(binary_outputs, &request.outputs)?;
    let check = |signature: &Signature, request: &mut InferRequest| {
        forms.check(signature, &request.outputs)
    };
    let inferred = infer_with(&mut passage, request, complete, account, check).await?;
    Ok((inferred, forms))
}

/// The one row of the one input: its elements, or the bytes of its one byte string. One dimension may be
/// of any size, because the length says which.
fn raw_input(signature: &Signature, body: &[u8]) -> Result<Tensor, ApiError> {
    let [field] = &signature.inputs[..] else {
        return Err(ApiError::malformed("a body without JSON is for models with one input"));
    };
    let Some(size) = field.datatype.element_size() else {
        if field.row_shape.iter().any(|size| size.is_some_and(|size| size != 1)) {
            return Err(ApiError::malformed("a body without JSON is for one byte string alone"));
        }
        let length = u32::try_from(body.len());
        let length = length.map_err(|_error| ApiError::malformed("the byte string is too long"))?;
        let shape = vec![1; field.row_shape.len() + 1];
        let data = [&length.to_le_bytes(), body].concat();
        return Ok(Tensor { name: field.name.clone(), datatype: Datatype::Bytes, shape, data });
    };
    let known = field.row_shape.iter().flatten();
    let known = known.map(|size| u64::from(*size)).try_fold(size as u64, u64::checked_mul);
    let unknown = field.row_shape.iter().filter(|size| size.is_none()).count();
    let length = body.len() as u64;
    let rest = match (known, unknown) {
        (Some(known), 0) if known == length => 1,
        (Some(known), 1) if known > 0 && length.is_multiple_of(known) => length / known,
        _ => {
            let message = "the body is not as long as the one input of the model";
            return Err(ApiError::malformed(message));
        }
    };
    let row = field.row_shape.iter().map(|size| size.map_or(rest, u64::from));
    let shape = std::iter::once(1).chain(row).collect();
    let (name, datatype, data) = (field.name.clone(), field.datatype, body.to_vec());
    Ok(Tensor { name, datatype, shape, data })
}

fn respond(
    edge: &Edge,
    policy: &Policy,
    mut inferred: Inferred,
    forms: &Forms,
    request_id: &str,
) -> Result<Response, ApiError> {
    let begin = Instant::now();
    let body = answer::write(&inferred.version, inferred.id.as_deref(), &inferred.outputs, forms)?;
    inferred.encoded(begin);
    let comparison = inferred.comparison(policy, request_id);
    Ok(shadowed::compare_after(body.into_response(), comparison, &edge.shadows))
}
