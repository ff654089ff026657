//! Rate limits of requests: of a key, and of all callers of a model together.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use guesthouse_control::rate::{Bucket, Rate, RateDecision};
use guesthouse_model::ModelName;

use super::error::{ApiError, ErrorCode};

/// Of the IETF's draft `ratelimit-headers`.
const POLICY_HEADER: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE_HEADER: HeaderName = HeaderName::from_static("ratelimit");

/// The configured rates of models, each for all of its callers together.
#[derive(Debug, Default)]
pub struct ModelRates(ArcSwap<BTreeMap<ModelName, Arc<Bucket>>>);

impl ModelRates {
    /// Full buckets with these rates.
    pub fn new(rates: &BTreeMap<ModelName, Rate>) -> Self {
        let all = Self::default();
        all.replace(rates);
        all
    }

    /// Change the rates. A bucket whose rate stays the same keeps its level.
    pub fn replace(&self, rates: &BTreeMap<ModelName, Rate>) {
        let old = self.0.load();
        let bucket = |(model, rate): (&ModelName, &Rate)| {
            let kept = old.get(model).filter(|bucket| bucket.rate() == *rate);
            let bucket = kept.map_or_else(|| Arc::new(Bucket::new(*rate)), Arc::clone);
            (model.clone(), bucket)
        };
        self.0.store(Arc::new(rates.iter().map(bucket).collect()));
    }

    /// The bucket of a model, if it has a rate.
    pub(super) fn bucket(&self, model: &ModelName) -> Option<Arc<Bucket>> {
        self.0.load().get(model).map(Arc::clone)
    }
}

/// The state of the limits that a request was charged to: the key's, then the model's.
#[derive(Debug, Clone, Default)]
pub(crate) struct RateLimitReport(Vec<(&'static str, RateDecision)>);

impl RateLimitReport {
    /// Charge the request to a limit.
    ///
    /// # Errors
    /// The limit is exhausted.
    pub(super) fn charge(&mut self, limit: &'static str, bucket: &Bucket) -> Result<(), ApiError> {
        let taken = bucket.take();
        let is_exhausted = taken.retry_after().is_some();
        self.0.push((limit, taken));
        if !is_exhausted {
            return Ok(());
        }
        let message = format!("too many requests for this {limit}");
        Err(ApiError::new(ErrorCode::RateLimited, message))
    }

    /// Write the headers of the response.
    pub(super) fn write_headers(&self, headers: &mut HeaderMap) {
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

    #[test]
    fn headers_show_both_limits_and_when_to_retry() {
        let bucket = |burst| Bucket::new(Rate::new(0.5, Some(burst)).unwrap());
        let (key, model) = (bucket(2), bucket(1));
        let mut first = RateLimitReport::default();
        first.charge("key", &key).unwrap();
        first.charge("model", &model).unwrap();
        let mut headers = HeaderMap::new();
        first.write_headers(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"key\";q=2;w=4, \"model\";q=1;w=2");
        assert_eq!(headers["ratelimit"], "\"key\";r=1;t=2, \"model\";r=0;t=2");
        assert!(!headers.contains_key(RETRY_AFTER));
        let mut second = RateLimitReport::default();
        second.charge("key", &key).unwrap();
        let error = second.charge("model", &model).unwrap_err();
        assert_eq!(error.code, ErrorCode::RateLimited);
        second.write_headers(&mut headers);
        assert_eq!(headers[RETRY_AFTER], "2");
        let mut none = HeaderMap::new();
        RateLimitReport::default().write_headers(&mut none);
        assert!(none.is_empty());
    }
}
