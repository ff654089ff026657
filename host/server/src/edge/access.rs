//! Authentication and authorization of requests, and the rates that they are charged to.
//!
//! The head of a request decides all of it, before its body is read. To reject a request without a valid
//! key costs one hash of what it sent; the response does not say what is wrong with the key.

use std::sync::Arc;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use guesthouse_control::keys::{AuthFailure, Caller, Keys};
use guesthouse_model::ModelName;
use guesthouse_runtime::clock;

use super::error::{ApiError, ErrorCode};
use super::request_log::RequestLog;
use super::state::Edge;

/// Carries a key; `Authorization` may carry it as well.
const KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// Authenticate the key in the headers.
pub(crate) fn authenticate(keys: &Keys, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
    let caller = keys.authenticate(key_in(keys, headers)?, clock::now());
    caller.map_err(|_not_disclosed| ApiError::unauthorized())
}

/// Authenticate the key in the headers, which must have the scope `admin`.
pub(crate) fn authenticate_admin(
    keys: &Keys,
    headers: &HeaderMap,
) -> Result<Arc<Caller>, ApiError> {
    let caller = authenticate(keys, headers)?;
    check_scope(keys, caller.scopes().administers())?;
    Ok(caller)
}

fn check_scope(keys: &Keys, is_in_scope: bool) -> Result<(), ApiError> {
    if is_in_scope {
        return Ok(());
    }
    keys.failures().count(AuthFailure::Forbidden);
    Err(ApiError::new(ErrorCode::Forbidden, "the key has no scope for this"))
}

/// The key in the headers. Two different keys are an error: a proxy in front of this server may have
/// checked the other one.
fn key_in<'a>(keys: &Keys, headers: &'a HeaderMap) -> Result<Option<&'a [u8]>, ApiError> {
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

/// Whether the headers have a key, valid or not.
pub(super) fn has_key(headers: &HeaderMap) -> bool {
    headers.contains_key(KEY_HEADER)
        || headers.get_all(AUTHORIZATION).iter().any(|value| bearer(value).is_some())
}

/// The key in `Authorization: Bearer KEY`. Other schemes are ignored: they may be for a proxy.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, key) = value.as_bytes().split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

impl Edge {
    /// Authenticate a request whose caller is not logged.
    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
        authenticate(&self.keys, headers)
    }

    /// Authenticate a request, and log its caller.
    pub(super) fn identify(
        &self,
        headers: &HeaderMap,
        log: &mut RequestLog,
    ) -> Result<Arc<Caller>, ApiError> {
        let caller = self.authenticate(headers)?;
        log.caller = Some(caller.name().to_owned());
        Ok(caller)
    }

    /// Authenticate a request of an operator, and log it.
    pub(super) fn identify_admin(
        &self,
        headers: &HeaderMap,
        log: &mut RequestLog,
    ) -> Result<Arc<Caller>, ApiError> {
        let caller = authenticate_admin(&self.keys, headers)?;
        log.caller = Some(caller.name().to_owned());
        Ok(caller)
    }

    /// Authenticate a request whose key must be good for some model.
    pub(super) fn authenticate_for_any_model(
        &self,
        headers: &HeaderMap,
    ) -> Result<Arc<Caller>, ApiError> {
        let caller = self.authenticate(headers)?;
        check_scope(&self.keys, caller.scopes().predicts_something())?;
        Ok(caller)
    }

    /// Check that the caller may use a model, and so learn that it exists.
    pub(super) fn check_model(&self, caller: &Caller, model: &ModelName) -> Result<(), ApiError> {
        check_scope(&self.keys, caller.scopes().predicts(model))
    }

    /// Authorize a request for information about one model, and charge it to the key's rate.
    pub(super) fn admit_reader(
        &self,
        caller: &Caller,
        model: &ModelName,
        log: &mut RequestLog,
    ) -> Result<(), ApiError> {
        self.check_model(caller, model)?;
        Self::charge(caller, log)
    }

    /// Authorize a request for information about all models of the key, and charge it to the key's rate.
    pub(super) fn admit_reader_of_all(
        &self,
        headers: &HeaderMap,
        log: &mut RequestLog,
    ) -> Result<Arc<Caller>, ApiError> {
        let caller = self.authenticate_for_any_model(headers)?;
        log.caller = Some(caller.name().to_owned());
        Self::charge(&caller, log)?;
        Ok(caller)
    }

    /// Authorize a request for the metrics of all models, and charge it to the key's rate.
    pub(super) fn admit_scraper(
        &self,
        headers: &HeaderMap,
        log: &mut RequestLog,
    ) -> Result<(), ApiError> {
        let caller = self.identify(headers, log)?;
        let scopes = caller.scopes();
        check_scope(&self.keys, scopes.predicts_all() || scopes.administers())?;
        Self::charge(&caller, log)
    }

    /// Charge a request to the key's rate. The models' own rates are for predictions alone.
    pub(super) fn charge(caller: &Caller, log: &mut RequestLog) -> Result<(), ApiError> {
        caller.bucket().map_or(Ok(()), |bucket| log.rate_limits.charge("key", bucket))
    }

    /// Authorize a prediction, and charge it to the rates of the key and of the model. A batch counts
    /// once, because its rows are counted only when its body is read. The key's rate comes first, so that
    /// a caller that exceeds its own rate takes nothing from other callers.
    pub(super) fn admit_prediction(
        &self,
        caller: &Caller,
        model: &ModelName,
        log: &mut RequestLog,
    ) -> Result<(), ApiError> {
        self.check_model(caller, model)?;
        Self::charge(caller, log)?;
        match self.model_rates.bucket(model) {
            Some(bucket) => log.rate_limits.charge("model", &bucket),
            None => Ok(()),
        }
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
    fn a_key_is_in_one_of_two_headers() {
        let keys = Keys::default();
        let parse = |lines: &[(&'static str, &'static str)]| {
            let headers = headers(lines);
            key_in(&keys, &headers).map(|key| key.map(<[u8]>::to_vec)).map_err(|error| error.code)
        };
        let key = Ok(Some(b"k".to_vec()));
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&[("x-api-key", "k")]), key);
        for good in ["Bearer k", "bearer k", "BEARER  k "] {
            assert_eq!(parse(&[("authorization", good)]), key, "{good}");
        }
        assert_eq!(parse(&[("x-api-key", "k"), ("authorization", "Bearer k")]), key);
        // A proxy's own password is none of our business.
        assert_eq!(parse(&[("x-api-key", "k"), ("authorization", "Basic azpr")]), key);
        assert_eq!(parse(&[("authorization", "Basic azpr")]), Ok(None));
        assert_eq!(parse(&[("authorization", "Bearer")]), Ok(None));
        for two in [
            &[("x-api-key", "k"), ("authorization", "Bearer l")][..],
            &[("authorization", "Bearer k"), ("authorization", "Bearer l")],
        ] {
            assert_eq!(parse(two), Err(ErrorCode::MalformedRequest));
        }
        let mut twice = HeaderMap::new();
        twice.append(KEY_HEADER, HeaderValue::from_static("k"));
        twice.append(KEY_HEADER, HeaderValue::from_static("l"));
        assert!(super::key_in(&keys, &twice).is_err());
    }
}
