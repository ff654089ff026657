//! The endpoints that predict. They differ in how they name the version and in the form of the
//! body; all of them go through [`answer`].

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use rand::RngExt as _;
use serde_json::{Map, Value, json};

use super::body::{self, Form};
use super::error::{ApiError, ErrorCode};
use super::idempotency::{self, Answer, Before, REPLAYED_HEADER, Ticket};
use super::observe::{Account, VERSION_HEADER};
use super::partial::{self, Inputs, Results};
use super::{Edge, Policy, Shared, shadowed};
use crate::config::Sticky;
use crate::inference::{Inference, Urgency, Work};
use crate::model::{ModelName, Selector, Tensor};
use crate::observe::trace::{Stage, Told};
use crate::record;
use crate::rollout::WHOLE;
use crate::router::{self, Draw, Role, Route, RouteError};
use crate::shadow::{Batch, Comparison};
use crate::version::admission::{Class, Knock};

const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// Of a model of which the configuration says nothing.
const NO_STICKY: Sticky = Sticky { header: None, field: None };

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
            let comparison = prediction.comparison(&policy, account.request_id.as_str());
            let captured = prediction.captured.take();
            let answer = prediction.into_answer(form, account.request_id.as_str());
            if let Some(request) = captured {
                edge.capture.offer(answer.captured(request, account.request_id.as_str()));
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

/// What is asked for before anything is read of the request.
struct Asked<'a> {
    edge: &'a Edge,
    policy: &'a Policy,
    target: Target,
    form: Form,
}

async fn predict(
    asked: Asked<'_>,
    request: Request,
    account: &mut Account,
) -> Result<Outcome, ApiError> {
    let Asked { edge, policy, target, form } = asked;
    let limits = &policy.limits;
    let (parts, body) = request.into_parts();
    let caller = edge.identify(&parts.headers, account)?;
    let (model, selector) = target?;
    edge.admit(&caller, &model, &mut account.allowance)?;
    let selector = header_selector(&parts.headers, selector)?;
    let wanted_time = wanted_time(&parts.headers)?;
    let is_partial = partial::is_wanted(&parts.uri, form)?;
    let sticky = policy.sticky.get(&model).unwrap_or(&NO_STICKY);
    let mut key = header_key(sticky, &parts.headers);
    let mut way = Way { edge, policy, model, selector, form, wanted_time, draw: None };
    let is_told_by_body = key.is_none() && sticky.field.is_some();
    if !is_told_by_body {
        // Where it will go is known: who has no chance is told so before it has sent everything.
        way.draw = Some(draw(&way.model, key.as_deref()));
        // Not who may have been answered already.
        if !parts.headers.contains_key(idempotency::KEY_HEADER) {
            let found = way.find(Instant::now())?;
            account.route_to(&found.route);
            found.knock().check()?;
        }
    }
    let bytes = body::read(&parts.headers, body, limits, &edge.bodies).await?;
    let mut ticket = None;
    if let Some(name) = idempotency::key_of(&parts.headers)? {
        match edge.answers.begin(caller.name(), &name, way.hash(&parts, &bytes))? {
            Before::Answered(answer) => return Ok(Outcome::again(answer, account)),
            Before::New(begun) => ticket = Some(begun),
        }
    }
    let now = Instant::now();
    let mut object = None;
    if let (true, Some(field)) = (is_told_by_body, &sticky.field) {
        let parsed = body::parse(&bytes, form, limits, &mut account.request_id)?;
        key = field_key(field, &parsed)?;
        way.draw = Some(draw(&way.model, key.as_deref()));
        object = Some(parsed);
    }
    let found = way.find(now)?;
    account.route_to(&found.route);
    let _admitted = found.knock().enter()?;
    let Found { route, time, .. } = found;
    let deadline = now + time;

    let signature = route.version.signature();
    let mut object = match object {
        Some(object) => object,
        None => body::parse(&bytes, form, limits, &mut account.request_id)?,
    };
    if let Some(field) = &sticky.field {
        body::take_beside_inputs(&mut object, field, form, signature);
    }
    let name = body::take_beside_inputs(&mut object, idempotency::KEY_FIELD, form, signature);
    // Checked even where the header's is taken: a malformed one is never let through.
    let name = name.map(|name| idempotency::key_in(&name)).transpose()?;
    if let (Some(name), None) = (name, &ticket) {
        match edge.answers.begin(caller.name(), &name, way.hash(&parts, &bytes))? {
            Before::Answered(answer) => return Ok(Outcome::again(answer, account)),
            Before::New(begun) => ticket = Some(begun),
        }
    }
    let rows = body::rows(object, form, signature, limits.batch_rows)?;
    account.rows = rows.len();
    let inputs = Inputs::of(signature, rows, is_partial)?;
    way.count(&route, key.is_none());
    let mut call = Call::new(&edge.inference, &route, deadline, account.told());
    let results = inputs.run(&mut call, account.rows).await?;
    let Call { told, batches, encoding, .. } = call;
    let captured = way.captured(&route, &bytes);
    let prediction = Prediction { route, results, batches, told, encoding, captured };
    Ok(Outcome::Now(Box::new(prediction), ticket))
}

/// Where a request goes, as far as it is known.
struct Way<'a> {
    edge: &'a Edge,
    policy: &'a Policy,
    model: ModelName,
    selector: Selector,
    form: Form,
    wanted_time: Option<Duration>,
    draw: Option<Draw>,
}

/// The version that is to answer a request, if it takes it.
struct Found {
    route: Route,
    /// How long the caller waits.
    time: Duration,
    class: Class,
}

impl Way<'_> {
    /// Of everything that an answer depends on but for chance and who is asked meanwhile.
    fn hash(&self, parts: &Parts, body: &[u8]) -> [u8; 32] {
        let form = format!("{:?} {:?}", self.form, self.selector);
        let media_type = parts.headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
        let query = parts.uri.query().unwrap_or_default();
        let model = self.model.as_str();
        idempotency::hash(&[form.as_bytes(), model.as_bytes(), query.as_bytes(), media_type, body])
    }

    /// Count where the request goes.
    fn count(&self, route: &Route, has_no_key: bool) {
        let is_random = has_no_key && route.is_drawn;
        self.edge.traffic.count(route.version.id(), route.reason.as_str(), is_random);
    }

    /// The body, if the request is one of those that the operator wants to keep.
    fn captured(&self, route: &Route, body: &[u8]) -> Option<Vec<u8>> {
        let share = self.policy.capture_shares.get(&route.version.id().name).copied();
        let is_wanted = share.is_some_and(|share| share > 0.0 && rand::rng().random_bool(share));
        is_wanted.then(|| body.to_vec())
    }

    fn find(&self, now: Instant) -> Result<Found, ApiError> {
        let snapshot = self.edge.registry.snapshot();
        let draw = self.draw.unwrap_or_else(|| draw(&self.model, None));
        let route = router::route(&snapshot, &self.model, &self.selector, draw, now)?;
        let time = self.wanted_time.unwrap_or(route.version.limits().predict_time);
        let time = time.min(self.policy.limits.max_predict_time);
        let class = match (self.form, route.role) {
            (Form::Batch, _) => Class::Batch,
            (Form::Single, Role::Candidate) => Class::Candidate,
            (Form::Single, Role::Stable | Role::Other) => Class::Stable,
        };
        Ok(Found { route, time, class })
    }
}

impl Found {
    fn knock(&self) -> Knock<'_> {
        let Self { route, time, class } = self;
        let stable = route.stable.as_ref();
        Knock { version: &route.version, stable, class: *class, time: *time }
    }
}

/// What the caller asks for in a header, where the path asks for nothing.
fn header_selector(headers: &HeaderMap, of_path: Selector) -> Result<Selector, ApiError> {
    let Some(value) = headers.get(VERSION_HEADER) else { return Ok(of_path) };
    if of_path != Selector::Default {
        let message = "the path names a version, so X-Model-Version must not";
        return Err(ApiError::malformed(message));
    }
    parse_selector(value.to_str().unwrap_or_default())
}

/// What tells the caller from others, if its header does.
fn header_key(sticky: &Sticky, headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(sticky.header.as_deref()?)?;
    // Proxies send it empty for callers of whom they know nothing: many, and not one.
    Some(value.as_bytes().to_vec()).filter(|value| !value.is_empty())
}

/// What tells the caller from others, if the field of its body does.
fn field_key(field: &str, object: &body::Record) -> Result<Option<Vec<u8>>, ApiError> {
    match object.get(field).as_deref() {
        None => Ok(None),
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

/// Where the request falls: for the same caller always in the same place.
fn draw(model: &ModelName, key: Option<&[u8]>) -> Draw {
    let place = match key {
        Some(key) => router::bucket(model, key),
        None => rand::rng().random_range(0..WHOLE),
    };
    Draw { place, shadow: rand::rng().random_range(0..WHOLE) }
}

/// How long the caller is going to wait, if it says so.
fn wanted_time(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(TIMEOUT_HEADER) else { return Ok(None) };
    let milliseconds = value.to_str().ok().and_then(|value| value.parse::<NonZeroU32>().ok());
    match milliseconds {
        Some(milliseconds) => Ok(Some(Duration::from_millis(milliseconds.get().into()))),
        None => Err(ApiError::malformed("X-Request-Timeout-Ms must be a whole number from 1 on")),
    }
}

/// Read the headers that a prediction reads.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz_headers(headers: &HeaderMap) {
    let time = wanted_time(headers);
    assert!(
        time.is_ok_and(|time| time.is_none_or(|time| !time.is_zero()))
            || headers.contains_key(TIMEOUT_HEADER)
    );
    let _ = header_selector(headers, Selector::Default);
    let sticky = Sticky { header: Some("x-user-id".to_owned()), field: None };
    assert!(header_key(&sticky, headers).is_none_or(|key| !key.is_empty()));
}

/// Validated inputs on their way to one version.
pub(super) struct Call<'a> {
    inference: &'a Inference,
    pub(super) route: &'a Route,
    deadline: Instant,
    told: Told,
    /// What has been run, if another version is to be asked as well.
    batches: Vec<Batch>,
    /// How long outputs have taken to become records.
    encoding: Duration,
}

impl<'a> Call<'a> {
    fn new(inference: &'a Inference, route: &'a Route, deadline: Instant, told: Told) -> Self {
        let (batches, encoding) = (Vec::new(), Duration::ZERO);
        Self { inference, route, deadline, told, batches, encoding }
    }
}

impl Call<'_> {
    /// Run the rows in batches of at most the version's own size, one after the other, so that one
    /// large request does not take every inference thread.
    pub(super) async fn run(
        &mut self,
        inputs: Vec<Tensor>,
        rows: usize,
    ) -> Result<Vec<Map<String, Value>>, ApiError> {
        let most = self.route.version.max_batch_size();
        if rows <= most {
            return self.run_batch(Arc::new(inputs)).await;
        }
        let mut records = Vec::with_capacity(rows);
        for start in (0..rows).step_by(most) {
            let count = most.min(rows - start);
            let batch = inputs.iter().map(|input| input.slice_rows(start, count)).collect();
            let batch = self.run_batch(Arc::new(batch)).await;
            records.extend(batch.map_err(|error| error.shift_rows(start))?);
        }
        Ok(records)
    }

    pub(super) async fn run_batch(
        &mut self,
        inputs: Arc<Vec<Tensor>>,
    ) -> Result<Vec<Map<String, Value>>, ApiError> {
        let (version, told) = (Arc::clone(&self.route.version), self.told.clone());
        let again = self.route.shadow.as_ref().map(|_| Arc::clone(&inputs));
        let (deadline, urgency) = (self.deadline, Urgency::default());
        let work = Work { version, inputs, deadline, told, urgency };
        let outputs = self.inference.predict(work).await?;
        let begin = Instant::now();
        let records = record::encode(self.route.version.signature(), &outputs)?;
        self.encoding += begin.elapsed();
        if let Some(inputs) = again {
            self.batches.push(Batch { inputs, outputs });
        }
        Ok(records)
    }
}

struct Prediction {
    route: Route,
    results: Results,
    batches: Vec<Batch>,
    told: Told,
    encoding: Duration,
    /// The body, if it is to be kept with the answer.
    captured: Option<Vec<u8>>,
}

impl Prediction {
    /// What is to be compared, once the answer is on its way.
    fn comparison(&mut self, policy: &Policy, request_id: &str) -> Option<Comparison> {
        let candidate = Arc::clone(self.route.shadow.as_ref()?);
        let primary = Arc::clone(&self.route.version);
        let capture = policy.captured.contains(&primary.id().name);
        let (batches, request_id) = (std::mem::take(&mut self.batches), request_id.to_owned());
        Some(Comparison { candidate, primary, batches, request_id, capture })
    }

    fn into_answer(self, form: Form, request_id: &str) -> Answer {
        let begin = Instant::now();
        let (told, answered) = (self.told.clone(), Arc::clone(&self.route.version));
        let since = begin.checked_sub(self.encoding).unwrap_or(begin);
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
        told.went_through(Stage::Encode, since, Instant::now(), &answered.measured().encode);
        Answer { status, body, version, reason, rows }
    }
}

fn respond(answer: &Answer) -> Response {
    let json = HeaderValue::from_static("application/json");
    (answer.status, [(CONTENT_TYPE, json)], answer.body.clone()).into_response()
}
