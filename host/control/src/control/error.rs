//! Why a change was not made.

use std::sync::Arc;

use semver::Version;

use crate::keys::{self, KeyName, MAX_KEYS, SameKey};
use crate::ledger::LedgerError;
use crate::registry::{Cause, Failure, LoadError};
use crate::rollout::Refusal;
use guesthouse_artifact::ArtifactError;
use guesthouse_model::contract;
use guesthouse_runtime::store::StoreError;

/// A change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such model.
    #[error("there is no such model")]
    UnknownModel,
    /// The rules do not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Somebody else has changed the model.
    #[error("the model is at revision {is}, not {expected}")]
    Revision {
        /// What the caller has seen.
        expected: u64,
        /// What it is.
        is: u64,
    },
    /// The key was used for something else.
    #[error("the idempotency key was used for another request")]
    KeyMismatch,
    /// The number of the version promises more than its signature keeps.
    #[error("{new} after {old} promises callers more than its signature keeps")]
    Contract {
        /// The version before.
        old: Version,
        /// The version after.
        new: Version,
        /// What callers would notice.
        changes: Vec<contract::SignatureChange>,
    },
    /// The rules for keys do not allow it.
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    /// Two keys would be taken for each other.
    #[error(transparent)]
    SameKey(#[from] SameKey),
    /// The operating system gives no randomness for a key.
    #[error("make a key: {0}")]
    Randomness(keys::RandomnessError),
    /// The machine's clock is before 1970.
    #[error("make a key: the clock is wrong")]
    Clock,
    /// The artifact cannot be read or is none.
    #[error("{}", crate::registry::chain(.0))]
    Artifact(#[from] ArtifactError),
    /// The version cannot be loaded.
    #[error("{}", crate::registry::chain(.0))]
    Load(#[from] LoadError),
    /// The model has no version but one that could not be loaded.
    #[error("{}", .0.reason)]
    NotLoaded(Failure),
    /// The state folder cannot be used.
    #[error("{}", crate::registry::chain(.0))]
    Store(#[from] StoreError),
    /// The ledger cannot be used.
    #[error("{}", crate::registry::chain(.0))]
    Ledger(#[from] LedgerError),
}

impl ControlError {
    /// What kind of failure it is, for a version that it keeps from being loaded.
    fn cause(&self) -> Cause {
        match self {
            Self::Load(error) => error.cause(),
            Self::NotLoaded(failure) => failure.cause,
            Self::Artifact(ArtifactError::Read(_)) | Self::Store(_) | Self::Ledger(_) => {
                Cause::Accident
            }
            _ => Cause::Artifact,
        }
    }

    /// The step that refused a version, a word for everybody, and the reason.
    pub(super) fn failure(&self) -> Failure {
        let step = match self {
            Self::Load(error) => error.step(),
            Self::NotLoaded(failure) => failure.step,
            Self::Artifact(_) => "artifact",
            Self::Contract { .. } => "contract",
            Self::Store(_) | Self::Ledger(_) => "store",
            Self::UnknownModel
            | Self::Refused(_)
            | Self::Revision { .. }
            | Self::KeyMismatch
            | Self::Key(_)
            | Self::SameKey(_)
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

/// A key cannot be made or revoked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// Another one that is not revoked has the name.
    #[error("there is a key with the name {0}")]
    NameTaken(KeyName),
    /// There are as many as there may be.
    #[error("there are {MAX_KEYS} keys: revoke one that nobody uses")]
    TooMany,
    /// Nobody has made one with this id, or it was revoked long ago.
    #[error("there is no key with this id; those of the configuration are revoked there")]
    Unknown,
}
