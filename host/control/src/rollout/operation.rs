//! The operations on a model, and their outcomes.

use std::collections::BTreeMap;
use std::fmt;

use semver::Version;
use serde::Serialize;

use super::state::{ModelState, ShadowShare};
use guesthouse_artifact::Digest;

/// A change of what is served. Its JSON form is part of the fingerprints of idempotent requests, which the
/// ledger stores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Add a version whose artifact was proved.
    Deploy {
        /// The version.
        version: Version,
        /// Its artifact.
        digest: Digest,
        /// Whether it becomes the stable version at once.
        promotion: Promotion,
    },
    /// Make a version the stable one.
    Promote {
        /// The version.
        version: Version,
        /// Whether a rollout of another version is ended by it.
        supersede: bool,
    },
    /// Give a version a share of the traffic as a candidate.
    Canary {
        /// The version.
        version: Version,
        /// Parts per million.
        weight: u32,
        /// Whether a rollout of another version is ended by it.
        supersede: bool,
    },
    /// Compare a version on a share of the requests, or stop comparing.
    Shadow(Option<ShadowShare>),
    /// End a rollout, or go back to the version that was promoted before.
    Rollback {
        /// The version to go back to, if not the previous one.
        to: Option<Version>,
    },
    /// Remove a version that is not in use.
    Undeploy {
        /// The version.
        version: Version,
    },
    /// Make the highest of these the stable version, without pre-releases, if there is none.
    Adopt {
        /// The versions that can serve.
        ready: Vec<Version>,
    },
    /// Apply a split of the configuration file.
    Configure {
        /// Weights in parts per million; none if the file has no split for the model any more.
        split: Option<BTreeMap<Version, u32>>,
    },
}

impl Operation {
    /// The name in history and logs.
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

    /// The version that the operation is about, in this state.
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

    /// Whether the version must be loaded.
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

/// Whether a deployed version becomes the stable one at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promotion {
    /// It does not.
    No,
    /// It does if there is no stable version and it is no pre-release.
    IfFirst,
    /// It does. If the rules do not allow it, the version is not deployed either.
    Yes,
}

/// The outcome of an operation for a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Status {
    /// A version was added.
    Deployed,
    /// A version became the stable one.
    Promoted,
    /// A candidate got a share.
    Canary,
    /// A candidate replaced another one.
    Superseded,
    /// A shadow was set or removed.
    Shadow,
    /// A rollout was ended: candidates get no traffic.
    Aborted,
    /// A previous version is the stable one again.
    RolledBack,
    /// A version was removed.
    Undeployed,
    /// A split of the configuration was applied.
    Configured,
}

impl Status {
    /// The name in history and responses.
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

/// The effect of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The next state; equal to the previous one if there was nothing to do.
    pub state: ModelState,
    /// The outcome.
    pub status: Status,
}

/// Why the rules do not allow an operation. The state is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RolloutError {
    /// There is no such version.
    #[error("version {0} is not deployed")]
    UnknownVersion(Version),
    /// The version is deployed with another artifact, or differs in its build metadata only.
    #[error("version {0} is deployed with other content ({1}), and a version never changes")]
    OtherContent(Version, Digest),
    /// The version is not loaded.
    #[error("version {0} is not ready")]
    NotReady(Version),
    /// Another version is being rolled out.
    #[error("a rollout of {0} is under way: promote it, roll it back, or supersede it")]
    RolloutActive(Version),
    /// The version is lower than the stable one.
    #[error("{0} is lower than the stable version {1}: go back by a rollback")]
    Downgrade(Version, Version),
    /// The stable version cannot be a candidate or a shadow.
    #[error("{0} is the stable version itself")]
    IsStable(Version),
    /// There is no stable version yet.
    #[error("no version is promoted yet")]
    NothingPromoted,
    /// No version was promoted before the stable one.
    #[error("there is nothing to go back to: no version was promoted before {0}")]
    NothingBefore(Version),
    /// A rollback can only go to a version that was promoted before.
    #[error("{0} was not promoted before the stable version")]
    NeverPromoted(Version),
    /// The version is in use.
    #[error("version {0} is in use: it is {1}")]
    InUse(Version, VersionUse),
    /// The weights are more than all of the traffic.
    #[error("{0} parts per million are more than all of the traffic")]
    OverWhole(u64),
}

/// How a version is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionUse {
    /// It is the stable version.
    Stable,
    /// It is a candidate.
    Candidate,
    /// It is a shadow.
    Shadow,
    /// It is the target of a rollback.
    RollbackTarget,
}

impl fmt::Display for VersionUse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Stable => "stable",
            Self::Candidate => "a candidate",
            Self::Shadow => "a shadow",
            Self::RollbackTarget => "what a rollback goes back to",
        })
    }
}
