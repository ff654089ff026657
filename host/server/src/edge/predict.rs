//! The endpoints that predict. They differ in how they name the version and in the form of the
//! body; all of them go through [`answer`].

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Map, Value, json};

use super::body::{self, Form};
use super::call::{Call, Called};
use super::error::{ApiError, ErrorCode};
use super::idempotency::{self, Answer, Before, REPLAYED_HEADER, Ticket};
use super::observe::Account;
use super::partial::{self, Inputs, Results};
use super::passage::{Asked, Passage};
use super::{Edge, Policy, Shared, shadowed};
use guesthouse_control::router::{Route, RouteError};
use guesthouse_model::{ModelName, Selector};

/// The endpoints of one form, whose paths end in `name`.
pub(super) fn endpoints(name: &str, form: Form) -> Router<Arc<Edge>> {
    let default = async move |State(edge): Shared, request: Request| {
        answer(&edge, |policy| default_target(&edge, policy, Selector::Default), form, request)
            .await
    };
    let major = async move |State(edge): Shared, Path(major): Path<String>, request: Request| {
        answer(&edge, |policy| major_target(&edge, policy, &major), form, request).await
    };
    let model = async move |State(edge): Shared, Path(model): Path<String>, request: Request| {
        answer(&edge, |_| target(&model, None), form, request).await
    };
    let version = async move |State(edge): Shared,
                              Path((model, selector)): Path<(String, String)>,
                              request: Request| {
        answer(&edge, |_| target(&model, Some(&selector)), form, request).await
    };
    Router::new()
        .route(&format!("/{name}"), post(default))
        .route(&format!("/{{major}}/{name}"), post(major))
        .route(&format!("/models/{{model}}/{name}"), post(model))
        .route(&format!("/models/{{model}}/versions/{{selector}}/{name}"), post(version))
}

/// What a path asks for, or why it asks for nothing.
pub(crate) type Target = Result<(ModelName, Selector), ApiError>;

/// A model and a version by their names in a path. What is not a name is the name of nothing.
pub(crate) fn target(model: &str, selector: Option<&str>) -> Target {
    let model = model.parse().map_err(|_error| ApiError::from(RouteError::UnknownModel))?;
    let selector = match selector {
        None => Selector::Default,
        Some(selector) => parse_selector(selector)?,
    };
    Ok((model, selector))
}

pub(crate) fn parse_selector(text: &str) -> Result<Selector, ApiError> {
    let malformed = |error| ApiError::malformed(format!("the version is malformed: {error}"));
    text.parse().map_err(malformed)
}

fn default_target(edge: &Edge, policy: &Policy, selector: Selector) -> Target {
    let snapshot = edge.registry.snapshot();
    let mut models = snapshot.models.keys();
    let only = models.next().filter(|_| models.next().is_none());
    match policy.default_model.as_ref().or(only) {
        Some(model) => Ok((model.clone(), selector)),
        None if snapshot.loading => Err(ApiError::not_ready()),
        None => Err(ApiError::new(ErrorCode::NotFound, "there is no default model")),
    }
}

fn major_target(edge: &Edge, policy: &Policy, segment: &str) -> Target {
    let digits = segment.strip_prefix('v').filter(|digits| !digits.starts_with(['+', '0']));
    let major = digits.or((segment == "v0").then_some("0")).and_then(|digits| digits.parse().ok());
    let major = major.ok_or_else(ApiError::no_such_endpoint)?;
    default_target(edge, policy, Selector::major(major))
}

async fn answer(
    edge: &Edge,
    target: impl FnOnce(&Policy) -> Target,
    form: Form,
    request: Request,
) -> Response {
    let mut account = Account::of(&request);
    let mut interrupted = edge.interrupted.clone();
    let policy = edge.policy.load_full();
    let target = target(&policy);
    let asked = Asked { edge, policy: &policy, target, form };
    let outcome = tokio::select! {
        outcome = predict(asked, request, &mut account) => outcome,
        // The guest that works for it is interrupted when this is dropped.
        Ok(_) = interrupted.wait_for(|interrupted| *interrupted) => Err(ApiError::going_down()),
    };
    let mut response = match outcome {
        Ok(Outcome::Now(mut prediction, ticket)) => {
            let Prediction { route, called, .. } = &mut *prediction;
            let comparison = called.comparison(route, &policy, account.request_id.as_str());
            let captured = prediction.captured.take();
            let answer = prediction.into_answer(form, account.request_id.as_str());
            if let Some(request) = captured {
                edge.capture.enqueue(answer.captured(request, account.request_id.as_str()));
            }
            let response = respond(&answer);
            if let Some(ticket) = ticket {
                ticket.answered(answer);
            }
            shadowed::compare_after(response, comparison, &edge.shadows)
        }
        Ok(Outcome::Before(answer)) => {
            let mut response = respond(&answer);
            response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
            response
        }
        Err(error) => error.into_response(),
    };
    response.extensions_mut().insert(account);
    response
}

/// What becomes of a request that is not refused.
enum Outcome {
    /// It was answered, for who asks again as well if there is a ticket.
    Now(Box<Prediction>, Option<Ticket>),
    /// It had been answered.
    Before(Arc<Answer>),
}

impl Outcome {
    fn again(answer: Arc<Answer>, account: &mut Account) -> Self {
        account.answered_before(&answer);
        Self::Before(answer)
    }
}

async fn predict(
    asked: Asked<'_>,
    request: Request,
    account: &mut Account,
) -> Result<Outcome, ApiError> {
    let (parts, body) = request.into_parts();
    let mut passage = Passage::begin(asked, &parts.headers, account)?;
    let (edge, limits, form) = (passage.edge, &passage.policy.limits, passage.form);
    let is_partial = partial::is_wanted(&parts.uri, form)?;
    // Who may have been answered already is not refused yet.
    if !parts.headers.contains_key(idempotency::KEY_HEADER) {
        passage.knock(account)?;
    }
    let bytes = body::read(&parts.headers, body, limits, &edge.bodies).await?;
    let mut ticket = None;
    if let Some(name) = idempotency::key_of(&parts.headers)? {
        match edge.answers.begin(passage.caller.name(), &name, hash(&passage, &parts, &bytes))? {
            Before::Answered(answer) => return Ok(Outcome::again(answer, account)),
            Before::New(begun) => ticket = Some(begun),
        }
    }
    let now = Instant::now();
    let mut object = None;
    if let (true, Some(field)) = (passage.is_told_by_body(), passage.field()) {
        let parsed = body::parse(&bytes, form, limits, &mut account.request_id)?;
        passage.tell(field_key(field, &parsed)?.as_deref());
        object = Some(parsed);
    }
    let entered = passage.enter(now, account)?;

    let signature = entered.route.version.signature();
    let mut object = match object {
        Some(object) => object,
        None => body::parse(&bytes, form, limits, &mut account.request_id)?,
    };
    if let Some(field) = passage.field() {
        body::take_beside_inputs(&mut object, field, form, signature);
    }
    let name = body::take_beside_inputs(&mut object, idempotency::KEY_FIELD, form, signature);
    // Checked even where the header's is taken: a malformed one is never let through.
    let name = name.map(|name| idempotency::key_in(&name)).transpose()?;
    if let (Some(name), None) = (name, &ticket) {
        match edge.answers.begin(passage.caller.name(), &name, hash(&passage, &parts, &bytes))? {
            Before::Answered(answer) => return Ok(Outcome::again(answer, account)),
            Before::New(begun) => ticket = Some(begun),
        }
    }
    let rows = body::rows(object, form, signature, limits.batch_rows)?;
    account.rows = rows.len();
    let inputs = Inputs::of(signature, rows, is_partial)?;
    entered.route.version.statistics().record_input_conversion(now.elapsed());
    passage.count(&entered.route);
    let mut call = Call::new(&passage, &entered, account.timer());
    let results = inputs.run(&mut call, account.rows).await?;
    let called = call.over();
    let captured = passage.is_captured(&entered.route).then(|| bytes.to_vec());
    let prediction = Prediction { route: entered.route.clone(), results, called, captured };
    Ok(Outcome::Now(Box::new(prediction), ticket))
}

/// Of everything that an answer depends on but for chance and who is asked meanwhile.
fn hash(passage: &Passage<'_>, parts: &Parts, body: &[u8]) -> [u8; 32] {
    let form = format!("{:?} {:?}", passage.form, passage.selector);
    let media_type = parts.headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    let query = parts.uri.query().unwrap_or_default();
    let model = passage.model.as_str();
    idempotency::hash(&[form.as_bytes(), model.as_bytes(), query.as_bytes(), media_type, body])
}

/// What tells the caller from others, if the field of its body does.
fn field_key(field: &str, object: &body::Record) -> Result<Option<Vec<u8>>, ApiError> {
    match object.get(field).as_deref() {
        // Clients that know nothing of their users say so in one of these ways.
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone().into_bytes())),
        Some(Value::Number(number)) if !number.is_f64() => {
            Ok(Some(number.to_string().into_bytes()))
        }
        Some(_) => {
            let message = format!("`{field}` must be a string or an integer");
            Err(ApiError::malformed(message))
        }
    }
}

struct Prediction {
    route: Route,
    results: Results,
    called: Called,
    /// The body, if it is to be kept with the answer.
    captured: Option<Vec<u8>>,
}

impl Prediction {
    fn into_answer(self, form: Form, request_id: &str) -> Answer {
        let begin = Instant::now();
        let (status, mut records) = (self.results.status(), self.results.records);
        let (reason, rows) = (self.route.reason, records.len());
        let version = self.route.version.id().clone();
        let mut answer = match form {
            Form::Single => records.pop().unwrap_or_default(),
            Form::Batch => Map::from_iter([("results".to_owned(), json!(records))]),
        };
        answer.insert("model".to_owned(), json!(version.name.as_str()));
        answer.insert("model_version".to_owned(), json!(version.version.to_string()));
        answer.insert("request_id".to_owned(), json!(request_id));
        let body = Value::Object(answer).to_string().into();
        self.called.encoded(&self.route, begin);
        Answer { status, body, version, reason, rows }
    }
}

fn respond(answer: &Answer) -> Response {
    let json = HeaderValue::from_static("application/json");
    (answer.status, [(CONTENT_TYPE, json)], answer.body.clone()).into_response()
}
