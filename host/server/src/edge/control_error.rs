//! Errors of changes, for callers.

use super::error::{ApiError, ErrorCode};
use guesthouse_artifact::ArtifactError;
use guesthouse_control::control::{ControlError, KeyChangeError};
use guesthouse_control::ledger::LedgerError;
use guesthouse_control::registry::{Failure, FailureCause, LoadError};
use guesthouse_control::rollout::RolloutError;
use guesthouse_control::router::RouteError;
use guesthouse_runtime::store::StoreError;

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let message = error.to_string();
        let with = |code| Self::new(code, guesthouse_model::terminal::reason(&message));
        match error {
            ControlError::UnknownModel => RouteError::UnknownModel.into(),
            ControlError::Rollout(RolloutError::UnknownVersion(_)) => with(ErrorCode::NotFound),
            ControlError::Rollout(RolloutError::OverWhole(_)) => with(ErrorCode::MalformedRequest),
            ControlError::Rollout(_) => with(ErrorCode::Conflict),
            ControlError::Revision { .. } => with(ErrorCode::RevisionConflict),
            ControlError::IdempotencyMismatch => with(ErrorCode::IdempotencyMismatch),
            ControlError::Key(KeyChangeError::Unknown) => with(ErrorCode::NotFound),
            ControlError::Key(_) | ControlError::DuplicateKey(_) => with(ErrorCode::Conflict),
            ControlError::Randomness(_) | ControlError::Clock => with(ErrorCode::Internal),
            ControlError::Contract { changes, .. } => {
                Self { violations: changes, ..with(ErrorCode::ContractViolation) }
            }
            ControlError::Artifact(error) => with(artifact_code(&error)),
            ControlError::Load(error) => with(load_code(&error)),
            ControlError::NotLoaded(failure) => with(failure_code(&failure)),
            ControlError::Store(error) => storage_error(error.is_full(), &error),
            ControlError::Ledger(error) => storage_error(error.is_full(), &error),
        }
    }
}

fn artifact_code(error: &ArtifactError) -> ErrorCode {
    match error {
        ArtifactError::Read(_) => ErrorCode::Internal,
        _ => ErrorCode::UnacceptableArtifact,
    }
}

fn load_code(error: &LoadError) -> ErrorCode {
    match error {
        LoadError::Artifact(error) => artifact_code(error),
        LoadError::BudgetExceeded(_) => ErrorCode::Conflict,
        LoadError::Preinit(_) | LoadError::Proof(_) if error.cause() == FailureCause::Transient => {
            ErrorCode::Internal
        }
        LoadError::Preinit(_) | LoadError::Signature(_) | LoadError::Proof(_) => {
            ErrorCode::UnacceptableArtifact
        }
        LoadError::Store(error) if error.is_full() => ErrorCode::InsufficientStorage,
        LoadError::Store(_) | LoadError::Engine(_) | LoadError::Panicked(_) => ErrorCode::Internal,
    }
}

/// The code of a failure in the history.
fn failure_code(failure: &Failure) -> ErrorCode {
    match (failure.cause, failure.step) {
        (_, "admission") => ErrorCode::Conflict,
        (FailureCause::Transient, _) => ErrorCode::Internal,
        (FailureCause::Artifact | FailureCause::Unknown, _) => ErrorCode::UnacceptableArtifact,
    }
}

/// The error for a failure of the disk. Operators need the reason, which contains no secrets.
fn storage_error(is_full: bool, error: &(dyn std::error::Error + 'static)) -> ApiError {
    let reason = guesthouse_control::registry::error_chain(error);
    tracing::error!(reason, "a change failed");
    let code = if is_full { ErrorCode::InsufficientStorage } else { ErrorCode::Internal };
    ApiError::new(code, reason)
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        storage_error(error.is_full(), &error)
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        storage_error(error.is_full(), &error)
    }
}
