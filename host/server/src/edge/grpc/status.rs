//! Errors as gRPC statuses, with details in the messages of `google.rpc`.

use std::collections::HashMap;

use axum::response::{IntoResponse as _, Response};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::edge::error::{ApiError, ErrorCode};

/// The domain of the error codes in the details.
const DOMAIN: &str = "guesthouse";

/// Limits on what goes into the trailers. Clients accept some 8 KiB, in base64, and lose the status if there
/// is more.
const MAX_MESSAGE: usize = 1024;
const MAX_VIOLATIONS: usize = 10;
const MAX_REASON: usize = 200;

/// The status of an error.
pub(super) fn from_error(error: &ApiError) -> Status {
    let mut details = ErrorDetails::with_error_info(error.code.as_str(), DOMAIN, HashMap::new());
    if error.code.has_retry_delay() {
        details.set_retry_info(Some(error.retry_delay()));
    }
    for detail in error.details.iter().take(MAX_VIOLATIONS) {
        let field = format!("rows[{}].{}", detail.row, detail.field);
        details.add_bad_request_violation(field, clip(&detail.reason, MAX_REASON));
    }
    Status::with_error_details(error.code.grpc(), clip(&error.message, MAX_MESSAGE), details)
}

/// The response to a call that is rejected before its method is called.
pub(super) fn rejection(error: &ApiError) -> Response {
    let mut response = from_error(error).into_http::<axum::body::Body>().into_response();
    response.extensions_mut().insert(error.clone());
    response
}

fn clip(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

/// The error for a status of the library. Its own messages are about its implementation, and it has
/// another code for messages that are too large.
pub(super) fn library_error(code: Code) -> Option<ApiError> {
    Some(match code {
        Code::Ok => return None,
        Code::OutOfRange | Code::ResourceExhausted => {
            ApiError::new(ErrorCode::PayloadTooLarge, "the message is over the limit")
        }
        Code::Unimplemented => ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "the grpc-encoding must be one of gzip, deflate and identity",
        ),
        _ => ApiError::malformed("the message is malformed"),
    })
}

/// The name of a status in the gRPC specification.
pub(super) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_error_fits_into_the_trailers() {
        let detail = |row| crate::edge::error::Detail {
            row,
            field: "f".repeat(64),
            reason: "ü".repeat(100_000),
        };
        let mut error = ApiError::new(ErrorCode::UnacceptableInput, "ä".repeat(100_000));
        error.details = (0..1000).map(detail).collect();
        let status = from_error(&error);
        let mut headers = axum::http::HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        let bytes: usize = headers.values().map(axum::http::HeaderValue::len).sum();
        assert!(bytes < 15_000, "{bytes}");
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "unacceptable_input");
        assert_eq!(details.bad_request().unwrap().field_violations.len(), MAX_VIOLATIONS);
    }

    #[test]
    fn every_code_has_its_name_in_the_specification() {
        for code in ErrorCode::ALL {
            assert_ne!(name(code.grpc()), "OK", "{}", code.as_str());
            let words = name(code.grpc()).to_lowercase().replace('_', "");
            assert_eq!(words, format!("{:?}", code.grpc()).to_lowercase());
        }
    }
}
