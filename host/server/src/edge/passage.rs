//! A request for predictions on its way to a version, whatever protocol it came by: who asks, what for,
//! whether it is let in, and where it goes.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName};
use rand::RngExt as _;

use super::body::Form;
use super::error::ApiError;
use super::observe::{Account, VERSION_HEADER};
use super::predict::{Target, parse_selector};
use super::{Edge, Policy};
use crate::config::Sticky;
use guesthouse_control::keys::Caller;
use guesthouse_control::rollout::WHOLE;
use guesthouse_control::router::{self, Draw, Role, Route};
use guesthouse_model::{ModelName, Selector};
use guesthouse_runtime::version::CallerId;
use guesthouse_runtime::version::admission::{Admitted, Class, Knock};

const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// What gRPC has instead.
const GRPC_TIMEOUT_HEADER: HeaderName = HeaderName::from_static("grpc-timeout");

/// Of a model of which the configuration says nothing.
const NO_STICKY: Sticky = Sticky { header: None, field: None };

/// What is asked for before anything is read of the request.
pub(super) struct Asked<'a> {
    pub(super) edge: &'a Edge,
    pub(super) policy: &'a Policy,
    pub(super) target: Target,
    pub(super) form: Form,
}

/// A request that has been let in.
pub(super) struct Passage<'a> {
    pub(super) edge: &'a Edge,
    pub(super) policy: &'a Policy,
    pub(super) caller: Arc<Caller>,
    pub(super) model: ModelName,
    pub(super) selector: Selector,
    pub(super) form: Form,
    sticky: &'a Sticky,
    wanted_time: Option<Duration>,
    /// Whether its caller is told from others.
    has_key: bool,
    draw: Option<Draw>,
}

/// The version that is to answer a request, if it takes it.
struct Found {
    route: Route,
    /// How long the caller waits.
    time: Duration,
    class: Class,
}

/// The version that answers a request.
pub(super) struct Entered {
    pub(super) route: Route,
    pub(super) deadline: Instant,
    _admitted: Admitted,
}

impl<'a> Passage<'a> {
    /// By the head of a request: who asks, and whether it may.
    pub(super) fn begin(
        asked: Asked<'a>,
        headers: &HeaderMap,
        account: &mut Account,
    ) -> Result<Self, ApiError> {
        let Asked { edge, policy, target, form } = asked;
        let caller = edge.identify(headers, account)?;
        let (model, selector) = target?;
        edge.admit(&caller, &model, &mut account.allowance)?;
        let selector = header_selector(headers, selector)?;
        let wanted_time = wanted_time(headers)?;
        let sticky = policy.sticky.get(&model).unwrap_or(&NO_STICKY);
        let (has_key, draw) = (false, None);
        let mut passage = Self {
            edge,
            policy,
            caller,
            model,
            selector,
            form,
            sticky,
            wanted_time,
            has_key,
            draw,
        };
        let key = header_key(sticky, headers);
        if key.is_some() || sticky.field.is_none() {
            passage.tell(key.as_deref());
        }
        Ok(passage)
    }

    /// What is said beside the inputs to tell the caller from others.
    pub(super) fn field(&self) -> Option<&'a str> {
        self.sticky.field.as_deref()
    }

    /// Whether only that says where the request goes.
    pub(super) fn is_told_by_body(&self) -> bool {
        self.draw.is_none()
    }

    /// What tells the caller from others, or that nothing does.
    pub(super) fn tell(&mut self, key: Option<&[u8]>) {
        self.has_key = key.is_some();
        self.draw = Some(draw(&self.model, &self.caller, key));
    }

    /// Where it is known where the request goes: tell one that has no chance so before it has sent
    /// everything.
    pub(super) fn knock(&self, account: &mut Account) -> Result<(), ApiError> {
        if self.is_told_by_body() {
            return Ok(());
        }
        let found = self.find(Instant::now())?;
        account.route_to(&found.route);
        Ok(found.knock().check()?)
    }

    /// The version that answers the request, which was complete at that time.
    pub(super) fn enter(
        &self,
        complete: Instant,
        account: &mut Account,
    ) -> Result<Entered, ApiError> {
        let found = self.find(complete)?;
        account.route_to(&found.route);
        let admitted = found.knock().enter()?;
        let Found { route, time, .. } = found;
        Ok(Entered { route, deadline: complete + time, _admitted: admitted })
    }

    /// Who asks, for the versions that are asked.
    pub(super) fn caller_id(&self) -> CallerId {
        let of_draw = self.draw.and_then(|draw| draw.caller);
        of_draw.unwrap_or_else(|| CallerId::new(self.caller.name(), None))
    }

    /// Count where the request goes.
    pub(super) fn count(&self, route: &Route) {
        let is_random = !self.has_key && route.is_drawn;
        self.edge.traffic.count(route.version.id(), route.reason.as_str(), is_random);
    }

    /// Whether the request is one of those that the operator wants to keep.
    pub(super) fn is_captured(&self, route: &Route) -> bool {
        let share = self.policy.capture_shares.get(&route.version.id().name).copied();
        share.is_some_and(|share| share > 0.0 && rand::rng().random_bool(share))
    }

    fn find(&self, now: Instant) -> Result<Found, ApiError> {
        let snapshot = self.edge.registry.snapshot();
        let draw = self.draw.unwrap_or_else(|| draw(&self.model, &self.caller, None));
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

/// Where the request falls: for the same caller always in the same place.
fn draw(model: &ModelName, caller: &Caller, key: Option<&[u8]>) -> Draw {
    let place = match key {
        Some(key) => router::bucket(model, key),
        None => rand::rng().random_range(0..WHOLE),
    };
    let caller = CallerId::new(caller.name(), key);
    Draw { split: place, shadow: rand::rng().random_range(0..WHOLE), caller: Some(caller) }
}

/// How long the caller is going to wait, if it says so.
fn wanted_time(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let plain = headers.get(TIMEOUT_HEADER).map(|value| {
        let milliseconds = value.to_str().ok().and_then(|value| value.parse::<NonZeroU32>().ok());
        milliseconds
            .map(|milliseconds| Duration::from_millis(milliseconds.get().into()))
            .ok_or_else(|| {
                ApiError::malformed("X-Request-Timeout-Ms must be a whole number from 1 on")
            })
    });
    let (plain, grpc) = (plain.transpose()?, grpc_timeout(headers)?);
    Ok(plain.into_iter().chain(grpc).min())
}

/// How long the caller of a gRPC method is going to wait, if it says so.
pub(super) fn grpc_timeout(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(GRPC_TIMEOUT_HEADER) else { return Ok(None) };
    let time = value.to_str().ok().and_then(grpc_time);
    let malformed = || ApiError::malformed("grpc-timeout must be up to 8 digits and a unit");
    time.map(Some).ok_or_else(malformed)
}

/// A time as gRPC writes it: up to eight digits and a unit.
fn grpc_time(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Read the headers that a prediction reads.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz_headers(headers: &HeaderMap) {
    let time = wanted_time(headers);
    assert!(
        time.is_ok_and(|time| time.is_none_or(|time| !time.is_zero()))
            || headers.contains_key(TIMEOUT_HEADER)
            || headers.contains_key(GRPC_TIMEOUT_HEADER)
    );
    let _ = header_selector(headers, Selector::Default);
    let sticky = Sticky { header: Some("x-user-id".to_owned()), field: None };
    assert!(header_key(&sticky, headers).is_none_or(|key| !key.is_empty()));
}
