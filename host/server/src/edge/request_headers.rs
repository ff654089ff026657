//! The headers that a prediction request is routed and timed by. gRPC calls have the same ones as metadata.

use std::num::NonZeroU32;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};

use super::error::ApiError;
use super::request_log::VERSION_HEADER;
use super::target::parse_selector;
use crate::config::Sticky;
use guesthouse_model::Selector;

const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// The timeout of a gRPC call.
const GRPC_TIMEOUT_HEADER: HeaderName = HeaderName::from_static("grpc-timeout");

/// The version that the caller asks for: by a header, or by the path.
pub(super) fn selector(headers: &HeaderMap, from_path: Selector) -> Result<Selector, ApiError> {
    let Some(value) = headers.get(VERSION_HEADER) else { return Ok(from_path) };
    if from_path != Selector::Default {
        let message = "the path names a version, so X-Model-Version must not";
        return Err(ApiError::malformed(message));
    }
    parse_selector(value.to_str().unwrap_or_default())
}

/// The sticky key, if the model's sticky header carries one.
pub(super) fn sticky_key(sticky: &Sticky, headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(sticky.header.as_deref()?)?;
    // Proxies send it empty for callers whom they do not know: those are many callers, not one.
    Some(value.as_bytes().to_vec()).filter(|value| !value.is_empty())
}

/// How long the caller waits for its answer, if it says so: the shorter of both headers.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
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

/// The timeout of a gRPC call, if its caller has set one.
pub(super) fn grpc_timeout(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(GRPC_TIMEOUT_HEADER) else { return Ok(None) };
    let time = value.to_str().ok().and_then(parse_grpc_timeout);
    let malformed = || ApiError::malformed("grpc-timeout must be up to 8 digits and a unit");
    time.map(Some).ok_or_else(malformed)
}

fn parse_grpc_timeout(text: &str) -> Option<Duration> {
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

/// Read all of these headers, for the fuzzer.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(headers: &HeaderMap) {
    let time = timeout(headers);
    assert!(
        time.is_ok_and(|time| time.is_none_or(|time| !time.is_zero()))
            || headers.contains_key(TIMEOUT_HEADER)
            || headers.contains_key(GRPC_TIMEOUT_HEADER)
    );
    let _ = selector(headers, Selector::Default);
    let sticky = Sticky { header: Some("x-user-id".to_owned()), field: None };
    assert!(sticky_key(&sticky, headers).is_none_or(|key| !key.is_empty()));
}
