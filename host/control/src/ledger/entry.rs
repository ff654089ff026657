//! The entries of the audit log: who changed what, in a hash chain.

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::keys::{KeyName, Scopes, StoredKey, Timestamp};
use crate::rollout::Routing;
use guesthouse_artifact::Digest;
use guesthouse_model::ModelName;

/// Who makes a change, and why.
#[derive(Debug, Clone, Default)]
pub struct Author {
    /// The name of the key, or of the part of the host.
    pub actor: String,
    /// The reason that the actor gave.
    pub reason: Option<String>,
}

/// A change of a model, or an attempt that failed, that is about to be recorded.
#[derive(Debug, Clone)]
pub struct Change {
    /// Who made it, and why.
    pub author: Author,
    /// The name of the operation.
    pub operation: &'static str,
    /// The model.
    pub model: ModelName,
    /// The version, if the operation is about one.
    pub version: Option<Version>,
    /// Its artifact.
    pub digest: Option<Digest>,
    /// The outcome; none if it failed.
    pub status: Option<&'static str>,
    /// Why it failed.
    pub error: Option<String>,
    /// The routing before.
    pub before: Routing,
    /// The routing after.
    pub after: Routing,
}

/// A change of a key that is about to be recorded.
#[derive(Debug, Clone)]
pub struct KeyChange {
    /// Who made it, and why.
    pub author: Author,
    /// The name of the operation.
    pub operation: &'static str,
    /// The key after the change.
    pub key: StoredKey,
    /// The outcome.
    pub status: &'static str,
    /// The ids of revoked keys that are forgotten.
    pub forgotten: Vec<String>,
}

/// A key in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented at `StoredKey`")]
pub struct KeySubject {
    pub id: String,
    pub name: KeyName,
    pub scopes: Scopes,
    pub expires: Option<Timestamp>,
}

/// One entry of the audit log. Fields that do not apply are left out of its JSON, so that entries of earlier
/// releases keep their hashes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented at `Change` and `KeyChange`")]
pub struct Entry {
    /// From 1, without gaps.
    pub sequence: u64,
    /// The revision after the change.
    pub revision: u64,
    /// RFC 3339, in UTC.
    pub time: String,
    pub actor: String,
    pub reason: Option<String>,
    pub operation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeySubject>,
    pub version: Option<Version>,
    pub digest: Option<Digest>,
    /// `applied` or `failed`.
    pub outcome: String,
    pub status: Option<String>,
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Routing>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Routing>,
    /// The hash of the previous entry; 64 zeros for the first one.
    pub previous_hash: String,
    /// SHA-256 of this entry's JSON without this field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

impl Entry {
    /// An entry that has only an author and an operation, and no number yet.
    fn new(author: Author, operation: &str) -> Self {
        Self {
            sequence: 0,
            revision: 0,
            time: String::new(),
            actor: author.actor,
            reason: author.reason,
            operation: operation.to_owned(),
            model: None,
            key: None,
            version: None,
            digest: None,
            outcome: "applied".to_owned(),
            status: None,
            error: None,
            before: None,
            after: None,
            previous_hash: String::new(),
            hash: String::new(),
        }
    }

    /// The hash of its content.
    pub(super) fn own_hash(&self) -> String {
        let unsigned = Self { hash: String::new(), ..self.clone() };
        let json = serde_json::to_string(&unsigned).expect("an entry is JSON");
        Digest::from_content(json.as_bytes()).hex()
    }
}

impl Entry {
    /// The entry that records that a loss was accepted.
    pub(super) fn loss_accepted(author: Author) -> Self {
        Self { status: Some("LossAccepted".to_owned()), ..Self::new(author, "accept_ledger_loss") }
    }
}

impl Change {
    pub(super) fn entry(&self) -> Entry {
        let change = self.clone();
        Entry {
            model: Some(change.model),
            version: change.version,
            digest: change.digest,
            outcome: if change.error.is_some() { "failed" } else { "applied" }.to_owned(),
            status: change.status.map(str::to_owned),
            error: change.error,
            before: Some(change.before),
            after: Some(change.after),
            ..Entry::new(change.author, change.operation)
        }
    }
}

impl KeyChange {
    pub(super) fn entry(&self) -> Entry {
        let StoredKey { id, key, .. } = self.key.clone();
        let (name, scopes, expires) = (key.name, key.scopes, key.expires);
        Entry {
            key: Some(KeySubject { id, name, scopes, expires }),
            status: Some(self.status.to_owned()),
            ..Entry::new(self.author.clone(), self.operation)
        }
    }
}

/// Check a part of the log, the newest entry first: each entry has the hash of its content, and names the
/// hash and the number of the previous one.
///
/// # Errors
/// The entry that does not.
pub fn check_chain(entries: &[Entry]) -> Result<(), String> {
    for (index, entry) in entries.iter().enumerate() {
        if entry.hash != entry.own_hash() {
            return Err(format!("entry {} of the audit log was altered", entry.sequence));
        }
        let follows = entries.get(index + 1).is_none_or(|before| {
            entry.previous_hash == before.hash && entry.sequence == before.sequence + 1
        });
        let begins = entry.sequence != 1 || entry.previous_hash == no_hash();
        if !follows || !begins {
            return Err(format!("entry {} of the audit log does not follow", entry.sequence));
        }
    }
    Ok(())
}

pub(super) fn no_hash() -> String {
    "0".repeat(64)
}
