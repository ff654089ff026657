//! Bodies of requests: read within limits, counted among those in flight, and decompressed.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::decompress::{BufferFull, DecompressError, Decompressor, Encoding};
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

/// Limits the memory of all bodies in flight.
#[derive(Clone)]
pub struct Bodies {
    max_bytes: usize,
    /// A permit for each byte.
    bytes: Arc<Semaphore>,
    /// A permit for each body that needs a window to be decompressed. They are counted apart from the bytes,
    /// because a caller can hold one without sending a body, and must not exclude callers that send one.
    windows: Arc<Semaphore>,
}

/// The most windows at the same time: 256 MiB.
const MAX_WINDOWS: usize = 32;

impl Bodies {
    /// For so many bytes at most.
    pub fn new(max_bytes: usize) -> Self {
        let (bytes, windows) = (Semaphore::new(max_bytes), Semaphore::new(MAX_WINDOWS));
        Self { max_bytes, bytes: Arc::new(bytes), windows: Arc::new(windows) }
    }

    /// Count more bytes, until the permit is dropped.
    pub(super) fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        permit(&self.bytes, bytes)
    }

    /// The bytes in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.max_bytes.saturating_sub(self.bytes.available_permits())
    }
}

fn permit(bodies: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let bytes = u32::try_from(bytes).map_err(|_error| crowded())?;
    Arc::clone(bodies).try_acquire_many_owned(bytes).map_err(|_error| crowded())
}

fn crowded() -> ApiError {
    ApiError::new(ErrorCode::Overloaded, "too many bodies are in flight")
}

/// A buffer for a body, with a limit on its length and on the memory of all bodies.
struct LimitedBuffer<'a> {
    bytes: Vec<u8>,
    max_bytes: usize,
    bodies: &'a Arc<Semaphore>,
    permit: OwnedSemaphorePermit,
    /// Which limit was exceeded.
    error: Option<ApiError>,
}

impl LimitedBuffer<'_> {
    /// Enlarge the permit to this length.
    fn reserve(&mut self, bytes: usize) -> Result<(), ApiError> {
        let more = bytes.saturating_sub(self.permit.num_permits());
        if more > 0 {
            self.permit.merge(permit(self.bodies, more)?);
        }
        Ok(())
    }

    fn append(&mut self, data: &[u8]) -> Result<(), ApiError> {
        let length = self.bytes.len().saturating_add(data.len());
        if length > self.max_bytes {
            return Err(too_large(self.max_bytes));
        }
        self.reserve(length)?;
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

impl Write for LimitedBuffer<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.error.is_none() {
            self.error = self.append(data).err();
        }
        match self.error {
            None => Ok(data.len()),
            Some(_) => Err(io::Error::other(BufferFull)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Read a whole body, within the limits.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    limits: &Limits,
    bodies: &Bodies,
) -> Result<RequestBody, ApiError> {
    let encoding = Encoding::from_headers(headers)?;
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let announced = length.and_then(|length| length.parse().ok()).unwrap_or(0_u64);
    let announced = usize::try_from(announced).unwrap_or(usize::MAX);
    if announced > limits.body_bytes {
        return Err(too_large(limits.body_bytes));
    }
    // A body for which there is no memory now is rejected before it is read. Memory is counted as bytes
    // arrive, so that a caller that announces a large body and sends nothing takes nothing from others.
    if announced > bodies.bytes.available_permits() {
        return Err(crowded());
    }
    let _window = encoding.needs_window().then(|| permit(&bodies.windows, 1)).transpose()?;
    let permit = permit(&bodies.bytes, 0)?;
    let (max_bytes, bytes) = (limits.body_bytes, Vec::new());
    let mut buffer = LimitedBuffer { bytes, max_bytes, bodies: &bodies.bytes, permit, error: None };
    let collected = collect(body, encoding, limits.body_bytes, &mut buffer);
    match tokio::time::timeout(limits.body_time, collected).await {
        Ok(Ok(())) => Ok(RequestBody::new(buffer.bytes, Some(buffer.permit))),
        Ok(Err(error)) => Err(buffer.error.unwrap_or(error)),
        Err(_elapsed) => {
            Err(ApiError::new(ErrorCode::RequestTimeout, "the body did not arrive in time"))
        }
    }
}

/// Which of the accepted media types the headers name; none if there is no `Content-Type`.
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

pub(super) fn too_large(max_bytes: usize) -> ApiError {
    ApiError::new(ErrorCode::PayloadTooLarge, format!("the body is over {max_bytes} bytes"))
}

async fn collect(
    mut body: Body,
    encoding: Encoding,
    max_bytes: usize,
    buffer: &mut LimitedBuffer<'_>,
) -> Result<(), ApiError> {
    // The buffer knows which of its limits was exceeded.
    let to_error = |error| match error {
        DecompressError::BufferFull => too_large(max_bytes),
        DecompressError::Malformed => {
            ApiError::malformed("the body is not valid in its Content-Encoding")
        }
        DecompressError::TooManyMembers => {
            let message = "the body has too many compressed members for what is in them";
            ApiError::new(ErrorCode::PayloadTooLarge, message)
        }
    };
    let mut left = max_bytes;
    let mut decompressor = Decompressor::new(encoding, buffer).map_err(to_error)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_error| ApiError::malformed("the body was cut off"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        left = left.checked_sub(data.len()).ok_or_else(|| too_large(max_bytes))?;
        decompressor.push(&data).await.map_err(to_error)?;
    }
    decompressor.finish().map(drop).map_err(to_error)
}
