//! What a change is asked with, and what comes back.

use std::sync::Arc;

use semver::Version;
use serde::Serialize;

use super::KeyRefusal;
use crate::keys::{self, SameKey};
use crate::ledger::{Author, LedgerError, Request};
use crate::registry::{Cause, Failure, LoadError};
use crate::rollout::{ModelState, Refusal, Routing, Status};
use guesthouse_artifact::{ArtifactError, Digest};
use guesthouse_model::ModelName;
use guesthouse_model::contract;
use guesthouse_runtime::store::StoreError;

/// Who asks for a change, and on what conditions.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Who and why.
    pub author: Author,
    /// The revision of the model that the caller has seen.
    pub expected_revision: Option<u64>,
    /// Whether nothing is to be changed.
    pub dry_run: bool,
    /// How the caller tells that it asks again.
    pub request: Option<Request>,
}

impl Ask {
    /// What a part of the host itself does.
    pub(super) fn of_host(part: &str) -> Self {
        let author = Author { actor: part.to_owned(), reason: None };
        Self { author, ..Self::default() }
    }

    /// Whether the caller has seen the last change.
    pub(super) fn check_revision(&self, state: &ModelState) -> Result<(), ControlError> {
        match self.expected_revision {
            Some(expected) if expected != state.revision => {
                Err(ControlError::Revision { expected, is: state.revision })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// The answer to a request for a change.
#[derive(Debug)]
pub enum Answer {
    /// The change was made now, or there was nothing to do, or it was a trial.
    Now(Box<Changed>),
    /// The same was asked before: what was answered then, in JSON.
    Before(String),
}

/// A change that was made.
#[derive(Debug, Clone, Serialize)]
pub struct Changed {
    /// The model.
    pub model: ModelName,
    /// The model's revision now.
    pub revision: u64,
    /// Whether anything is different.
    pub changed: bool,
    /// Whether it was a trial: `after` is what would be.
    pub dry_run: bool,
    /// What became of it.
    pub status: Status,
    /// What went where.
    pub before: Routing,
    /// What goes where.
    pub after: Routing,
    /// What a deployment has found out.
    #[serde(flatten)]
    pub deploy: Option<DeployReport>,
}

/// What a deployment has found out.
#[derive(Debug, Clone, Serialize)]
pub struct DeployReport {
    /// The version.
    pub version: Version,
    /// Its artifact.
    pub digest: Digest,
    /// How it answers the golden examples of the version before it; none if there is none.
    pub replay: Option<Replay>,
}

/// How a version answers the golden examples of another one.
#[derive(Debug, Clone, Serialize)]
pub struct Replay {
    /// Whose examples.
    pub of: Version,
    /// How many there are.
    pub examples: usize,
    /// A line for each that comes out differently.
    pub differences: Vec<String>,
}

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
