//! What is known of a call, between what is done around it and the method that answers it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::{Extensions, HeaderMap};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::arriving::Held;
use super::method::Method;
use super::status;
use crate::edge::access;
use crate::edge::compare::CompareOnDrop;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::observe::Account;

/// A call. Its method finds it in the extensions of the request.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(super) held: Arc<Held>,
    /// As they came.
    pub(crate) headers: HeaderMap,
    noted: Mutex<Noted>,
}

/// What the line in the log is to say.
struct Noted {
    account: Account,
    error: Option<ErrorCode>,
    /// Dropped with the call, when its answer is on its way.
    comparison: Option<CompareOnDrop>,
}

impl Call {
    pub(super) fn new(
        method: Method,
        held: Arc<Held>,
        headers: HeaderMap,
        account: Account,
    ) -> Arc<Self> {
        let noted = Mutex::new(Noted { account, error: None, comparison: None });
        Arc::new(Self { method, held, headers, noted })
    }

    /// The call of a request.
    pub(crate) fn of(extensions: &Extensions) -> Result<Arc<Self>, Status> {
        let call = extensions.get::<Arc<Self>>().cloned();
        call.ok_or_else(|| status::of(&ApiError::new(ErrorCode::Internal, "the call is not known")))
    }

    /// Work on it: what is found out by then is known, however the work ends.
    pub(crate) fn work(self: &Arc<Self>) -> Work {
        Work { account: self.account(), call: Arc::clone(self) }
    }

    /// Whether its caller says who it is.
    pub(super) fn has_key(&self) -> bool {
        access::carries_key(&self.headers)
    }

    /// What is known of it so far.
    pub(crate) fn account(&self) -> Account {
        self.noted().account.clone()
    }

    /// Why it comes to nothing, if that is known.
    pub(super) fn error(&self) -> Option<ErrorCode> {
        self.noted().error
    }

    /// It comes to nothing.
    pub(crate) fn fail(&self, error: &ApiError) -> Status {
        self.noted().error = Some(error.code);
        status::of(error)
    }

    /// Compare the answer once it is on its way.
    pub(super) fn compare_when_sent(&self, comparison: Option<CompareOnDrop>) {
        self.noted().comparison = comparison;
    }

    /// Why a message could not be read: known to the call, or found by the library.
    pub(super) fn read_error(&self, status: &Status) -> ApiError {
        match self.error() {
            Some(code) => ApiError::new(code, status.message()),
            None => status::of_library(status.code())
                .unwrap_or_else(|| ApiError::malformed("the message is malformed")),
        }
    }

    /// The memory of the message that has just been read, which is this long; it counts until this is
    /// dropped. One for each message, in their order.
    pub(crate) fn take_message(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        self.held.take(bytes)
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call at work: its account, which the call has again when this is dropped.
pub(crate) struct Work {
    account: Account,
    call: Arc<Call>,
}

impl Work {
    /// What the method answers.
    pub(crate) fn end<T>(self, outcome: Result<T, ApiError>) -> Result<tonic::Response<T>, Status> {
        match outcome {
            Ok(answer) => Ok(tonic::Response::new(answer)),
            Err(error) => Err(self.call.fail(&error)),
        }
    }
}

impl Deref for Work {
    type Target = Account;

    fn deref(&self) -> &Account {
        &self.account
    }
}

impl DerefMut for Work {
    fn deref_mut(&mut self) -> &mut Account {
        &mut self.account
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.call.noted().account = self.account.clone();
    }
}
