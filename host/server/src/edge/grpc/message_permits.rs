//! The memory of the messages of a call, counted among all bodies in flight.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedSemaphorePermit;

use crate::edge::body::Bodies;
use crate::edge::error::ApiError;

/// Permits for the messages of a call that have arrived, whole or in part, and were not taken yet.
pub(super) struct MessagePermits {
    bodies: Bodies,
    /// One for each message, in their order; the last one may still be arriving.
    permits: Mutex<VecDeque<OwnedSemaphorePermit>>,
}

impl MessagePermits {
    pub(super) fn new(bodies: &Bodies) -> Self {
        Self { bodies: bodies.clone(), permits: Mutex::default() }
    }

    /// Count a message that begins to arrive.
    pub(super) fn begin(&self) -> Result<(), ApiError> {
        let empty = self.bodies.reserve(0)?;
        self.permits().push_back(empty);
        Ok(())
    }

    /// Count more bytes of the message that is arriving.
    pub(super) fn add(&self, bytes: usize) -> Result<(), ApiError> {
        let more = self.bodies.reserve(bytes)?;
        let mut permits = self.permits();
        match permits.back_mut() {
            Some(permit) => permit.merge(more),
            None => permits.push_back(more),
        }
        Ok(())
    }

    /// The permit of the first message that was not taken yet, enlarged to `bytes`: a message can be larger
    /// than what arrived, because it was compressed.
    pub(super) fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let first = self.permits().pop_front();
        let mut permit = match first {
            Some(permit) => permit,
            None => self.bodies.reserve(0)?,
        };
        let more = bytes.saturating_sub(permit.num_permits());
        if more > 0 {
            permit.merge(self.bodies.reserve(more)?);
        }
        Ok(permit)
    }

    fn permits(&self) -> MutexGuard<'_, VecDeque<OwnedSemaphorePermit>> {
        self.permits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
