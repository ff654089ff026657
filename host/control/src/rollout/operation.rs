//! The operations, and what they are told and answer.

use std::collections::BTreeMap;
use std::fmt;

use semver::Version;
use serde::Serialize;

use super::{ModelState, ShadowShare};
use guesthouse_artifact::Digest;

/// A change of what is served. Its JSON form is part of the fingerprints of idempotent requests, which
/// the ledger keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// A version whose artifact was proved.
    Deploy {
        /// The version.
        version: Version,
        /// Its artifact.
        digest: Digest,
        /// Whether it is made the stable one at once.
        promotion: Promotion,
    },
    /// Make a version the stable one.
    Promote {
        /// The version.
        version: Version,
        /// Whether a rollout of another version ends with it.
        supersede: bool,
    },
    /// Give a candidate a share of the traffic.
    Canary {
        /// The version.
        version: Version,
        /// Parts per million.
        weight: u32,
        /// Whether a rollout of another version ends with it.
        supersede: bool,
    },
    /// Let a version answer a share of the requests once more, or end it.
    Shadow(Option<ShadowShare>),
    /// End a rollout, or go back to what was promoted before.
    Rollback {
        /// Further back than once.
        to: Option<Version>,
    },
    /// Take a version away to which nothing points.
    Undeploy {
        /// The version.
        version: Version,
    },
    /// Promote the highest of these, leaving out pre-releases, if nothing is promoted.
    Adopt {
        /// Versions that can serve.
        ready: Vec<Version>,
    },
    /// Put a split of the configuration file into force.
    Configure {
        /// Parts per million; none if the file says nothing any more.
        split: Option<BTreeMap<Version, u32>>,
    },
}

impl Operation {
    /// The word for history and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Deploy { .. } => "deploy",
            Self::Promote { .. } => "promote",
            Self::Canary { .. } => "canary",
            Self::Shadow(_) => "shadow",
            Self::Rollback { .. } => "rollback",
            Self::Undeploy { .. } => "undeploy",
            Self::Adopt { .. } => "adopt",
            Self::Configure { .. } => "configure",
        }
    }

    /// The version that it is about, in the state as it is: for most, one that has to be loaded.
    pub fn version(&self, state: &ModelState) -> Option<Version> {
        match self {
            Self::Deploy { version, .. }
            | Self::Promote { version, .. }
            | Self::Canary { version, .. }
            | Self::Undeploy { version } => Some(version.clone()),
            Self::Shadow(shadow) => shadow.as_ref().map(|shadow| shadow.version.clone()),
            Self::Rollback { to: Some(to) } => Some(to.clone()),
            Self::Rollback { to: None } if state.routing.is_split() => state.routing.stable.clone(),
            Self::Rollback { to: None } => state.routing.promoted.last().cloned(),
            Self::Adopt { .. } | Self::Configure { .. } => None,
        }
    }

    /// Whether the version must be able to serve.
    pub fn needs_ready(&self) -> bool {
        match self {
            Self::Promote { .. }
            | Self::Canary { .. }
            | Self::Shadow(_)
            | Self::Rollback { .. } => true,
            Self::Deploy { .. }
            | Self::Undeploy { .. }
            | Self::Adopt { .. }
            | Self::Configure { .. } => false,
        }
    }
}

/// Whether a version that is deployed becomes the stable one at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promotion {
    /// It does not.
    No,
    /// It does if nothing is promoted and it is no pre-release.
    IfFirst,
    /// It does, or is not deployed.
    Yes,
}

/// What became of a version, in the words that operators of other systems know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Status {
    /// There is a version more.
    Deployed,
    /// A version is stable.
    Promoted,
    /// A candidate has a share.
    Canary,
    /// A candidate has the place of another one.
    Superseded,
    /// A version is compared with what is served, or is no more.
    Shadow,
    /// Candidates have nothing any more.
    Aborted,
    /// The stable version is one of before.
    RolledBack,
    /// There is a version less.
    Undeployed,
    /// The configuration's split is in force.
    Configured,
}

impl Status {
    /// The word for history and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployed => "Deployed",
            Self::Promoted => "Promoted",
            Self::Canary => "Canary",
            Self::Superseded => "Superseded",
            Self::Shadow => "Shadow",
            Self::Aborted => "Aborted",
            Self::RolledBack => "RolledBack",
            Self::Undeployed => "Undeployed",
            Self::Configured => "Configured",
        }
    }
}

/// What an operation comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The next state; equal to the last one if there was nothing to do.
    pub state: ModelState,
    /// What became of it.
    pub status: Status,
}

/// The rules do not allow an operation. The state stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such version.
    #[error("version {0} is not deployed")]
    UnknownVersion(Version),
    /// The version exists with other content, or but for its build metadata.
    #[error("version {0} is deployed with other content ({1}), and a version never changes")]
    OtherContent(Version, Digest),
    /// The version cannot serve.
    #[error("version {0} is not ready")]
    NotReady(Version),
    /// Another version is being rolled out.
    #[error("a rollout of {0} is under way: promote it, roll it back, or supersede it")]
    RolloutActive(Version),
    /// A lower version than the stable one.
    #[error("{0} is lower than the stable version {1}: go back by a rollback")]
    Downgrade(Version, Version),
    /// The stable version cannot be its own candidate or shadow.
    #[error("{0} is the stable version itself")]
    IsStable(Version),
    /// There is no stable version yet.
    #[error("no version is promoted yet")]
    NothingPromoted,
    /// Nothing was promoted before.
    #[error("there is nothing to go back to: no version was promoted before {0}")]
    NothingBefore(Version),
    /// Only what was promoted before can be gone back to.
    #[error("{0} was not promoted before the stable version")]
    NeverPromoted(Version),
    /// Something points to the version.
    #[error("version {0} is in use: it is {1}")]
    InUse(Version, Use),
    /// More than everything.
    #[error("{0} parts per million are more than all of the traffic")]
    OverWhole(u64),
}

/// What points to a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It is promoted.
    Stable,
    /// It has a share.
    Candidate,
    /// It is compared.
    Shadow,
    /// A rollback goes to it.
    RollbackTarget,
}

impl fmt::Display for Use {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Stable => "stable",
            Self::Candidate => "a candidate",
            Self::Shadow => "a shadow",
            Self::RollbackTarget => "what a rollback goes back to",
        })
    }
}
