//! The one sequence that every prediction goes through, whatever protocol it arrives by: authenticate,
//! route, admit, read, decode, run, count, compare, capture, encode.
//!
//! What protocols do differently is in their [`Codec`]; nothing here knows JSON or protobuf. The caller's
//! key, the rates and, where headers decide it, the version are checked before the body is read, so that
//! rejecting a request is cheap. The registry's snapshot is looked at once, when the head arrives; it
//! decides everything about the request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use rand::RngExt as _;

use super::body::{self, RequestBody};
use super::codec::{Codec, Encoded, FieldValue, JSON_LENGTH_HEADER};
use super::compare::CompareOnDrop;
use super::error::ApiError;
use super::idempotency::{self, Lookup, PendingAnswer, REPLAYED_HEADER, StoredAnswer};
use super::policy::Policy;
use super::request_headers;
use super::request_log::RequestLog;
use super::run::Runner;
use super::state::Edge;
use super::target::{self, Target};
use crate::config::Sticky;
use crate::observe::capture::CapturedRequest;
use guesthouse_control::keys::Caller;
use guesthouse_control::registry::Snapshot;
use guesthouse_control::rollout::WHOLE;
use guesthouse_control::router::{self, Draw, Role, Route, RouteError};
use guesthouse_model::{ModelName, Selector};
use guesthouse_runtime::version::CallerId;
use guesthouse_runtime::version::admission::{AdmissionGuard, AdmissionRequest, RequestClass};

/// For a model without a sticky header and without a sticky field.
const NO_STICKY: Sticky = Sticky { header: None, field: None };

/// What is known of a request before its body is read.
pub(super) struct RequestHead<'a> {
    pub(super) edge: &'a Edge,
    pub(super) policy: &'a Policy,
    /// The loaded versions when the request arrives.
    pub(super) snapshot: Arc<Snapshot>,
    /// The headers, or the metadata of a gRPC call.
    pub(super) headers: &'a HeaderMap,
    pub(super) target: Target,
}

/// A request whose caller is authorized to use its model.
pub(super) struct PredictRequest<'a> {
    edge: &'a Edge,
    policy: &'a Policy,
    caller: Arc<Caller>,
    model: ModelName,
    selector: Selector,
    /// Whether it is a batch: batches are shed first.
    is_batch: bool,
    sticky: &'a Sticky,
    /// The caller's timeout, if it has set one.
    timeout: Option<Duration>,
    idempotency_key: Option<String>,
    routing: Routing,
}

/// Whether the version is chosen.
enum Routing {
    /// The sticky key is in the body.
    Pending(Arc<Snapshot>),
    Done(Result<Routed, RouteError>),
}

/// A request for which a version was chosen.
struct Routed {
    route: Route,
    caller: CallerId,
    /// Whether the version was drawn at random, and not by a sticky key.
    is_random: bool,
}

/// A request that its version has admitted.
struct AdmittedRequest {
    route: Route,
    caller: CallerId,
    is_random: bool,
    deadline: Instant,
    _admitted: AdmissionGuard,
}

/// A request whose body was parsed.
enum Parsed {
    /// It is to run, and its answer to be stored if it has an idempotency key.
    Admitted(AdmittedRequest, Option<PendingAnswer>),
    /// Its answer is stored.
    Answered(Arc<StoredAnswer>),
}

/// The answer to a prediction request, and what happens once it has been sent.
pub(super) struct Reply {
    pub(super) answer: Arc<StoredAnswer>,
    /// Whether it was stored, under the idempotency key of the request.
    pub(super) is_replay: bool,
    /// To be dropped when the answer has been sent.
    pub(super) comparison: Option<CompareOnDrop>,
}

/// Answer a prediction request: the head, then the body, which `body` reads.
pub(super) async fn predict<C: Codec>(
    head: RequestHead<'_>,
    codec: Result<C, ApiError>,
    body: impl Future<Output = Result<RequestBody, ApiError>>,
    log: &mut RequestLog,
) -> Result<Reply, ApiError> {
    let mut request = PredictRequest::authenticate(head, log)?;
    let codec = codec?;
    request.check(&codec, log)?;
    request.answer(codec, body.await?, log).await
}

/// Answer a prediction request that arrives by HTTP, unless a stopping server interrupts it. `words` may
/// change the message of an error.
pub(super) async fn predict_over_http<C: Codec>(
    edge: &Edge,
    target: impl FnOnce(&Policy, &Snapshot) -> Target,
    codec: impl FnOnce(&Parts) -> Result<C, ApiError>,
    words: impl FnOnce(ApiError) -> ApiError,
    request: Request,
) -> Response {
    let mut log = RequestLog::new(request.headers(), request.extensions());
    let (parts, body) = request.into_parts();
    let (policy, snapshot) = (edge.policy.load_full(), Arc::clone(&edge.registry.snapshot()));
    let (target, headers) = (target(&policy, &snapshot), &parts.headers);
    let body = body::read(headers, body, &policy.limits, &edge.bodies);
    let head = RequestHead { edge, policy: &policy, snapshot, headers, target };
    let mut interrupted = edge.interrupted.clone();
    let outcome = tokio::select! {
        outcome = predict(head, codec(&parts), body, &mut log) => outcome,
        // Dropping the prediction interrupts its guest.
        Ok(_) = interrupted.wait_for(|interrupted| *interrupted) => Err(ApiError::stopping()),
    };
    log.attach_to(outcome.map(Reply::into_response).map_err(words))
}

impl<'a> PredictRequest<'a> {
    /// Authenticate the caller, charge the rates, and choose the version if the headers decide it.
    pub(super) fn authenticate(
        head: RequestHead<'a>,
        log: &mut RequestLog,
    ) -> Result<Self, ApiError> {
        let RequestHead { edge, policy, snapshot, headers, target } = head;
        let caller = edge.identify(headers, log)?;
        let (model, selector) = target?;
        edge.admit_prediction(&caller, &model, log)?;
        let mut request = Self {
            edge,
            policy,
            caller,
            selector: request_headers::selector(headers, selector)?,
            is_batch: false,
            sticky: policy.sticky.get(&model).unwrap_or(&NO_STICKY),
            timeout: request_headers::timeout(headers)?,
            idempotency_key: idempotency::key_from_headers(headers)?,
            routing: Routing::Pending(snapshot),
            model,
        };
        let key = request_headers::sticky_key(request.sticky, headers);
        if key.is_some() || request.sticky.field.is_none() {
            request.route(key.as_deref());
        }
        Ok(request)
    }

    /// Choose the version, by the sticky key if there is one.
    fn route(&mut self, key: Option<&[u8]>) {
        let Routing::Pending(snapshot) = &self.routing else { return };
        let place = match key {
            Some(key) => router::bucket(&self.model, key),
            None => rand::rng().random_range(0..WHOLE),
        };
        let caller = CallerId::new(self.caller.name(), key);
        let shadow = rand::rng().random_range(0..WHOLE);
        let draw = Draw { split: place, shadow, caller: Some(caller) };
        let route = router::route(snapshot, &self.model, &self.selector, draw, Instant::now());
        let routed = route.map(|route| {
            let is_random = key.is_none() && route.is_drawn;
            Routed { route, caller, is_random }
        });
        self.routing = Routing::Done(routed);
    }

    /// Shed a request that would not be admitted before its body is read. One with an idempotency key may
    /// have been answered already.
    fn check(&mut self, codec: &impl Codec, log: &mut RequestLog) -> Result<(), ApiError> {
        self.is_batch = codec.is_batch();
        let Routing::Done(routed) = &self.routing else { return Ok(()) };
        if self.idempotency_key.is_some() {
            return Ok(());
        }
        let Routed { route, .. } = routed.as_ref().map_err(|error| *error)?;
        log.set_route(route);
        Ok(self.admission(route).check()?)
    }

    /// Answer the request, after its body was read.
    pub(super) async fn answer<C: Codec>(
        &mut self,
        mut codec: C,
        body: RequestBody,
        log: &mut RequestLog,
    ) -> Result<Reply, ApiError> {
        let (admitted, pending) = match self.parse(&mut codec, &body, log)? {
            Parsed::Admitted(admitted, pending) => (admitted, pending),
            Parsed::Answered(answer) => {
                log.set_replay(&answer);
                return Ok(Reply { answer, is_replay: true, comparison: None });
            }
        };
        let (route, version) = (&admitted.route, &admitted.route.version);
        let inputs = codec.decode(version.signature(), &self.policy.limits)?;
        log.rows = inputs.rows;
        version.statistics().record_input_conversion(body.complete.elapsed());
        self.edge.traffic.count(version.id(), route.reason.as_str(), admitted.is_random);
        let captured = self.is_captured(route).then(|| body.bytes.clone());
        // The inputs may share the bytes, so the body counts among those in flight until they are done.
        let _permit = body.into_permit();
        let mut runner = Runner {
            inference: &self.edge.inference,
            route,
            caller: admitted.caller,
            deadline: admitted.deadline,
            timer: log.stage_timer(),
            queue_options: inputs.queue_options,
            compared: Vec::new(),
        };
        let outputs = runner.run(inputs).await?;
        let (begin, request_id) = (Instant::now(), log.request_id.as_str());
        let encoded = codec.encode(version, outputs, request_id)?;
        runner.encoded(begin);
        let (version, reason, rows) = (version.id().clone(), route.reason, log.rows);
        let answer = Arc::new(StoredAnswer { encoded, version, reason, rows });
        if let Some(request) = captured {
            self.edge.capture.enqueue(capture(&answer, request.to_vec(), request_id));
        }
        if let Some(pending) = pending {
            pending.complete(Arc::clone(&answer));
        }
        let comparison = runner.comparison(self.policy, request_id);
        let comparison =
            comparison.map(|comparison| CompareOnDrop::new(comparison, &self.edge.shadows));
        Ok(Reply { answer, is_replay: false, comparison })
    }

    /// Look up the idempotency key, choose the version if the body has the sticky key, and admit the request.
    /// The body is parsed after that if possible, so that shedding a request is cheap.
    fn parse<C: Codec>(
        &mut self,
        codec: &mut C,
        body: &RequestBody,
        log: &mut RequestLog,
    ) -> Result<Parsed, ApiError> {
        self.is_batch = codec.is_batch();
        let limits = &self.policy.limits;
        let mut pending = None;
        if let Some(key) = self.idempotency_key.take() {
            match self.look_up(&key, codec, body)? {
                Lookup::Answered(answer) => return Ok(Parsed::Answered(answer)),
                Lookup::New(new) => pending = Some(new),
            }
        }
        let needs_body = matches!(self.routing, Routing::Pending(_));
        if needs_body {
            codec.parse(body, limits, &mut log.request_id)?;
            let field = self.sticky.field.as_deref().unwrap_or_default();
            let key = sticky_key(field, codec.field(field))?;
            self.route(key.as_deref());
        }
        let admitted = self.admit(body.complete, log)?;
        if !needs_body {
            codec.parse(body, limits, &mut log.request_id)?;
        }
        let signature = admitted.route.version.signature();
        if let Some(field) = &self.sticky.field {
            codec.take_field(field, signature);
        }
        let key = codec.take_field(idempotency::KEY_FIELD, signature);
        // Validated even if the header has a key, which takes precedence.
        let key = key.map(idempotency::key_from_field).transpose()?;
        if let (Some(key), None) = (key, &pending) {
            match self.look_up(&key, codec, body)? {
                Lookup::Answered(answer) => return Ok(Parsed::Answered(answer)),
                Lookup::New(new) => pending = Some(new),
            }
        }
        Ok(Parsed::Admitted(admitted, pending))
    }

    /// Admit the request, whose deadline counts from when it was complete.
    fn admit(
        &mut self,
        complete: Instant,
        log: &mut RequestLog,
    ) -> Result<AdmittedRequest, ApiError> {
        let routed = match &self.routing {
            Routing::Done(routed) => routed.as_ref().map_err(|error| *error)?,
            Routing::Pending(_) => return Err(ApiError::from(RouteError::NotReady)),
        };
        let Routed { route, caller, is_random } = routed;
        log.set_route(route);
        let admission = self.admission(route);
        let deadline = complete + admission.time;
        let _admitted = admission.admit()?;
        let (route, caller, is_random) = (route.clone(), *caller, *is_random);
        Ok(AdmittedRequest { route, caller, is_random, deadline, _admitted })
    }

    fn admission<'r>(&self, route: &'r Route) -> AdmissionRequest<'r> {
        let time = self.timeout.unwrap_or(route.version.limits().predict_time);
        let time = time.min(self.policy.limits.max_predict_time);
        let class = match (self.is_batch, route.role) {
            (true, _) => RequestClass::Batch,
            (false, Role::Candidate) => RequestClass::Candidate,
            (false, Role::Stable | Role::Other) => RequestClass::Stable,
        };
        AdmissionRequest { version: &route.version, stable: route.stable.as_ref(), class, time }
    }

    /// Look up an idempotency key.
    fn look_up(
        &self,
        key: &str,
        codec: &impl Codec,
        body: &RequestBody,
    ) -> Result<Lookup, ApiError> {
        let selector = target::selector_text(&self.selector);
        let (context, body) = (codec.context(), codec.canonical(&body.bytes));
        let parts =
            [self.model.as_str().as_bytes(), selector.as_bytes(), context.as_bytes(), &body];
        self.edge.answers.look_up(self.caller.name(), key, idempotency::hash(&parts))
    }

    /// Whether the request is in the share of the model's requests that are captured.
    fn is_captured(&self, route: &Route) -> bool {
        let share = self.policy.capture_shares.get(&route.version.id().name).copied();
        share.is_some_and(|share| share > 0.0 && rand::rng().random_bool(share))
    }
}

impl Reply {
    /// The response over HTTP.
    fn into_response(self) -> Response {
        let Encoded { status, content_type, json_length, body } = &self.answer.encoded;
        let mut response = (*status, body.clone()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(length) = json_length {
            headers.insert(JSON_LENGTH_HEADER, HeaderValue::from(*length));
        }
        if self.is_replay {
            headers.insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
        }
        match self.comparison {
            Some(comparison) => comparison.attach_to(response),
            None => response,
        }
    }
}

/// The sticky key, by which a caller stays with a version, in a field of the body. Clients that do not
/// know their users leave it out, or send it empty.
fn sticky_key(field: &str, value: Option<FieldValue>) -> Result<Option<Vec<u8>>, ApiError> {
    match value {
        None | Some(FieldValue::Null) => Ok(None),
        Some(FieldValue::Text(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
        Some(FieldValue::Integer(number)) => Ok(Some(number.into_bytes())),
        Some(FieldValue::Other) => {
            Err(ApiError::malformed(format!("`{field}` must be a string or an integer")))
        }
    }
}

fn capture(answer: &StoredAnswer, request: Vec<u8>, request_id: &str) -> CapturedRequest {
    CapturedRequest {
        request_id: request_id.to_owned(),
        model: answer.version.name.to_string(),
        version: answer.version.version.to_string(),
        request,
        response: answer.encoded.body.to_vec(),
    }
}
