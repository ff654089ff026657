//! What a change is asked with, and what comes back.

use semver::Version;
use serde::Serialize;

use super::error::ControlError;
use crate::ledger::{Author, Request};
use crate::rollout::{ModelState, Routing, Status};
use guesthouse_artifact::Digest;
use guesthouse_model::ModelName;

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
