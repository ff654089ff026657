//! Bodies of REST, taken apart: first without any signature, then into rows by that of a version.

use std::borrow::Cow;

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use serde_json::{Map, Value};

use super::form::{self, Cells, Part};
use crate::config::Limits;
use crate::edge::body::media_type;
use crate::edge::codec::Multiplicity;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::json::{self, Refusal};
use crate::edge::observe::RequestId;
use guesthouse_model::Signature;
use guesthouse_model::record::{InputRow, InputValue};

/// What a body is, by its content type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::edge) enum Media {
    Json,
    Form { boundary: String },
    Octets,
}

/// A request without a content type is taken for JSON.
pub(in crate::edge) fn media(headers: &HeaderMap) -> Result<Media, ApiError> {
    let accepted = ["application/json", "multipart/form-data", "application/octet-stream"];
    match media_type(headers, &accepted)? {
        Some("multipart/form-data") => {
            let whole = headers.get(CONTENT_TYPE).and_then(|whole| whole.to_str().ok());
            form::boundary(whole.unwrap_or_default()).map(|boundary| Media::Form { boundary })
        }
        Some("application/octet-stream") => Ok(Media::Octets),
        _ => Ok(Media::Json),
    }
}

/// A body that has been taken apart, but not yet for one version.
pub(in crate::edge) enum Record {
    /// Values by input, or the rows.
    Object(Map<String, Value>),
    /// A form.
    Parts(Vec<Part>),
    /// The value of the one input.
    Octets(Bytes),
}

impl Record {
    /// The value of a field; texts and no more of a form, because of its inputs nothing is known yet.
    pub(in crate::edge) fn get(&self, field: &str) -> Option<Cow<'_, Value>> {
        match self {
            Self::Object(object) => object.get(field).map(Cow::Borrowed),
            Self::Parts(parts) => {
                let part = parts.iter().find(|part| part.name == field)?;
                let text = str::from_utf8(&part.data).ok().map(Value::from);
                Some(Cow::Owned(text.unwrap_or_default()))
            }
            Self::Octets(_) => None,
        }
    }

    /// Take all parts of that name away; the value of the first.
    fn take_parts(&mut self, field: &str) -> Option<Value> {
        let value = self.get(field).map(Cow::into_owned);
        if let Self::Parts(parts) = self {
            parts.retain(|part| part.name != field);
        }
        value
    }
}

/// One row, as it came.
pub(crate) enum BodyRow {
    Object(Map<String, Value>),
    Cells(Cells),
    /// An element of `instances` that is no object.
    Other(usize),
}

impl BodyRow {
    /// What is wrong with the row as a whole, if anything is.
    pub(in crate::edge) fn check(&self) -> Result<(), ApiError> {
        match self {
            Self::Object(_) | Self::Cells(_) => Ok(()),
            Self::Other(row) => Err(ApiError::malformed(format!("row {row} must be an object"))),
        }
    }
}

impl InputRow for BodyRow {
    fn names(&self) -> impl Iterator<Item = &str> {
        let (object, cells) = match self {
            Self::Object(object) => (Some(object), None),
            Self::Cells(cells) => (None, Some(cells)),
            Self::Other(_) => (None, None),
        };
        object
            .into_iter()
            .flat_map(InputRow::names)
            .chain(cells.into_iter().flat_map(InputRow::names))
    }

    fn value(&self, name: &str) -> Option<InputValue<'_>> {
        match self {
            Self::Object(object) => object.value(name),
            Self::Cells(cells) => cells.value(name),
            Self::Other(_) => None,
        }
    }
}

fn too_many_rows(most: usize) -> ApiError {
    ApiError::new(ErrorCode::UnacceptableInput, format!("the batch has over {most} rows"))
}

/// What a body says, without its `request_id`, which goes to where it is told of. One with more rows
/// or values than are allowed is not read to its end.
pub(in crate::edge) fn parse(
    bytes: &Bytes,
    media: &Media,
    multiplicity: Multiplicity,
    limits: &Limits,
    request_id: &mut RequestId,
) -> Result<Record, ApiError> {
    match media {
        Media::Json => parse_json(bytes, multiplicity, limits, request_id).map(Record::Object),
        Media::Form { boundary } => {
            form::parse(bytes, boundary, multiplicity, limits, request_id).map(Record::Parts)
        }
        Media::Octets => Ok(Record::Octets(bytes.clone())),
    }
}

fn parse_json(
    bytes: &[u8],
    multiplicity: Multiplicity,
    limits: &Limits,
    request_id: &mut RequestId,
) -> Result<Map<String, Value>, ApiError> {
    let max_rows = match multiplicity {
        Multiplicity::Single => None,
        // Whatever array is in a field of a batch, it is the rows or a mistake.
        Multiplicity::Batch => Some(limits.batch_rows),
    };
    // serde_json refuses nesting deeper than 128 and invalid UTF-8 by itself. Its own words may
    // repeat the input, so only the place is told.
    let mut object = match json::parse(bytes, max_rows) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return Err(ApiError::malformed("the body must be a JSON object")),
        Err(Refusal::TooManyRows) => return Err(too_many_rows(limits.batch_rows)),
        Err(Refusal::TooManyValues) => return Err(json::too_many_values()),
        Err(Refusal::RepeatedKey) => return Err(json::repeated_key()),
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
        Some(None) => return Err(RequestId::malformed()),
    }
    Ok(object)
}

/// Take a field away that stands beside the inputs and is none of them.
pub(in crate::edge) fn take_beside_inputs(
    record: &mut Record,
    field: &str,
    multiplicity: Multiplicity,
    signature: &Signature,
) -> Option<Value> {
    let is_input = signature.inputs.iter().any(|input| input.name == field);
    match record {
        Record::Object(object) => {
            // A batch has its rows in an array, whatever that is called.
            let is_rows = object.get(field).is_some_and(Value::is_array);
            let stays = match multiplicity {
                Multiplicity::Single => is_input,
                Multiplicity::Batch => is_rows,
            };
            if stays { None } else { object.remove(field) }
        }
        Record::Parts(_) => {
            let is_rows = plural_key(signature).is_some_and(|(plural, _)| plural == field);
            if is_input || is_rows { None } else { record.take_parts(field) }
        }
        Record::Octets(_) => None,
    }
}

/// The rows of a body; their values are checked against the signature later.
pub(in crate::edge) fn rows(
    record: Record,
    multiplicity: Multiplicity,
    signature: &Signature,
    max_rows: usize,
) -> Result<Vec<BodyRow>, ApiError> {
    let rows = all_rows(record, multiplicity, signature)?;
    if rows.len() > max_rows {
        return Err(too_many_rows(max_rows));
    }
    Ok(rows)
}

fn all_rows(
    record: Record,
    multiplicity: Multiplicity,
    signature: &Signature,
) -> Result<Vec<BodyRow>, ApiError> {
    match (record, multiplicity) {
        (Record::Object(object), Multiplicity::Single) => Ok(vec![BodyRow::Object(object)]),
        (Record::Object(object), Multiplicity::Batch) => batch_rows(object, signature),
        (Record::Parts(parts), multiplicity) => {
            let rows = form::rows(parts, multiplicity, signature)?;
            Ok(rows.into_iter().map(BodyRow::Cells).collect())
        }
        (Record::Octets(data), multiplicity) => {
            form::octets(data, multiplicity, signature).map(|row| vec![BodyRow::Cells(row)])
        }
    }
}

fn batch_rows(
    mut object: Map<String, Value>,
    signature: &Signature,
) -> Result<Vec<BodyRow>, ApiError> {
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
                Value::Object(object) => BodyRow::Object(object),
                _ => BodyRow::Other(row),
            })
            .collect(),
        (Some(Value::Array(values)), Some((plural, input))) if key == *plural => {
            let record = |value| BodyRow::Object(Map::from_iter([((*input).to_owned(), value)]));
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
