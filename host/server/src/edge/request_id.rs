//! The id of a request: it names the request in its response and in the log.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use guesthouse_runtime::clock;

use super::error::ApiError;

/// Carries the id of a request and of its response.
pub(crate) const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is accepted from a caller, in bytes.
const MAX_LENGTH: usize = 128;

/// The id of a request: 1 to 128 visible ASCII characters.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(String);

impl RequestId {
    /// The id that a caller chose, if the text is a valid one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_valid = !text.is_empty()
            && text.len() <= MAX_LENGTH
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_valid.then(|| Self(text.to_owned()))
    }

    /// The error for a body whose `request_id` is not valid.
    pub(crate) fn malformed() -> ApiError {
        let message = "`request_id` must be a string of 1 to 128 visible ASCII characters";
        ApiError::malformed(message)
    }

    /// The id in the headers, or a new one if they have no valid id.
    pub(super) fn from_headers(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID_HEADER).and_then(|id| id.to_str().ok());
        given.and_then(Self::parse).unwrap_or_else(|| Self(clock::new_id().to_string()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn insert_into(&self, headers: &mut HeaderMap) {
        // Visible ASCII is valid in every header.
        if let Ok(value) = HeaderValue::from_str(&self.0) {
            headers.insert(REQUEST_ID_HEADER, value);
        }
    }
}
