//! Parsing of REST bodies: first without a signature, then into rows by the signature of a version.

use std::borrow::Cow;

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use serde_json::{Map, Value};

use super::form::{self, FormRow, Part};
use crate::config::Limits;
use crate::edge::body::media_type;
use crate::edge::codec::Multiplicity;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::json::{self, JsonError};
use crate::edge::request_id::RequestId;
use guesthouse_model::Signature;
use guesthouse_model::record::{InputRow, InputValue};

/// The media type of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::edge) enum Media {
    Json,
    Form { boundary: String },
    Octets,
}

/// The media type in the headers; JSON if there is none.
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

/// A body that is parsed, but not yet for a version.
pub(in crate::edge) enum ParsedBody {
    /// A row or a batch in JSON.
    Object(Map<String, Value>),
    /// The parts of a form.
    Parts(Vec<Part>),
    /// The bytes of the one input.
    Octets(Bytes),
}

impl ParsedBody {
    /// The value of a field. Of a form it is a string, because the types of its inputs are not known yet.
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

    /// Remove all parts with this name; the value of the first.
    fn take_parts(&mut self, field: &str) -> Option<Value> {
        let value = self.get(field).map(Cow::into_owned);
        if let Self::Parts(parts) = self {
            parts.retain(|part| part.name != field);
        }
        value
    }
}

/// A row, before it is validated.
pub(crate) enum BodyRow {
    Object(Map<String, Value>),
    Form(FormRow),
    /// An element of `instances` that is not an object, and its place.
    Other(usize),
}

impl BodyRow {
    /// Check that the row is one.
    pub(in crate::edge) fn check(&self) -> Result<(), ApiError> {
        match self {
            Self::Object(_) | Self::Form(_) => Ok(()),
            Self::Other(row) => Err(ApiError::malformed(format!("row {row} must be an object"))),
        }
    }
}

impl InputRow for BodyRow {
    fn names(&self) -> impl Iterator<Item = &str> {
        let (object, cells) = match self {
            Self::Object(object) => (Some(object), None),
            Self::Form(form) => (None, Some(form)),
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
            Self::Form(form) => form.value(name),
            Self::Other(_) => None,
        }
    }
}

fn too_many_rows(most: usize) -> ApiError {
    ApiError::new(ErrorCode::UnacceptableInput, format!("the batch has over {most} rows"))
}

/// Parse a body. A field `request_id` replaces the id of the request. Parsing stops at the limits on rows and
/// values.
pub(in crate::edge) fn parse(
    bytes: &Bytes,
    media: &Media,
    multiplicity: Multiplicity,
    limits: &Limits,
    request_id: &mut RequestId,
) -> Result<ParsedBody, ApiError> {
    match media {
        Media::Json => parse_json(bytes, multiplicity, limits, request_id).map(ParsedBody::Object),
        Media::Form { boundary } => {
            form::parse(bytes, boundary, multiplicity, limits, request_id).map(ParsedBody::Parts)
        }
        Media::Octets => Ok(ParsedBody::Octets(bytes.clone())),
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
        // An array in a field of a batch is its rows or an error.
        Multiplicity::Batch => Some(limits.batch_rows),
    };
    // serde_json rejects nesting deeper than 128 and invalid UTF-8. Its messages may repeat the input, so
    // only the position is reported.
    let mut object = match json::parse(bytes, max_rows) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return Err(ApiError::malformed("the body must be a JSON object")),
        Err(JsonError::TooManyRows) => return Err(too_many_rows(limits.batch_rows)),
        Err(JsonError::TooManyValues) => return Err(json::too_many_values()),
        Err(JsonError::RepeatedKey) => return Err(json::repeated_key()),
        Err(JsonError::Syntax(error)) => {
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

/// Remove a field that stands beside the inputs and is none of them; its value.
pub(in crate::edge) fn take_beside_inputs(
    record: &mut ParsedBody,
    field: &str,
    multiplicity: Multiplicity,
    signature: &Signature,
) -> Option<Value> {
    let is_input = signature.inputs.iter().any(|input| input.name == field);
    match record {
        ParsedBody::Object(object) => {
            // The array of a batch is its rows, whatever its name is.
            let is_rows = object.get(field).is_some_and(Value::is_array);
            let stays = match multiplicity {
                Multiplicity::Single => is_input,
                Multiplicity::Batch => is_rows,
            };
            if stays { None } else { object.remove(field) }
        }
        ParsedBody::Parts(_) => {
            let is_rows = plural_key(signature).is_some_and(|(plural, _)| plural == field);
            if is_input || is_rows { None } else { record.take_parts(field) }
        }
        ParsedBody::Octets(_) => None,
    }
}

/// The rows of a body; their values are validated later.
pub(in crate::edge) fn rows(
    record: ParsedBody,
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
    record: ParsedBody,
    multiplicity: Multiplicity,
    signature: &Signature,
) -> Result<Vec<BodyRow>, ApiError> {
    match (record, multiplicity) {
        (ParsedBody::Object(object), Multiplicity::Single) => Ok(vec![BodyRow::Object(object)]),
        (ParsedBody::Object(object), Multiplicity::Batch) => batch_rows(object, signature),
        (ParsedBody::Parts(parts), multiplicity) => {
            let rows = form::rows(parts, multiplicity, signature)?;
            Ok(rows.into_iter().map(BodyRow::Form).collect())
        }
        (ParsedBody::Octets(data), multiplicity) => {
            form::octets(data, multiplicity, signature).map(|row| vec![BodyRow::Form(row)])
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

/// The short form of a batch, for a signature with one required input: the input's name with an `s`.
fn plural_key(signature: &Signature) -> Option<(String, &str)> {
    let mut required = signature.required_inputs();
    let only = required.next()?;
    match required.next() {
        None => Some((format!("{}s", only.name), only.name.as_str())),
        Some(_) => None,
    }
}
