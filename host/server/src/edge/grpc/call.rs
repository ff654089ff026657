//! A gRPC call, as its middleware and its method share it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::{Extensions, HeaderMap};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::message_permits::MessagePermits;
use super::method::Method;
use super::status;
use crate::edge::access;
use crate::edge::compare::CompareOnDrop;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::request_log::RequestLog;

/// A gRPC call. Its method finds it in the extensions of the request.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) permits: MessagePermits,
    /// The metadata, as it arrived.
    pub(super) headers: HeaderMap,
    state: Mutex<CallState>,
}

struct CallState {
    log: RequestLog,
    error: Option<ErrorCode>,
    /// Dropped with the call, when its response has been sent.
    comparison: Option<CompareOnDrop>,
}

impl Call {
    pub(super) fn new(
        method: Method,
        permits: MessagePermits,
        headers: HeaderMap,
        log: RequestLog,
    ) -> Arc<Self> {
        let state = Mutex::new(CallState { log, error: None, comparison: None });
        Arc::new(Self { method, permits, headers, state })
    }

    /// The call in the extensions of a request, where the middleware has put it.
    pub(super) fn from_extensions(extensions: &Extensions) -> Result<Arc<Self>, Status> {
        let call = extensions.get::<Arc<Self>>().cloned();
        call.ok_or_else(|| status::from_error(&ApiError::internal()))
    }

    /// The log of the call, for its method to add to.
    pub(super) fn log_guard(self: &Arc<Self>) -> CallLogGuard {
        CallLogGuard { log: self.log(), call: Arc::clone(self) }
    }

    /// Whether the metadata has a key, valid or not.
    pub(super) fn has_key(&self) -> bool {
        access::has_key(&self.headers)
    }

    /// The log of the call so far.
    pub(super) fn log(&self) -> RequestLog {
        self.state().log.clone()
    }

    /// The error that the call ends with, if it is known.
    pub(super) fn error(&self) -> Option<ErrorCode> {
        self.state().error
    }

    /// Note the error that the call ends with.
    pub(super) fn fail(&self, error: &ApiError) -> Status {
        self.state().error = Some(error.code);
        status::from_error(error)
    }

    /// Compare the answer when it has been sent.
    pub(super) fn compare_when_sent(&self, comparison: Option<CompareOnDrop>) {
        self.state().comparison = comparison;
    }

    /// The error of a message that could not be read: the call knows it, or the library found it.
    pub(super) fn read_error(&self, status: &Status) -> ApiError {
        match self.error() {
            Some(code) => ApiError::new(code, status.message()),
            None => status::library_error(status.code())
                .unwrap_or_else(|| ApiError::malformed("the message is malformed")),
        }
    }

    /// The permit of the message that was read last, of so many bytes; the message counts among the bodies
    /// in flight until it is dropped. To be called once for each message, in their order.
    pub(super) fn take_permit(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        self.permits.take(bytes)
    }

    fn state(&self) -> MutexGuard<'_, CallState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log of a call, which the call gets back when this is dropped.
pub(super) struct CallLogGuard {
    log: RequestLog,
    call: Arc<Call>,
}

impl CallLogGuard {
    /// The response of the method.
    pub(super) fn respond<T>(
        self,
        outcome: Result<T, ApiError>,
    ) -> Result<tonic::Response<T>, Status> {
        match outcome {
            Ok(answer) => Ok(tonic::Response::new(answer)),
            Err(error) => Err(self.call.fail(&error)),
        }
    }
}

impl Deref for CallLogGuard {
    type Target = RequestLog;

    fn deref(&self) -> &RequestLog {
        &self.log
    }
}

impl DerefMut for CallLogGuard {
    fn deref_mut(&mut self) -> &mut RequestLog {
        &mut self.log
    }
}

impl Drop for CallLogGuard {
    fn drop(&mut self) {
        self.call.state().log = self.log.clone();
    }
}
