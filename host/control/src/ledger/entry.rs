//! What the audit log says: who changed what, in a chain of hashes.

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::keys::{KeyName, Scopes, StoredKey, Time};
use crate::rollout::Routing;
use guesthouse_artifact::Digest;
use guesthouse_model::ModelName;

/// Who changes something, and why.
#[derive(Debug, Clone, Default)]
pub struct Author {
    /// The name of the key, or the part of the host.
    pub actor: String,
    /// In the actor's words.
    pub reason: Option<String>,
}

/// A change, or an attempt that failed, before it has a number.
#[derive(Debug, Clone)]
pub struct Change {
    /// Who and why.
    pub author: Author,
    /// The operation's word.
    pub operation: &'static str,
    /// The model.
    pub model: ModelName,
    /// The version, if it is about one.
    pub version: Option<Version>,
    /// Its artifact.
    pub digest: Option<Digest>,
    /// What became of it; none if it failed.
    pub status: Option<&'static str>,
    /// Why it failed.
    pub error: Option<String>,
    /// What went where.
    pub before: Routing,
    /// What goes where.
    pub after: Routing,
}

/// A change of keys, before it has a number.
#[derive(Debug, Clone)]
pub struct KeyChange {
    /// Who and why.
    pub author: Author,
    /// The operation's word.
    pub operation: &'static str,
    /// The key as it is from now on.
    pub key: StoredKey,
    /// What became of it.
    pub status: &'static str,
    /// The ids of keys that are not remembered any longer.
    pub forgotten: Vec<String>,
}

/// What the log says of a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented at `StoredKey`")]
pub struct KeySubject {
    pub id: String,
    pub name: KeyName,
    pub scopes: Scopes,
    pub expires: Option<Time>,
}

/// One line of the audit log. What it is not about is left out, so that entries that were written before
/// there was anything else to write about have the hash that they had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented at `Change` and `KeyChange`")]
pub struct Entry {
    /// From 1, without gaps.
    pub sequence: u64,
    /// Of all changes so far, this one included.
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
    /// The hash of the entry before; of nothing, 64 zeros.
    pub previous_hash: String,
    /// SHA-256 of this entry's JSON without this field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

impl Entry {
    /// An entry that says nothing yet but who did what, and has no place in the log.
    fn of(author: Author, operation: &str) -> Self {
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

    /// The hash that it must have.
    pub(super) fn own_hash(&self) -> String {
        let unsigned = Self { hash: String::new(), ..self.clone() };
        let json = serde_json::to_string(&unsigned).expect("an entry is JSON");
        Digest::from_content(json.as_bytes()).hex()
    }
}

impl Entry {
    /// That the loss of a part of the ledger was accepted.
    pub(super) fn of_loss(author: Author) -> Self {
        Self { status: Some("LossAccepted".to_owned()), ..Self::of(author, "accept_ledger_loss") }
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
            ..Entry::of(change.author, change.operation)
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
            ..Entry::of(self.author.clone(), self.operation)
        }
    }
}

/// Whether each entry, the newest first, has the hash that it says and follows the one that it says.
///
/// # Errors
/// Which one does not.
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
