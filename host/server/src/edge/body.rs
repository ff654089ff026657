//! Bodies of requests: read within limits, then taken apart into rows.

use std::borrow::Cow;
use std::io::{self, Write};
use std::ops::Deref;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt as _;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::encoding::{Encoding, Full, InflateError, Inflater};
use super::error::{ApiError, ErrorCode};
use super::form::{self, Cells, Part};
use super::json::{self, Refusal};
use super::observe::RequestId;
use crate::config::Limits;
use guesthouse_model::Signature;
use guesthouse_model::record::{InputRow, InputValue};

/// A body that has been taken apart, but not yet for one version.
pub(super) enum Record {
    /// Values by input, or the rows.
    Object(Map<String, Value>),
    /// A form.
    Parts(Vec<Part>),
    /// The value of the one input.
    Octets(Bytes),
}

impl Record {
    /// The value of a field; texts and no more of a form, because of its inputs nothing is known yet.
    pub(super) fn get(&self, field: &str) -> Option<Cow<'_, Value>> {
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
    pub(super) fn check(&self) -> Result<(), ApiError> {
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

/// Whether a body holds one record or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `{"text": "…"}`
    Single,
    /// `{"instances": [{"text": "…"}, …]}`, or `{"texts": ["…", …]}` for a model whose one
    /// required input is `text`.
    Batch,
}

/// What a body is, by its content type.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Media {
    Json,
    Form {
        boundary: String,
    },
    Octets,
    /// Of the Open Inference Protocol, where a header says how much of it is JSON.
    Tensors,
}

/// The bytes of a body, not compressed any more, counted among those in flight until it is dropped.
pub(super) struct Received {
    bytes: Vec<u8>,
    media: Media,
    _permit: OwnedSemaphorePermit,
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What all bodies together may take.
#[derive(Clone)]
pub struct Bodies {
    most: usize,
    /// A permit for each byte.
    bytes: Arc<Semaphore>,
    /// A permit for each body that needs a window to be inflated. They are counted apart, because a
    /// caller can hold one for the price of a head: whoever sends other bodies is not to notice.
    windows: Arc<Semaphore>,
}

/// Windows at the same time: 256 MiB.
const MAX_WINDOWS: usize = 32;

impl Bodies {
    /// None yet, and so many bytes at most.
    pub fn new(most: usize) -> Self {
        let (bytes, windows) = (Semaphore::new(most), Semaphore::new(MAX_WINDOWS));
        Self { most, bytes: Arc::new(bytes), windows: Arc::new(windows) }
    }

    /// That many bytes more, until what comes back is dropped.
    pub(super) fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        permit(&self.bytes, bytes)
    }

    /// How many bytes there are.
    pub(super) fn in_flight(&self) -> usize {
        self.most.saturating_sub(self.bytes.available_permits())
    }
}

fn permit(bodies: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let bytes = u32::try_from(bytes).map_err(|_error| crowded())?;
    Arc::clone(bodies).try_acquire_many_owned(bytes).map_err(|_error| crowded())
}

fn crowded() -> ApiError {
    ApiError::new(ErrorCode::Overloaded, "too many bodies are in flight")
}

/// Where the bytes of a body go: up to its limit, as long as there is room for it beside the others.
struct Room<'a> {
    bytes: Vec<u8>,
    most: usize,
    bodies: &'a Arc<Semaphore>,
    permit: OwnedSemaphorePermit,
    /// Why it took no more.
    refusal: Option<ApiError>,
}

impl Room<'_> {
    /// Count this many bytes, if they are not counted yet.
    fn reserve(&mut self, bytes: usize) -> Result<(), ApiError> {
        let more = bytes.saturating_sub(self.permit.num_permits());
        if more > 0 {
            self.permit.merge(permit(self.bodies, more)?);
        }
        Ok(())
    }

    fn take(&mut self, data: &[u8]) -> Result<(), ApiError> {
        let length = self.bytes.len().saturating_add(data.len());
        if length > self.most {
            return Err(too_large(self.most));
        }
        self.reserve(length)?;
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

impl Write for Room<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.refusal.is_none() {
            self.refusal = self.take(data).err();
        }
        match self.refusal {
            None => Ok(data.len()),
            Some(_) => Err(io::Error::other(Full)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The whole body, if it is of a known kind by its headers and within the limits.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    limits: &Limits,
    bodies: &Bodies,
) -> Result<Received, ApiError> {
    read_as(media(headers)?, headers, body, limits, bodies).await
}

/// The same of a body of the Open Inference Protocol.
pub(super) async fn read_tensors(
    headers: &HeaderMap,
    body: Body,
    limits: &Limits,
    bodies: &Bodies,
) -> Result<Received, ApiError> {
    read_as(tensors_media(headers)?, headers, body, limits, bodies).await
}

async fn read_as(
    media: Media,
    headers: &HeaderMap,
    body: Body,
    limits: &Limits,
    bodies: &Bodies,
) -> Result<Received, ApiError> {
    let encoding = Encoding::of(headers)?;
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let announced = length.and_then(|length| length.parse().ok()).unwrap_or(0_u64);
    let announced = usize::try_from(announced).unwrap_or(usize::MAX);
    if announced > limits.body_bytes {
        return Err(too_large(limits.body_bytes));
    }
    // What there is no room for now is not begun. Room is taken as bytes come: who announces much and
    // sends nothing takes nothing from the others.
    if announced > bodies.bytes.available_permits() {
        return Err(crowded());
    }
    let _window = encoding.needs_window().then(|| permit(&bodies.windows, 1)).transpose()?;
    let permit = permit(&bodies.bytes, 0)?;
    let (most, bytes) = (limits.body_bytes, Vec::new());
    let mut room = Room { bytes, most, bodies: &bodies.bytes, permit, refusal: None };
    let collected = collect(body, encoding, limits.body_bytes, &mut room);
    match tokio::time::timeout(limits.body_time, collected).await {
        Ok(Ok(())) => Ok(Received { bytes: room.bytes, media, _permit: room.permit }),
        Ok(Err(error)) => Err(room.refusal.unwrap_or(error)),
        Err(_elapsed) => {
            Err(ApiError::new(ErrorCode::RequestTimeout, "the body did not come in time"))
        }
    }
}

/// A request without a content type is taken for JSON.
fn media(headers: &HeaderMap) -> Result<Media, ApiError> {
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

/// What it is says another header; but what claims to be something else altogether is none.
fn tensors_media(headers: &HeaderMap) -> Result<Media, ApiError> {
    media_type(headers, &["application/json", "application/octet-stream"])?;
    Ok(Media::Tensors)
}

/// Which of the accepted media types a body has by its header; none, if there is no header. Of all
/// endpoints, so that a body is refused by each of them or by none.
pub(crate) fn media_type<'a>(
    headers: &HeaderMap,
    accepted: &[&'a str],
) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().unwrap_or_default(),
        (Some(_), Some(_)) => "",
    };
    let essence = value.split(';').next().unwrap_or_default().trim();
    let known = accepted.iter().find(|known| essence.eq_ignore_ascii_case(known));
    if let Some(known) = known {
        return Ok(Some(known));
    }
    let (first, others) = accepted.split_first().unwrap_or((&"", &[]));
    let mut message = format!("send the header `Content-Type: {first}`");
    if !others.is_empty() {
        message.push_str(&format!(" (or {})", others.join(", ")));
    }
    if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        message.push_str(": application/x-www-form-urlencoded is what curl says of every body");
    }
    Err(ApiError::new(ErrorCode::UnsupportedMediaType, message))
}

fn too_many_rows(most: usize) -> ApiError {
    ApiError::new(ErrorCode::UnacceptableInput, format!("the batch has over {most} rows"))
}

pub(super) fn too_large(most: usize) -> ApiError {
    ApiError::new(ErrorCode::PayloadTooLarge, format!("the body is over {most} bytes"))
}

async fn collect(
    mut body: Body,
    encoding: Encoding,
    most: usize,
    room: &mut Room<'_>,
) -> Result<(), ApiError> {
    // Where the room is full, it knows why.
    let refused = |error| match error {
        InflateError::Full => too_large(most),
        InflateError::Garbage => ApiError::malformed("the body is not what its encoding says"),
        InflateError::TooManyParts => {
            let message = "the body has too many compressed members for what is in them";
            ApiError::new(ErrorCode::PayloadTooLarge, message)
        }
    };
    let mut left = most;
    let mut inflater = Inflater::new(encoding, room).map_err(refused)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_error| ApiError::malformed("the body was cut off"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        left = left.checked_sub(data.len()).ok_or_else(|| too_large(most))?;
        inflater.push(&data).await.map_err(refused)?;
    }
    inflater.finish().map(drop).map_err(refused)
}

/// What a body says, without its `request_id`, which goes to where it is told of. One with more rows
/// or values than are allowed is not read to its end.
pub(super) fn parse(
    received: &Received,
    form: Form,
    limits: &Limits,
    request_id: &mut RequestId,
) -> Result<Record, ApiError> {
    match &received.media {
        Media::Json => parse_json(received, form, limits, request_id).map(Record::Object),
        Media::Form { boundary } => {
            form::parse(received, boundary, form, limits, request_id).map(Record::Parts)
        }
        Media::Octets | Media::Tensors => Ok(Record::Octets(Bytes::copy_from_slice(received))),
    }
}

fn parse_json(
    bytes: &[u8],
    form: Form,
    limits: &Limits,
    request_id: &mut RequestId,
) -> Result<Map<String, Value>, ApiError> {
    let max_rows = match form {
        Form::Single => None,
        // Whatever array is in a field of a batch, it is the rows or a mistake.
        Form::Batch => Some(limits.batch_rows),
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
pub(super) fn take_beside_inputs(
    record: &mut Record,
    field: &str,
    form: Form,
    signature: &Signature,
) -> Option<Value> {
    let is_input = signature.inputs.iter().any(|input| input.name == field);
    match record {
        Record::Object(object) => {
            // A batch has its rows in an array, whatever that is called.
            let is_rows = object.get(field).is_some_and(Value::is_array);
            let stays = match form {
                Form::Single => is_input,
                Form::Batch => is_rows,
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
pub(super) fn rows(
    record: Record,
    form: Form,
    signature: &Signature,
    max_rows: usize,
) -> Result<Vec<BodyRow>, ApiError> {
    let rows = all_rows(record, form, signature)?;
    if rows.len() > max_rows {
        return Err(too_many_rows(max_rows));
    }
    Ok(rows)
}

fn all_rows(record: Record, form: Form, signature: &Signature) -> Result<Vec<BodyRow>, ApiError> {
    match (record, form) {
        (Record::Object(object), Form::Single) => Ok(vec![BodyRow::Object(object)]),
        (Record::Object(object), Form::Batch) => batch_rows(object, signature),
        (Record::Parts(parts), form) => {
            let rows = form::rows(parts, form, signature)?;
            Ok(rows.into_iter().map(BodyRow::Cells).collect())
        }
        (Record::Octets(data), form) => {
            form::octets(data, form, signature).map(|row| vec![BodyRow::Cells(row)])
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
