//! Whether a request may go on: its key, what the key is good for, how often it may ask.
//!
//! All of it is decided by the head of a request, before its body is read. A caller without a good key
//! costs a hash of what it sent, and is told nothing but that it has none.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::http::header::{AUTHORIZATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::Edge;
use super::error::{ApiError, ErrorCode};
use super::observe::Account;
use guesthouse_control::keys::{AuthFailure, Caller, Keys};
use guesthouse_control::rate::{Bucket, Rate, RateDecision};
use guesthouse_model::ModelName;
use guesthouse_runtime::clock;

/// The header that carries a key, beside `Authorization`.
const KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// Of the IETF's draft `ratelimit-headers`.
const POLICY_HEADER: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE_HEADER: HeaderName = HeaderName::from_static("ratelimit");

/// Whose key it is that the headers carry.
pub(crate) fn authenticate(keys: &Keys, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
    let caller = keys.authenticate(given(keys, headers)?, clock::now());
    caller.map_err(|_told_to_nobody| ApiError::unauthorized())
}

/// The same, if it is good for changing what is served.
pub(crate) fn administrator(keys: &Keys, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
    let caller = authenticate(keys, headers)?;
    permit(keys, caller.scopes().administers())?;
    Ok(caller)
}

fn permit(keys: &Keys, is_allowed: bool) -> Result<(), ApiError> {
    if is_allowed {
        return Ok(());
    }
    keys.failures().count(AuthFailure::Forbidden);
    Err(ApiError::new(ErrorCode::Forbidden, "the key is not good for this"))
}

/// The key in the headers. Two that are different are a mistake of the caller's, and not for us to choose
/// between: what stands between us and it may have looked at the other one.
fn given<'a>(keys: &Keys, headers: &'a HeaderMap) -> Result<Option<&'a [u8]>, ApiError> {
    let plain = headers.get_all(KEY_HEADER).iter().map(HeaderValue::as_bytes);
    let bearers = headers.get_all(AUTHORIZATION).iter().filter_map(bearer);
    let mut all = plain.chain(bearers);
    let first = all.next();
    if all.all(|other| Some(other) == first) {
        return Ok(first);
    }
    keys.failures().count(AuthFailure::Malformed);
    Err(ApiError::malformed("the request has two different keys"))
}

/// Whether there is one, good or not.
pub(super) fn carries_key(headers: &HeaderMap) -> bool {
    headers.contains_key(KEY_HEADER)
        || headers.get_all(AUTHORIZATION).iter().any(|it| bearer(it).is_some())
}

/// The key in `Authorization: Bearer KEY`; another scheme is somebody else's.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, key) = value.as_bytes().split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

impl Edge {
    /// Whose key the request carries.
    pub(super) fn authorize(&self, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
        authenticate(&self.keys, headers)
    }

    /// The same, for the line in the log as well.
    pub(super) fn identify(
        &self,
        headers: &HeaderMap,
        account: &mut Account,
    ) -> Result<Arc<Caller>, ApiError> {
        let caller = self.authorize(headers)?;
        account.caller = Some(caller.name().to_owned());
        Ok(caller)
    }

    /// Whose key the request carries, if it is good for any model.
    pub(super) fn authorize_for_some(&self, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
        let caller = self.authorize(headers)?;
        permit(&self.keys, caller.scopes().predicts_something())?;
        Ok(caller)
    }

    /// Whether the caller may know of a model and ask it.
    pub(super) fn permit(&self, caller: &Caller, model: &ModelName) -> Result<(), ApiError> {
        permit(&self.keys, caller.scopes().predicts(model))
    }

    /// Let a question about a model in, or not: whether its caller may know of the model, and how often it
    /// may ask.
    pub(super) fn admit_reader(
        &self,
        caller: &Caller,
        model: &ModelName,
        account: &mut Account,
    ) -> Result<(), ApiError> {
        self.permit(caller, model)?;
        Self::charge(caller, account)
    }

    /// The same of a question about all models that the key is good for.
    pub(super) fn admit_reader_of_all(
        &self,
        headers: &HeaderMap,
        account: &mut Account,
    ) -> Result<Arc<Caller>, ApiError> {
        let caller = self.authorize_for_some(headers)?;
        account.caller = Some(caller.name().to_owned());
        Self::charge(&caller, account)?;
        Ok(caller)
    }

    /// Let somebody read measurements of all models, or not.
    pub(super) fn admit_scraper(
        &self,
        headers: &HeaderMap,
        account: &mut Account,
    ) -> Result<(), ApiError> {
        let caller = self.identify(headers, account)?;
        let scopes = caller.scopes();
        permit(&self.keys, scopes.predicts_all() || scopes.administers())?;
        Self::charge(&caller, account)
    }

    /// Count a question about what is served as a request of the caller's key. It asks no model for
    /// anything, so that the models' own rates are for predictions alone.
    pub(super) fn charge(caller: &Caller, account: &mut Account) -> Result<(), ApiError> {
        caller.bucket().map_or(Ok(()), |bucket| account.allowance.note("key", bucket.take()))
    }

    /// Let a request for predictions in, or not: once for a batch, too, because how many rows it has
    /// is in its body, and this is there to spare us that. A caller's own limit comes first, so that who
    /// is over it takes nothing from the others.
    pub(super) fn admit(
        &self,
        caller: &Caller,
        model: &ModelName,
        allowance: &mut Allowance,
    ) -> Result<(), ApiError> {
        self.permit(caller, model)?;
        if let Some(bucket) = caller.bucket() {
            allowance.note("key", bucket.take())?;
        }
        if let Some(bucket) = self.model_rates.0.load().get(model) {
            allowance.note("model", bucket.take())?;
        }
        Ok(())
    }
}

/// How often all callers together may ask for predictions, by model: those of the configuration only.
#[derive(Debug, Default)]
pub struct ModelRates(ArcSwap<BTreeMap<ModelName, Arc<Bucket>>>);

impl ModelRates {
    /// These.
    pub fn of(rates: &BTreeMap<ModelName, Rate>) -> Self {
        let all = Self::default();
        all.replace(rates);
        all
    }

    /// These from now on. What is left of those that stay the same, stays.
    pub fn replace(&self, rates: &BTreeMap<ModelName, Rate>) {
        let old = self.0.load();
        let bucket = |(model, rate): (&ModelName, &Rate)| {
            let held = old.get(model).filter(|bucket| bucket.rate() == *rate);
            let bucket = held.map_or_else(|| Arc::new(Bucket::new(*rate)), Arc::clone);
            (model.clone(), bucket)
        };
        self.0.store(Arc::new(rates.iter().map(bucket).collect()));
    }
}

/// What the limits that a request met say of it: the key's, then the model's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allowance(Vec<(&'static str, RateDecision)>);

impl Allowance {
    fn note(&mut self, limit: &'static str, taken: RateDecision) -> Result<(), ApiError> {
        self.0.push((limit, taken));
        if taken.retry_after().is_none() {
            return Ok(());
        }
        let message = format!("too many requests for this {limit}");
        Err(ApiError::new(ErrorCode::RateLimited, message))
    }

    /// Tell the caller.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        let list = |member: &dyn Fn(&(&'static str, RateDecision)) -> String| {
            let members: Vec<_> = self.0.iter().map(member).collect();
            HeaderValue::try_from(members.join(", ")).ok().filter(|value| !value.is_empty())
        };
        let retry = self.0.iter().find_map(|(_, taken)| taken.retry_after());
        headers.extend(list(&|(limit, taken)| taken.policy(limit)).map(|it| (POLICY_HEADER, it)));
        headers.extend(list(&|(limit, taken)| taken.state(limit)).map(|it| (STATE_HEADER, it)));
        headers.extend(retry.map(|seconds| (RETRY_AFTER, seconds.into())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn a_key_comes_in_one_of_two_headers() {
        let keys = Keys::default();
        let given = |lines: &[(&'static str, &'static str)]| {
            let headers = headers(lines);
            given(&keys, &headers).map(|key| key.map(<[u8]>::to_vec)).map_err(|error| error.code)
        };
        let key = Ok(Some(b"k".to_vec()));
        assert_eq!(given(&[]), Ok(None));
        assert_eq!(given(&[("x-api-key", "k")]), key);
        for good in ["Bearer k", "bearer k", "BEARER  k "] {
            assert_eq!(given(&[("authorization", good)]), key, "{good}");
        }
        assert_eq!(given(&[("x-api-key", "k"), ("authorization", "Bearer k")]), key);
        // A proxy's own password is none of our business.
        assert_eq!(given(&[("x-api-key", "k"), ("authorization", "Basic azpr")]), key);
        assert_eq!(given(&[("authorization", "Basic azpr")]), Ok(None));
        assert_eq!(given(&[("authorization", "Bearer")]), Ok(None));
        for two in [
            &[("x-api-key", "k"), ("authorization", "Bearer l")][..],
            &[("authorization", "Bearer k"), ("authorization", "Bearer l")],
        ] {
            assert_eq!(given(two), Err(ErrorCode::MalformedRequest));
        }
        let mut twice = HeaderMap::new();
        twice.append(KEY_HEADER, HeaderValue::from_static("k"));
        twice.append(KEY_HEADER, HeaderValue::from_static("l"));
        assert!(super::given(&keys, &twice).is_err());
    }

    #[test]
    fn both_limits_are_told_and_the_one_that_refuses_says_when() {
        let bucket = |burst| Bucket::new(Rate::new(0.5, Some(burst)).unwrap());
        let (key, model) = (bucket(2), bucket(1));
        let mut first = Allowance::default();
        first.note("key", key.take()).unwrap();
        first.note("model", model.take()).unwrap();
        let mut told = HeaderMap::new();
        first.tell(&mut told);
        assert_eq!(told["ratelimit-policy"], "\"key\";q=2;w=4, \"model\";q=1;w=2");
        assert_eq!(told["ratelimit"], "\"key\";r=1;t=2, \"model\";r=0;t=2");
        assert!(!told.contains_key(RETRY_AFTER));
        let mut second = Allowance::default();
        second.note("key", key.take()).unwrap();
        let error = second.note("model", model.take()).unwrap_err();
        assert_eq!(error.code, ErrorCode::RateLimited);
        second.tell(&mut told);
        assert_eq!(told[RETRY_AFTER], "2");
        let mut none = HeaderMap::new();
        Allowance::default().tell(&mut none);
        assert!(none.is_empty());
    }
}
