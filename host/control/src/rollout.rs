//! Which versions of a model are served and what goes to them, and how that may change.
//!
//! Pure: a [`ModelState`] and an [`Operation`] give the next state, or a reason why not. Nothing is
//! loaded, kept or logged here. Weights are parts per million.

mod operation;
mod rules;
mod share;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use semver::Version;
use serde::{Deserialize, Serialize};

pub use operation::{Operation, Outcome, Promotion, Refusal, Status};
pub use rules::{Decision, Rules, apply, decide};
pub use share::{Share, ShareError};

use guesthouse_artifact::Digest;
use guesthouse_model::Channel;

/// What the weights of a split add up to.
pub const WHOLE: u32 = 1_000_000;

/// What an operator has decided about one model. What the host keeps, and all it needs to serve the
/// same again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelState {
    /// Of the last change of this model, in the one sequence of all changes; 0 before the first.
    pub revision: u64,
    /// Every version that is deployed.
    pub versions: BTreeMap<Version, Deployed>,
    /// What goes where.
    pub routing: Routing,
    /// Artifacts that were undeployed: a file of the repository folder does not bring them back.
    pub withdrawn: Vec<Digest>,
    /// The split of the configuration file that was put into force last.
    pub configured: Option<BTreeMap<Version, u32>>,
}

/// A version that is deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployed {
    /// Its artifact.
    pub digest: Digest,
    /// Whether it is kept loaded.
    pub stage: Stage,
}

/// Whether a version is kept loaded, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Stage {
    /// Traffic goes to it, or might soon.
    Deployed,
    /// It was replaced by that revision, and stays loaded for going back.
    Parked(u64),
    /// It was replaced by that revision, longer ago; it is loaded again when it is wanted.
    Retired(u64),
}

/// Where the traffic of a model goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    /// The version that was promoted; none until there is one.
    pub stable: Option<Version>,
    /// What candidates get; the stable version gets the rest of [`WHOLE`].
    pub candidates: BTreeMap<Version, u32>,
    /// The version that answers a share of the requests once more, to be compared.
    pub shadow: Option<ShadowShare>,
    /// The versions promoted before the stable one, the latest last.
    pub promoted: Vec<Version>,
}

/// Which version is a shadow, and of how much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowShare {
    /// The version.
    pub version: Version,
    /// The part of the requests.
    pub share: u32,
}

impl Routing {
    /// Whether traffic that asks for no version is divided at all.
    pub fn is_split(&self) -> bool {
        !self.candidates.is_empty()
    }

    /// Versions with what they get of the traffic, in the order in which they take the places from 0
    /// on: candidates first, the newest before the others, so that raising a candidate's weight takes
    /// callers from the stable version and gives it none back.
    pub fn shares(&self) -> impl Iterator<Item = (&Version, u32)> {
        let given: u32 = self.candidates.values().sum();
        let candidates = self.candidates.iter().rev().map(|(version, weight)| (version, *weight));
        candidates.chain(self.stable.iter().map(move |stable| (stable, WHOLE - given)))
    }

    /// The version that has this place, a number below [`WHOLE`].
    pub fn at(&self, place: u32) -> Option<&Version> {
        let mut below = 0;
        self.shares().find_map(|(version, weight)| {
            below += weight;
            (place < below).then_some(version)
        })
    }

    /// What a channel stands for.
    pub fn channel(&self, channel: Channel) -> Option<&Version> {
        match channel {
            Channel::Stable => self.stable.as_ref(),
            Channel::Canary => self.candidates.keys().next_back(),
        }
    }

    /// Whether anything goes to the version.
    pub fn points_to(&self, version: &Version) -> bool {
        self.stable.as_ref() == Some(version)
            || self.candidates.contains_key(version)
            || self.shadow.as_ref().is_some_and(|shadow| shadow.version == *version)
    }
}

impl ModelState {
    /// Versions that are to be loaded, with their artifacts.
    pub fn loaded(&self) -> impl Iterator<Item = (&Version, Digest)> {
        let loaded = |deployed: &Deployed| !matches!(deployed.stage, Stage::Retired(_));
        let versions = self.versions.iter().filter(move |(_, deployed)| loaded(deployed));
        versions.map(|(version, deployed)| (version, deployed.digest))
    }

    /// The version of the same precedence: the same but for build metadata, which does not order.
    pub fn same_precedence(&self, version: &Version) -> Option<(&Version, &Deployed)> {
        self.versions.iter().find(|(other, _)| other.cmp_precedence(version).is_eq())
    }

    /// The next lower and the next higher version.
    pub fn neighbours(&self, version: &Version) -> (Option<&Version>, Option<&Version>) {
        let lower = self.versions.range(..version).next_back().map(|(version, _)| version);
        let mut higher = self.versions.range(version..).map(|(version, _)| version);
        (lower, higher.find(|other| *other != version))
    }
}
