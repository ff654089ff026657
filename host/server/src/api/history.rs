//! The history: the audit log of all changes.

use schemars::JsonSchema;
use semver::Version;
use serde::{Deserialize, Serialize};

use super::OpenEnum;
use super::schema;
use super::status::Routing;
use guesthouse_artifact::Digest;
use guesthouse_control::keys::KeyName;
use guesthouse_control::ledger;
use guesthouse_model::ModelName;

/// The query of `GET /admin/v1/history`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HistoryQuery {
    /// Only changes of this model.
    #[schemars(with = "Option<schema::ModelName>")]
    pub model: Option<ModelName>,
    /// The most entries of the response: 50 by default, at most 1000.
    #[schemars(with = "Option<schema::Unsigned>")]
    pub limit: Option<usize>,
    /// Only entries with a lower sequence number.
    #[schemars(with = "Option<schema::Unsigned>")]
    pub before: Option<u64>,
}

/// The response of `GET /admin/v1/history`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct History {
    /// The entries, the newest first.
    pub entries: Vec<HistoryEntry>,
}

/// A change, or an attempt that failed. Entries form a chain of hashes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HistoryEntry {
    /// The number of the entry, from 1 without gaps.
    pub sequence: u64,
    /// The number of changes so far, including this one.
    pub revision: u64,
    /// The time of the change.
    #[schemars(with = "schema::Time")]
    pub time: String,
    /// The name of the key that made the change, or the part of the server.
    pub actor: String,
    /// The actor's reason.
    #[serde(default)]
    pub reason: Option<String>,
    /// The operation.
    pub operation: String,
    /// The model that was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::ModelName>")]
    pub model: Option<ModelName>,
    /// The key that was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeySubject>,
    /// The version that the change is about.
    #[serde(default)]
    #[schemars(with = "Option<schema::AnyVersion>")]
    pub version: Option<Version>,
    /// The digest of the version's artifact.
    #[serde(default)]
    #[schemars(with = "Option<schema::Digest>")]
    pub digest: Option<Digest>,
    /// Whether the change was made.
    pub outcome: OpenEnum<Outcome>,
    /// What the change has done.
    #[serde(default)]
    pub status: Option<String>,
    /// Why the change failed.
    #[serde(default)]
    pub error: Option<String>,
    /// The routing before the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Routing>,
    /// The routing after the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Routing>,
    /// The hash of the entry before; 64 zeros at the first.
    #[serde(default)]
    pub previous_hash: String,
    /// The SHA-256 of this entry's JSON without this field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

/// Whether a change was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Outcome {
    /// It was made.
    Applied,
    /// It failed, and nothing was changed.
    Failed,
}

/// The key that a change is about.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct KeySubject {
    /// The id of the key.
    pub id: String,
    /// The name of the key.
    #[schemars(with = "schema::KeyName")]
    pub name: KeyName,
    /// What the key is good for.
    #[serde(default)]
    #[schemars(with = "schema::Scopes")]
    pub scopes: Vec<String>,
    /// When the key expires.
    #[serde(default)]
    #[schemars(with = "Option<schema::Time>")]
    pub expires: Option<String>,
}

impl From<ledger::Entry> for HistoryEntry {
    fn from(entry: ledger::Entry) -> Self {
        let key = entry.key.map(|key| KeySubject {
            id: key.id,
            name: key.name,
            scopes: super::keys::scope_words(key.scopes),
            expires: key.expires.map(|time| time.to_string()),
        });
        Self {
            sequence: entry.sequence,
            revision: entry.revision,
            time: entry.time,
            actor: entry.actor,
            reason: entry.reason,
            operation: entry.operation,
            model: entry.model,
            key,
            version: entry.version,
            digest: entry.digest,
            outcome: OpenEnum::new(&entry.outcome),
            status: entry.status,
            error: entry.error,
            before: entry.before.map(Routing::from),
            after: entry.after.map(Routing::from),
            previous_hash: entry.previous_hash,
            hash: entry.hash,
        }
    }
}
