//! What the admin API answers, as far as it is shown to people: fields that are not named here are
//! for programs, and new ones are no reason to fail.

use std::collections::BTreeMap;

use guesthouse_control::rollout::Share;
use semver::Version;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) revision: u64,
    pub(super) audit_head: Option<String>,
    pub(super) models: Vec<Model>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Model {
    pub(super) model: String,
    pub(super) revision: u64,
    #[serde(flatten)]
    pub(super) routing: Routing,
    pub(super) versions: Vec<ModelVersion>,
}

/// Who gets which version.
#[derive(Debug, Deserialize)]
pub(super) struct Routing {
    pub(super) stable: Option<Version>,
    #[serde(default)]
    pub(super) candidates: BTreeMap<Version, Share>,
    pub(super) shadow: Option<Shadow>,
    /// Those promoted before the stable one, the newest last.
    #[serde(default)]
    pub(super) promoted: Vec<Version>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Shadow {
    pub(super) version: Version,
    pub(super) share: Share,
}

#[derive(Debug, Deserialize)]
pub(super) struct ModelVersion {
    pub(super) version: Version,
    /// None of one that was refused before it was deployed, or that drains after it was undeployed.
    pub(super) digest: Option<String>,
    pub(super) state: String,
    #[serde(default)]
    pub(super) suspended: bool,
    pub(super) failed_step: Option<String>,
    pub(super) reason: Option<String>,
}

/// What a change came to.
#[derive(Debug, Deserialize)]
pub(super) struct Change {
    pub(super) model: String,
    pub(super) revision: u64,
    pub(super) changed: bool,
    #[serde(default)]
    pub(super) dry_run: bool,
    pub(super) status: String,
    pub(super) before: Option<Routing>,
    pub(super) after: Option<Routing>,
}

/// A deployment, under way or at its end.
#[derive(Debug, Deserialize)]
pub(super) struct Operation {
    pub(super) operation: String,
    pub(super) state: OperationState,
    #[serde(default)]
    pub(super) steps: Vec<Step>,
    pub(super) result: Option<Deployed>,
    #[serde(default)]
    pub(super) error: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OperationState {
    Running,
    Done,
    Failed,
}

#[derive(Debug, Deserialize)]
pub(super) struct Step {
    pub(super) step: String,
    /// None as long as it is under way.
    pub(super) milliseconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Deployed {
    #[serde(flatten)]
    pub(super) change: Change,
    pub(super) version: Version,
    pub(super) digest: String,
    pub(super) replay: Option<Replay>,
    /// The server did it before, and this is what came of it then.
    #[serde(default)]
    pub(super) replayed: bool,
}

/// What the version answers to the golden examples of the one before.
#[derive(Debug, Deserialize)]
pub(super) struct Replay {
    pub(super) examples: u64,
    #[serde(default)]
    pub(super) differences: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct History {
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    pub(super) sequence: u64,
    pub(super) revision: Option<u64>,
    pub(super) time: String,
    pub(super) actor: Option<String>,
    pub(super) operation: String,
    pub(super) model: Option<String>,
    pub(super) key: Option<KeySubject>,
    pub(super) version: Option<Version>,
    pub(super) reason: Option<String>,
    pub(super) status: Option<String>,
    pub(super) outcome: String,
    #[serde(default)]
    pub(super) error: Value,
}

#[derive(Debug, Deserialize)]
pub(super) struct Resolution {
    pub(super) model: String,
    #[serde(default)]
    pub(super) matches: Vec<Match>,
    /// None, if it differs from request to request.
    pub(super) version: Option<Version>,
    pub(super) reason: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Match {
    pub(super) version: Version,
    pub(super) reason: String,
    pub(super) share: Share,
}

/// The key that an entry of the history is about.
#[derive(Debug, Deserialize)]
pub(super) struct KeySubject {
    pub(super) id: String,
    pub(super) name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Keys {
    pub(super) keys: Vec<Key>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Key {
    /// None of one that stands in the configuration, or that was only tried.
    pub(super) id: Option<String>,
    pub(super) name: String,
    pub(super) scopes: Vec<String>,
    pub(super) state: String,
    pub(super) expires: Option<String>,
    pub(super) rate: Option<Rate>,
    pub(super) source: String,
    pub(super) created_by: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Rate {
    pub(super) per_second: f64,
    pub(super) burst: u32,
}

/// What a change of keys came to.
#[derive(Debug, Deserialize)]
pub(super) struct KeyChange {
    pub(super) key: Key,
    pub(super) revision: u64,
    pub(super) changed: bool,
    pub(super) dry_run: bool,
    pub(super) status: String,
    /// The key itself, the one time that it is told.
    pub(super) secret: Option<String>,
}
