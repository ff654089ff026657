//! The options of a change, and its outcome.

use semver::Version;
use serde::Serialize;

use super::error::ControlError;
use crate::ledger::{Author, IdempotentRequest};
use crate::rollout::{ModelState, Routing, Status};
use guesthouse_artifact::Digest;
use guesthouse_model::ModelName;

/// Who makes a change, and on what conditions.
#[derive(Debug, Clone, Default)]
pub struct ChangeOptions {
    /// Who makes it, and why.
    pub author: Author,
    /// The revision of the model that the caller has seen. The change is refused if there is a later one.
    pub expected_revision: Option<u64>,
    /// Whether nothing is changed, and the outcome says what would be.
    pub dry_run: bool,
    /// The identity of the request, by which a repetition is recognised.
    pub request: Option<IdempotentRequest>,
}

impl ChangeOptions {
    /// The options of a change that a part of the host makes.
    pub(super) fn for_host(part: &str) -> Self {
        let author = Author { actor: part.to_owned(), reason: None };
        Self { author, ..Self::default() }
    }

    /// Check that the caller has seen the last change of the model.
    pub(super) fn check_revision(&self, state: &ModelState) -> Result<(), ControlError> {
        match self.expected_revision {
            Some(expected) if expected != state.revision => {
                Err(ControlError::Revision { expected, is: state.revision })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// The outcome of a request for a change.
#[derive(Debug)]
pub enum ChangeOutcome {
    /// The change was made, or there was nothing to do, or it was a dry run.
    Made(Box<ChangeReport>),
    /// The request repeats an earlier one: the response to that, in JSON.
    Replayed(String),
}

/// The report of a change.
#[derive(Debug, Clone, Serialize)]
pub struct ChangeReport {
    /// The model.
    pub model: ModelName,
    /// The revision of the model after the change.
    pub revision: u64,
    /// Whether anything has changed.
    pub changed: bool,
    /// Whether it was a dry run. Then `after` is what would be.
    pub dry_run: bool,
    /// The status of the rollout.
    pub status: Status,
    /// The routing before.
    pub before: Routing,
    /// The routing after.
    pub after: Routing,
    /// What the deployment has found out, if it was one.
    #[serde(flatten)]
    pub deploy: Option<DeployReport>,
}

/// What a deployment has found out.
#[derive(Debug, Clone, Serialize)]
pub struct DeployReport {
    /// The version.
    pub version: Version,
    /// The digest of its artifact.
    pub digest: Digest,
    /// The comparison with the next lower version; none if there is none.
    pub replay: Option<Replay>,
}

/// The comparison of a version with the golden examples of another one.
#[derive(Debug, Clone, Serialize)]
pub struct Replay {
    /// The version that the examples are of.
    pub of: Version,
    /// The number of examples.
    pub examples: usize,
    /// One line for each example with another result.
    pub differences: Vec<String>,
}
