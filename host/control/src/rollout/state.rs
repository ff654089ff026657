//! What operators have decided about a model.

use std::collections::BTreeMap;

use guesthouse_artifact::Digest;
use guesthouse_model::Channel;
use semver::Version;
use serde::{Deserialize, Serialize};

/// The sum of the weights of a split: all requests, in parts per million.
pub const WHOLE: u32 = 1_000_000;

/// What operators have decided about one model. It is stored in the ledger, and is all that a restart needs
/// to serve the same again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelState {
    /// The revision of the last change of this model. Revisions count the changes of all models; 0 before the
    /// first one.
    pub revision: u64,
    /// The deployed versions.
    pub versions: BTreeMap<Version, Deployed>,
    /// The routing of the model's traffic.
    pub routing: Routing,
    /// Artifacts that were undeployed. A file in the repository folder does not deploy them again.
    pub withdrawn: Vec<Digest>,
    /// The split of the configuration file that was applied last.
    pub configured: Option<BTreeMap<Version, u32>>,
}

/// A version that is deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployed {
    /// The digest of its artifact.
    pub digest: Digest,
    /// Whether it is kept loaded.
    pub stage: Stage,
}

/// Whether a version is kept loaded, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Stage {
    /// It is loaded: it gets traffic, or may get some soon.
    Deployed,
    /// It was replaced by the change of this revision, and stays loaded for a rollback.
    Parked(u64),
    /// It was replaced by the change of this revision, and is not loaded any more. A rollback loads it.
    Retired(u64),
}

/// The routing of a model's traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    /// The promoted version; none before the first promotion.
    pub stable: Option<Version>,
    /// The weights of the candidates. The stable version gets the rest of [`WHOLE`].
    pub candidates: BTreeMap<Version, u32>,
    /// The version that is compared on a share of the requests.
    pub shadow: Option<ShadowShare>,
    /// The versions that were promoted before the stable one, the latest last.
    pub promoted: Vec<Version>,
}

/// A shadow and its share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowShare {
    /// The version.
    pub version: Version,
    /// The share of the requests, in parts per million.
    pub share: u32,
}

impl Routing {
    /// Whether requests without a version are split between several versions.
    pub fn is_split(&self) -> bool {
        !self.candidates.is_empty()
    }

    /// The versions with their shares, in the order in which draws from 0 on are assigned to them: candidates
    /// first, the newest before the others, then the stable version. So raising the weight of a candidate
    /// moves callers from the stable version to it, and none in the other direction.
    pub fn shares(&self) -> impl Iterator<Item = (&Version, u32)> {
        let given: u32 = self.candidates.values().sum();
        let candidates = self.candidates.iter().rev().map(|(version, weight)| (version, *weight));
        candidates.chain(self.stable.iter().map(move |stable| (stable, WHOLE - given)))
    }

    /// The version for this draw, a number below [`WHOLE`].
    pub fn version_at(&self, draw: u32) -> Option<&Version> {
        let mut below = 0;
        self.shares().find_map(|(version, weight)| {
            below += weight;
            (draw < below).then_some(version)
        })
    }

    /// The version of a channel.
    pub fn channel(&self, channel: Channel) -> Option<&Version> {
        match channel {
            Channel::Stable => self.stable.as_ref(),
            Channel::Canary => self.candidates.keys().next_back(),
        }
    }

    /// Whether the version gets traffic, or is compared.
    pub fn uses(&self, version: &Version) -> bool {
        self.stable.as_ref() == Some(version)
            || self.candidates.contains_key(version)
            || self.shadow.as_ref().is_some_and(|shadow| shadow.version == *version)
    }
}

impl ModelState {
    /// The versions that should be loaded, with their artifacts.
    pub fn loaded(&self) -> impl Iterator<Item = (&Version, Digest)> {
        let loaded = |deployed: &Deployed| !matches!(deployed.stage, Stage::Retired(_));
        let versions = self.versions.iter().filter(move |(_, deployed)| loaded(deployed));
        versions.map(|(version, deployed)| (version, deployed.digest))
    }

    /// The version with the same precedence: equal except for build metadata.
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
