//! Bodies that are no JSON: forms (`multipart/form-data`), whose parts are named by inputs, and the
//! plain bytes of one input.
//!
//! A part for an input of byte strings is those bytes, as they are; one for any other input is its
//! JSON. So a file needs no base64 and is copied, not decoded. What a part says of its own type or
//! file name changes nothing. Bounded are the parts, their headers, and the values of their JSON.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use axum::body::{Body, Bytes};
use multer::Multipart;
use serde_json::Value;

use crate::config::Limits;
use crate::edge::codec::Multiplicity;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::json::{self, Refusal};
use crate::edge::observe::RequestId;
use guesthouse_model::record::{InputRow, InputValue};
use guesthouse_model::{Datatype, Field, Signature};

/// The longest boundary, by RFC 2046.
const MAX_BOUNDARY: usize = 70;

/// The most parts of a form that is one row: as many inputs as a signature may have, and what
/// stands beside them. One that is a batch may have as many rows, and these.
const MAX_PARTS_OF_ROW: usize = 1024 + BESIDE;

/// Parts that are no inputs: the id, the idempotency key, and what keeps a caller with a version.
const BESIDE: usize = 3;

/// Bytes in the headers of a part: a name, a file name, a type and more than anybody sends.
const MAX_HEADER_BYTES: usize = 8 << 10;

/// A part of a form.
pub(in crate::edge) struct Part {
    pub(in crate::edge) name: String,
    pub(in crate::edge) data: Bytes,
}

/// The boundary that the content type names.
pub(super) fn boundary(content_type: &str) -> Result<String, ApiError> {
    let boundary = multer::parse_boundary(content_type).ok();
    boundary
        .filter(|boundary| (1..=MAX_BOUNDARY).contains(&boundary.len()))
        .ok_or_else(|| ApiError::malformed("the Content-Type has no boundary"))
}

/// The parts of a form, without its `request_id`, which goes to where it is told of.
pub(super) fn parse(
    bytes: &Bytes,
    boundary: &str,
    multiplicity: Multiplicity,
    limits: &Limits,
    request_id: &mut RequestId,
) -> Result<Vec<Part>, ApiError> {
    let most = match multiplicity {
        Multiplicity::Single => MAX_PARTS_OF_ROW,
        Multiplicity::Batch => limits.batch_rows.saturating_add(BESIDE),
    };
    let read = read(bytes.clone(), boundary, most);
    // All of it is there, so there is nothing to wait for; a reader that waits is at a loss.
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
    ApiError::malformed("the body is no whole form, by the boundary of its Content-Type")
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
            // There is one, because all is there.
            data = if data.is_empty() { chunk } else { [data, chunk].concat().into() };
        }
        parts.push(Part { name, data });
    }
    Ok(parts)
}

/// The values of one row that did not come as an object.
#[derive(Debug)]
pub(crate) struct Cells(Vec<(String, Cell)>);

#[derive(Debug)]
enum Cell {
    Raw(Bytes),
    Json(Value),
}

impl InputRow for Cells {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn value(&self, name: &str) -> Option<InputValue<'_>> {
        let (_, cell) = self.0.iter().find(|(other, _)| other == name)?;
        Some(match cell {
            Cell::Raw(bytes) => InputValue::Raw(bytes),
            Cell::Json(value) => InputValue::Json(value),
        })
    }
}

/// The rows of a form: all parts are one, or each of them is one.
pub(super) fn rows(
    parts: Vec<Part>,
    multiplicity: Multiplicity,
    signature: &Signature,
) -> Result<Vec<Cells>, ApiError> {
    match multiplicity {
        Multiplicity::Single => Ok(vec![single(parts, signature)?]),
        Multiplicity::Batch => batch(parts, signature),
    }
}

fn single(parts: Vec<Part>, signature: &Signature) -> Result<Cells, ApiError> {
    let mut values = json::MAX_VALUES;
    let mut cells: Vec<(String, Cell)> = Vec::with_capacity(parts.len());
    for Part { name, data } in parts {
        if cells.iter().any(|(other, _)| *other == name) {
            return Err(ApiError::malformed("there is more than one part for an input"));
        }
        let field = signature.inputs.iter().find(|field| field.name == name);
        // What is no input is told with all others.
        let cell = match field {
            Some(field) => cell(field, data, &mut values)?,
            None => Cell::Raw(data),
        };
        cells.push((name, cell));
    }
    Ok(Cells(cells))
}

fn batch(parts: Vec<Part>, signature: &Signature) -> Result<Vec<Cells>, ApiError> {
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
        let cell = cell(field, data, &mut values)?;
        rows.push(Cells(vec![(field.name.clone(), cell)]));
    }
    if rows.is_empty() {
        return Err(ApiError::malformed("the batch is empty"));
    }
    Ok(rows)
}

/// The row that a body without any form is.
pub(super) fn octets(
    data: Bytes,
    multiplicity: Multiplicity,
    signature: &Signature,
) -> Result<Cells, ApiError> {
    let unsupported = |message| Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    if multiplicity == Multiplicity::Batch {
        return unsupported("application/octet-stream is one row, and no batch");
    }
    match only_input(signature) {
        Some(field) if is_byte_string(field) => {
            Ok(Cells(vec![(field.name.clone(), Cell::Raw(data))]))
        }
        _ => unsupported("application/octet-stream is for models whose one input is a byte string"),
    }
}

/// The one required input, if there is one only.
fn only_input(signature: &Signature) -> Option<&Field> {
    let mut required = signature.required_inputs();
    required.next().filter(|_| required.next().is_none())
}

fn is_byte_string(field: &Field) -> bool {
    field.datatype == Datatype::Bytes && field.row_shape.is_empty()
}

/// What a part is for an input; its JSON takes from the values that are left.
fn cell(field: &Field, data: Bytes, values: &mut usize) -> Result<Cell, ApiError> {
    if is_byte_string(field) {
        return Ok(Cell::Raw(data));
    }
    match json::parse_within(&data, None, values) {
        Ok(value) => Ok(Cell::Json(value)),
        Err(Refusal::TooManyValues | Refusal::TooManyRows) => Err(json::too_many_values()),
        Err(Refusal::RepeatedKey) => Err(json::repeated_key()),
        Err(Refusal::Syntax(_)) => {
            Err(ApiError::malformed(format!("the part `{}` is not valid JSON", field.name)))
        }
    }
}
