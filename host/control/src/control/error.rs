//! Why a change was not made.

use std::sync::Arc;

use semver::Version;

use crate::keys::{self, DuplicateKey, KeyName, MAX_KEYS};
use crate::ledger::LedgerError;
use crate::registry::{Failure, FailureCause, LoadError};
use crate::rollout::RolloutError;
use guesthouse_artifact::ArtifactError;
use guesthouse_model::contract;
use guesthouse_runtime::store::StoreError;

/// Why a change was not made. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such model.
    #[error("there is no such model")]
    UnknownModel,
    /// The rollout rules do not allow it.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// The model has been changed since the caller has seen it.
    #[error("the model is at revision {is}, not {expected}")]
    Revision {
        /// The revision that the caller has seen.
        expected: u64,
        /// The current revision.
        is: u64,
    },
    /// The idempotency key was used for another request.
    #[error("the idempotency key was used for another request")]
    IdempotencyMismatch,
    /// The step between two version numbers is too small for the change of the signature.
    #[error("{new} after {old} promises callers more than its signature keeps")]
    Contract {
        /// The lower version.
        old: Version,
        /// The higher version.
        new: Version,
        /// The changes that the step does not allow.
        changes: Vec<contract::SignatureChange>,
    },
    /// The key cannot be created or revoked.
    #[error(transparent)]
    Key(#[from] KeyChangeError),
    /// Two keys have the same name or hash.
    #[error(transparent)]
    DuplicateKey(#[from] DuplicateKey),
    /// The operating system provides no randomness for a key.
    #[error("make a key: {0}")]
    Randomness(keys::RandomnessError),
    /// The machine's clock is before 1970.
    #[error("make a key: the clock is wrong")]
    Clock,
    /// The file cannot be read or is no artifact.
    #[error("{}", crate::registry::error_chain(.0))]
    Artifact(#[from] ArtifactError),
    /// The version cannot be loaded.
    #[error("{}", crate::registry::error_chain(.0))]
    Load(#[from] LoadError),
    /// The model only has versions that could not be loaded.
    #[error("{}", .0.reason)]
    NotLoaded(Failure),
    /// The state folder cannot be used.
    #[error("{}", crate::registry::error_chain(.0))]
    Store(#[from] StoreError),
    /// The ledger cannot be used.
    #[error("{}", crate::registry::error_chain(.0))]
    Ledger(#[from] LedgerError),
}

impl ControlError {
    /// Where the failure comes from, for a version that it keeps from being loaded.
    fn cause(&self) -> FailureCause {
        match self {
            Self::Load(error) => error.cause(),
            Self::NotLoaded(failure) => failure.cause,
            Self::Artifact(ArtifactError::Read(_)) | Self::Store(_) | Self::Ledger(_) => {
                FailureCause::Transient
            }
            _ => FailureCause::Artifact,
        }
    }

    /// The failure of a version that cannot be loaded because of this error.
    pub(super) fn failure(&self) -> Failure {
        let step = match self {
            Self::Load(error) => error.step(),
            Self::NotLoaded(failure) => failure.step,
            Self::Artifact(_) => "artifact",
            Self::Contract { .. } => "contract",
            Self::Store(_) | Self::Ledger(_) => "store",
            Self::UnknownModel
            | Self::Rollout(_)
            | Self::Revision { .. }
            | Self::IdempotencyMismatch
            | Self::Key(_)
            | Self::DuplicateKey(_)
            | Self::Randomness(_)
            | Self::Clock => "conflict",
        };
        let reason = match self {
            Self::Contract { changes, .. } => {
                let changes: Vec<_> = changes
                    .iter()
                    .map(|change| format!("{}: {}", change.bump, change.what))
                    .collect();
                format!("{self}: {}", changes.join("; "))
            }
            _ => self.to_string(),
        };
        let reason: Arc<str> = guesthouse_model::terminal::reason(&reason).into();
        Failure { step, reason, cause: self.cause(), retry_at: None }
    }
}

/// Why a key cannot be created or revoked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyChangeError {
    /// Another key that is not revoked has the name.
    #[error("there is a key with the name {0}")]
    NameTaken(KeyName),
    /// The number of keys is at its limit.
    #[error("there are {MAX_KEYS} keys: revoke one that nobody uses")]
    TooMany,
    /// There is no such key in the ledger, or it was revoked long ago.
    #[error("there is no key with this id; those of the configuration are revoked there")]
    Unknown,
}
