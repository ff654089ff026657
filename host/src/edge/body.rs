//! Bodies of requests: read within limits, then taken apart into records.

use std::ops::Deref;
use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt as _;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{ApiError, ErrorCode};
use super::json::{self, Refusal};
use super::observe::RequestId;
use crate::config::Limits;
use crate::model::Signature;

/// Values by input.
pub(super) type Record = Map<String, Value>;

/// Whether a body holds one record or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `{"text": "…"}`
    Single,
    /// `{"instances": [{"text": "…"}, …]}`, or `{"texts": ["…", …]}` for a model whose one
    /// required input is `text`.
    Batch,
}

/// The bytes of a body, counted among those in flight until it is dropped.
pub(super) struct Received {
    bytes: Vec<u8>,
    permit: OwnedSemaphorePermit,
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Received {
    fn of(bodies: &Arc<Semaphore>) -> Result<Self, ApiError> {
        Ok(Self { bytes: Vec::new(), permit: permit(bodies, 0)? })
    }

    /// Count this many bytes, if they are not counted yet.
    fn reserve(&mut self, bodies: &Arc<Semaphore>, bytes: usize) -> Result<(), ApiError> {
        let more = bytes.saturating_sub(self.permit.num_permits());
        if more > 0 {
            self.permit.merge(permit(bodies, more)?);
        }
        Ok(())
    }
}

fn permit(bodies: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let overloaded = || ApiError::new(ErrorCode::Overloaded, "too many bodies are in flight");
    let bytes = u32::try_from(bytes).map_err(|_error| overloaded())?;
    Arc::clone(bodies).try_acquire_many_owned(bytes).map_err(|_error| overloaded())
}

/// The whole body, if it is JSON by its headers and within the limits; `bodies` has a permit for each
/// byte that may be in flight.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    limits: &Limits,
    bodies: &Arc<Semaphore>,
) -> Result<Received, ApiError> {
    check_headers(headers)?;
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let announced = length.and_then(|length| length.parse().ok()).unwrap_or(0_u64);
    let announced = usize::try_from(announced).unwrap_or(usize::MAX);
    if announced > limits.body_bytes {
        return Err(too_large(limits));
    }
    let mut received = Received::of(bodies)?;
    // Either there is room for all of it, or not a byte is read.
    received.reserve(bodies, announced)?;
    received.bytes.reserve_exact(announced);
    match tokio::time::timeout(limits.body_time, collect(body, limits, bodies, &mut received)).await
    {
        Ok(outcome) => outcome.map(|()| received),
        Err(_elapsed) => {
            Err(ApiError::new(ErrorCode::RequestTimeout, "the body did not come in time"))
        }
    }
}

fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |message| Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    if let Some(media_type) = headers.get(CONTENT_TYPE) {
        let essence = media_type.to_str().unwrap_or_default();
        let essence = essence.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return unsupported("the Content-Type must be application/json");
        }
    }
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => unsupported("the body must not be compressed"),
        _ => Ok(()),
    }
}

fn too_large(limits: &Limits) -> ApiError {
    let message = format!("the body is over {} bytes", limits.body_bytes);
    ApiError::new(ErrorCode::PayloadTooLarge, message)
}

async fn collect(
    mut body: Body,
    limits: &Limits,
    bodies: &Arc<Semaphore>,
    received: &mut Received,
) -> Result<(), ApiError> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_error| ApiError::malformed("the body was cut off"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let length = received.bytes.len().saturating_add(data.len());
        if length > limits.body_bytes {
            return Err(too_large(limits));
        }
        // For a body that came without its length.
        received.reserve(bodies, length)?;
        received.bytes.extend_from_slice(&data);
    }
    Ok(())
}

/// The object that a body is, without its `request_id`, which goes to where it is told of. One with
/// more rows or values than are allowed is not read to its end.
pub(super) fn parse(
    bytes: &[u8],
    form: Form,
    limits: &Limits,
    request_id: &mut RequestId,
) -> Result<Record, ApiError> {
    let max_rows = match form {
        Form::Single => None,
        // Whatever array is in a field of a batch, it is the rows or a mistake.
        Form::Batch => Some(limits.batch_rows),
    };
    // serde_json refuses nesting deeper than 128 and invalid UTF-8 by itself. Its own words may
    // repeat the input, so only the place is told.
    let mut object: Record = match json::parse(bytes, max_rows) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return Err(ApiError::malformed("the body must be a JSON object")),
        Err(Refusal::TooManyRows) => {
            let message = format!("the batch has over {} rows", limits.batch_rows);
            return Err(ApiError::new(ErrorCode::UnacceptableInput, message));
        }
        Err(Refusal::TooManyValues) => {
            let message = format!("the body has over {} values", json::MAX_VALUES);
            return Err(ApiError::new(ErrorCode::PayloadTooLarge, message));
        }
        Err(Refusal::Syntax(error)) => {
            let what = match error.classify() {
                serde_json::error::Category::Eof => "ends too early",
                _ => "is not valid JSON",
            };
            let (line, column) = (error.line(), error.column());
            let message = format!("the body {what} (line {line}, column {column})");
            return Err(ApiError::malformed(message));
        }
    };
    match object.remove("request_id").map(|id| id.as_str().and_then(RequestId::parse)) {
        None => {}
        Some(Some(id)) => *request_id = id,
        Some(None) => {
            let message = "`request_id` must be a string of 1 to 128 visible ASCII characters";
            return Err(ApiError::malformed(message));
        }
    }
    Ok(object)
}

/// Take a field away that stands beside the inputs and is none of them.
pub(super) fn take_beside_inputs(
    object: &mut Record,
    field: &str,
    form: Form,
    signature: &Signature,
) -> Option<Value> {
    let is_input = signature.inputs.iter().any(|input| input.name == field);
    // A batch has its rows in an array, whatever that is called.
    let is_rows = object.get(field).is_some_and(Value::is_array);
    let stays = match form {
        Form::Single => is_input,
        Form::Batch => is_rows,
    };
    if stays { None } else { object.remove(field) }
}

/// The records of a body; their values are checked against the signature later.
pub(super) fn rows(
    object: Record,
    form: Form,
    signature: &Signature,
) -> Result<Vec<Record>, ApiError> {
    match form {
        Form::Single => Ok(vec![object]),
        Form::Batch => batch_rows(object, signature),
    }
}

fn batch_rows(mut object: Record, signature: &Signature) -> Result<Vec<Record>, ApiError> {
    let plural = plural_key(signature);
    let expected = || match &plural {
        Some((key, _)) => format!("a batch is either `instances` or `{key}`, and nothing else"),
        None => "a batch is `instances` and nothing else".to_owned(),
    };
    let (key, value) = match (object.len(), object.keys().next().cloned()) {
        (1, Some(key)) => (key.clone(), object.remove(&key)),
        _ => return Err(ApiError::malformed(expected())),
    };
    let rows: Vec<_> = match (value, &plural) {
        (Some(Value::Array(values)), _) if key == "instances" => values
            .into_iter()
            .enumerate()
            .map(|(row, value)| match value {
                Value::Object(record) => Ok(record),
                _ => Err(ApiError::malformed(format!("row {row} must be an object"))),
            })
            .collect::<Result<_, _>>()?,
        (Some(Value::Array(values)), Some((plural, input))) if key == *plural => {
            let record = |value| Map::from_iter([((*input).to_owned(), value)]);
            values.into_iter().map(record).collect()
        }
        (Some(_), Some((plural, _))) if key == *plural => {
            return Err(ApiError::malformed(format!("`{plural}` must be an array")));
        }
        (Some(_), _) if key == "instances" => {
            return Err(ApiError::malformed("`instances` must be an array"));
        }
        _ => return Err(ApiError::malformed(expected())),
    };
    if rows.is_empty() {
        return Err(ApiError::malformed("the batch is empty"));
    }
    Ok(rows)
}

/// The short form of a batch, for a signature with one required input: its name with an `s`.
fn plural_key(signature: &Signature) -> Option<(String, &str)> {
    let mut required = signature.required_inputs();
    let only = required.next()?;
    match required.next() {
        None => Some((format!("{}s", only.name), only.name.as_str())),
        Some(_) => None,
    }
}
