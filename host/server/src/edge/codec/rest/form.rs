//! Bodies other than JSON: forms (`multipart/form-data`), whose parts are inputs, and the bytes of one input.
//!
//! A part for an input of byte strings is used as it is; a part for any other input is parsed as JSON. A file
//! therefore needs no base64. The content type and the file name of a part are ignored. The number of parts,
//! the size of their headers, and the values of their JSON are limited.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use axum::body::{Body, Bytes};
use multer::Multipart;
use serde_json::Value;

use crate::config::Limits;
use crate::edge::codec::Multiplicity;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::json::{self, JsonError};
use crate::edge::request_id::RequestId;
use guesthouse_model::record::{InputRow, InputValue};
use guesthouse_model::{Datatype, Field, Signature};

/// The longest boundary, in RFC 2046.
const MAX_BOUNDARY: usize = 70;

/// The most parts of a form that is one row: the most inputs of a signature, and other fields. A form that is
/// a batch may have as many parts as the batch may have rows, and other fields.
const MAX_PARTS_OF_ROW: usize = 1024 + OTHER_FIELDS;

/// Fields that are not inputs: the request id, the idempotency key, and the sticky key.
const OTHER_FIELDS: usize = 3;

/// The most bytes in the headers of a part: name, file name and type need less.
const MAX_HEADER_BYTES: usize = 8 << 10;

/// A part of a form.
pub(in crate::edge) struct Part {
    pub(in crate::edge) name: String,
    pub(in crate::edge) data: Bytes,
}

/// The boundary in a content type.
pub(super) fn boundary(content_type: &str) -> Result<String, ApiError> {
    let boundary = multer::parse_boundary(content_type).ok();
    boundary
        .filter(|boundary| (1..=MAX_BOUNDARY).contains(&boundary.len()))
        .ok_or_else(|| ApiError::malformed("the Content-Type has no boundary"))
}

/// Parse the parts of a form. A part `request_id` replaces the id of the request.
pub(super) fn parse(
    bytes: &Bytes,
    boundary: &str,
    multiplicity: Multiplicity,
    limits: &Limits,
    request_id: &mut RequestId,
) -> Result<Vec<Part>, ApiError> {
    let most = match multiplicity {
        Multiplicity::Single => MAX_PARTS_OF_ROW,
        Multiplicity::Batch => limits.batch_rows.saturating_add(OTHER_FIELDS),
    };
    let read = read(bytes.clone(), boundary, most);
    // The whole form is in memory, so a reader that waits has found no end.
    let mut context = Context::from_waker(Waker::noop());
    let parts = match pin!(read).poll(&mut context) {
        Poll::Ready(parts) => parts?,
        Poll::Pending => return Err(malformed()),
    };
    let (ids, parts): (Vec<_>, Vec<_>) =
        parts.into_iter().partition(|part| part.name == "request_id");
    match &ids[..] {
        [] => {}
        [id] => *request_id = parse_id(&id.data)?,
        _ => return Err(ApiError::malformed("there is more than one part `request_id`")),
    }
    Ok(parts)
}

fn parse_id(data: &[u8]) -> Result<RequestId, ApiError> {
    let id = str::from_utf8(data).ok().and_then(RequestId::parse);
    id.ok_or_else(RequestId::malformed)
}

fn malformed() -> ApiError {
    ApiError::malformed("the body is not a complete form with the boundary of its Content-Type")
}

async fn read(bytes: Bytes, boundary: &str, most: usize) -> Result<Vec<Part>, ApiError> {
    let stream = Body::from(bytes).into_data_stream();
    let mut form = Multipart::new(stream, boundary);
    let mut parts = Vec::new();
    while let Some(mut field) = form.next_field().await.map_err(|_error| malformed())? {
        if parts.len() == most {
            let message = format!("the form has over {most} parts");
            return Err(ApiError::new(ErrorCode::UnacceptableInput, message));
        }
        let headers = field.headers().iter();
        let length = |(name, value): (&axum::http::HeaderName, &axum::http::HeaderValue)| {
            name.as_str().len() + value.len()
        };
        if headers.map(length).sum::<usize>() > MAX_HEADER_BYTES {
            let message = format!("a part has over {MAX_HEADER_BYTES} bytes of headers");
            return Err(ApiError::malformed(message));
        }
        let Some(name) = field.name().map(str::to_owned) else {
            return Err(ApiError::malformed("a part has no name"));
        };
        let mut data = Bytes::new();
        while let Some(chunk) = field.chunk().await.map_err(|_error| malformed())? {
            // Usually there is one chunk, because the whole form is in memory.
            data = if data.is_empty() { chunk } else { [data, chunk].concat().into() };
        }
        parts.push(Part { name, data });
    }
    Ok(parts)
}

/// A row that is not a JSON object.
#[derive(Debug)]
pub(crate) struct FormRow(Vec<(String, FormValue)>);

#[derive(Debug)]
enum FormValue {
    Raw(Bytes),
    Json(Value),
}

impl InputRow for FormRow {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn value(&self, name: &str) -> Option<InputValue<'_>> {
        let (_, value) = self.0.iter().find(|(other, _)| other == name)?;
        Some(match value {
            FormValue::Raw(bytes) => InputValue::Raw(bytes),
            FormValue::Json(value) => InputValue::Json(value),
        })
    }
}

/// The rows of a form: all parts are one row, or each part is a row.
pub(super) fn rows(
    parts: Vec<Part>,
    multiplicity: Multiplicity,
    signature: &Signature,
) -> Result<Vec<FormRow>, ApiError> {
    match multiplicity {
        Multiplicity::Single => Ok(vec![single(parts, signature)?]),
        Multiplicity::Batch => batch(parts, signature),
    }
}

fn single(parts: Vec<Part>, signature: &Signature) -> Result<FormRow, ApiError> {
    let mut values = json::MAX_VALUES;
    let mut row: Vec<(String, FormValue)> = Vec::with_capacity(parts.len());
    for Part { name, data } in parts {
        if row.iter().any(|(other, _)| *other == name) {
            return Err(ApiError::malformed("there is more than one part for an input"));
        }
        let field = signature.inputs.iter().find(|field| field.name == name);
        // An unknown input is reported when the row is validated.
        let value = match field {
            Some(field) => form_value(field, data, &mut values)?,
            None => FormValue::Raw(data),
        };
        row.push((name, value));
    }
    Ok(FormRow(row))
}

fn batch(parts: Vec<Part>, signature: &Signature) -> Result<Vec<FormRow>, ApiError> {
    let Some(field) = only_input(signature) else {
        let message = "a batch of a model with several required inputs must be JSON";
        return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    };
    let plural = format!("{}s", field.name);
    let mut values = json::MAX_VALUES;
    let mut rows = Vec::with_capacity(parts.len());
    for Part { name, data } in parts {
        if name != field.name && name != plural {
            let message = format!("a batch is parts `{}` and nothing else", field.name);
            return Err(ApiError::malformed(message));
        }
        let value = form_value(field, data, &mut values)?;
        rows.push(FormRow(vec![(field.name.clone(), value)]));
    }
    if rows.is_empty() {
        return Err(ApiError::malformed("the batch is empty"));
    }
    Ok(rows)
}

/// The row of a body that is the bytes of one input.
pub(super) fn octets(
    data: Bytes,
    multiplicity: Multiplicity,
    signature: &Signature,
) -> Result<FormRow, ApiError> {
    let unsupported = |message| Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    if multiplicity == Multiplicity::Batch {
        return unsupported("application/octet-stream is one row and cannot be a batch");
    }
    match only_input(signature) {
        Some(field) if is_byte_string(field) => {
            Ok(FormRow(vec![(field.name.clone(), FormValue::Raw(data))]))
        }
        _ => unsupported("application/octet-stream is for models whose one input is a byte string"),
    }
}

/// The required input, if there is exactly one.
fn only_input(signature: &Signature) -> Option<&Field> {
    let mut required = signature.required_inputs();
    required.next().filter(|_| required.next().is_none())
}

fn is_byte_string(field: &Field) -> bool {
    field.datatype == Datatype::Bytes && field.row_shape.is_empty()
}

/// The value of a part for an input; its JSON counts towards the limit on values.
fn form_value(field: &Field, data: Bytes, values: &mut usize) -> Result<FormValue, ApiError> {
    if is_byte_string(field) {
        return Ok(FormValue::Raw(data));
    }
    match json::parse_within(&data, None, values) {
        Ok(value) => Ok(FormValue::Json(value)),
        Err(JsonError::TooManyValues | JsonError::TooManyRows) => Err(json::too_many_values()),
        Err(JsonError::RepeatedKey) => Err(json::repeated_key()),
        Err(JsonError::Syntax(_)) => {
            Err(ApiError::malformed(format!("the part `{}` is not valid JSON", field.name)))
        }
    }
}
