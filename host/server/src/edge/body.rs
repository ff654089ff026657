//! Bodies of requests: read within limits, counted among those in flight, and decompressed.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::encoding::{Encoding, Full, InflateError, Inflater};
use super::error::{ApiError, ErrorCode};
use crate::config::Limits;

/// A whole body, decompressed, or a message of gRPC.
pub(super) struct RequestBody {
    pub(super) bytes: Bytes,
    /// When the last byte of it had been read.
    pub(super) complete: Instant,
    /// Counts it among the bodies in flight; none for one that its reader counts.
    permit: Option<OwnedSemaphorePermit>,
}

impl RequestBody {
    /// A body of which the last byte has just been read.
    pub(super) fn new(bytes: impl Into<Bytes>, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { bytes: bytes.into(), complete: Instant::now(), permit }
    }

    /// The same bytes for another try, which count with these.
    pub(super) fn share(&self) -> Self {
        Self { bytes: self.bytes.clone(), complete: self.complete, permit: None }
    }

    /// What counts the body among those in flight, without its bytes.
    pub(super) fn into_permit(self) -> Option<OwnedSemaphorePermit> {
        self.permit
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

/// The whole body, if it is within the limits.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    limits: &Limits,
    bodies: &Bodies,
) -> Result<RequestBody, ApiError> {
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
        Ok(Ok(())) => Ok(RequestBody::new(room.bytes, Some(room.permit))),
        Ok(Err(error)) => Err(room.refusal.unwrap_or(error)),
        Err(_elapsed) => {
            Err(ApiError::new(ErrorCode::RequestTimeout, "the body did not come in time"))
        }
    }
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
