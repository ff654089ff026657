//! Creating and revoking keys. Like every change, it is durable before it takes effect.

use std::time::SystemTime;

use rand::RngExt as _;
use serde::Serialize;

use super::change::ChangeOptions;
use super::error::{ControlError, KeyChangeError};
use super::state::{Control, Writer};
use crate::keys::{
    self, Key, KeyHash, KeyName, KeyView, MAX_KEYS, MAX_REVOKED, Scopes, StoredKey, Timestamp,
};
use crate::ledger::{Entry, IdempotencyLookup, KeyChange, LedgerError};
use crate::rate::Rate;

/// A key to create.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its name.
    pub name: KeyName,
    /// What it permits.
    pub scopes: Scopes,
    /// When it expires.
    pub expires: Option<Timestamp>,
    /// Its own rate limit of predictions.
    pub rate: Option<Rate>,
}

/// The outcome of a request for a change of keys.
#[derive(Debug)]
pub enum KeyChangeOutcome {
    /// The change was made, or there was nothing to do, or it was a dry run.
    Made(Box<KeyChangeReport>),
    /// The request repeats an earlier one: the response to that, in JSON, without the secret.
    Replayed(String),
}

/// The report of a change of a key.
#[derive(Debug, Serialize)]
pub struct KeyChangeReport {
    /// The key after the change.
    pub key: KeyView,
    /// The revision of the change, or of the last one if nothing was changed.
    pub revision: u64,
    /// Whether anything has changed.
    pub changed: bool,
    /// Whether it was a dry run.
    pub dry_run: bool,
    /// `KeyCreated` or `KeyRevoked`.
    pub status: &'static str,
    /// The key itself, for its creator, once. It is stored nowhere, not even in the response that is kept for
    /// repetitions.
    pub secret: Option<String>,
}

impl Control {
    /// Apply the keys of the configuration.
    ///
    /// # Errors
    /// [`ControlError::DuplicateKey`]; then the previous keys stay.
    pub fn configure_keys(
        &self,
        configured: Vec<Key>,
        default_rate: Option<Rate>,
    ) -> Result<(), ControlError> {
        // Under the lock of the writer, so that no key of the same name is created meanwhile.
        let _writer = self.lock_writer();
        Ok(self.keys.replace_configured(configured, default_rate)?)
    }

    /// Create a key.
    ///
    /// # Errors
    /// [`ControlError`]; then no key is created.
    pub fn create_key(
        &self,
        new: NewKey,
        options: &ChangeOptions,
    ) -> Result<KeyChangeOutcome, ControlError> {
        let mut writer = self.lock_writer();
        self.reconcile(&mut writer)?;
        if let Some(answer) = self.stored_key_answer(options)? {
            return Ok(answer);
        }
        let stored = self.keys.stored();
        let now = SystemTime::now();
        self.check_new(&new, &stored)?;
        let NewKey { name, scopes, expires, rate } = new;
        let secret = keys::generate().map_err(ControlError::Randomness)?;
        let sha256 = KeyHash::from_key(secret.as_bytes());
        let new = StoredKey {
            id: new_id(&stored),
            key: Key { name, sha256, scopes, expires, rate },
            created: Timestamp::from_system_time(now).map_err(|_error| ControlError::Clock)?,
            created_by: options.author.actor.clone(),
            revoked: None,
        };
        let mut changed = KeyChangeReport {
            key: new.view(now),
            revision: writer.revision,
            changed: true,
            dry_run: options.dry_run,
            status: "KeyCreated",
            secret: None,
        };
        if options.dry_run {
            changed.key.id = None;
            return Ok(KeyChangeOutcome::Made(Box::new(changed)));
        }
        let change = KeyChange {
            author: options.author.clone(),
            operation: "create_key",
            key: new,
            status: changed.status,
            forgotten: Vec::new(),
        };
        self.commit_key(&mut writer, &change, options, &mut changed)?;
        changed.secret = Some(secret);
        Ok(KeyChangeOutcome::Made(Box::new(changed)))
    }

    /// Revoke a key. When this returns, it is not accepted any more.
    ///
    /// # Errors
    /// [`ControlError`]; then it stays valid.
    pub fn revoke_key(
        &self,
        id: &str,
        options: &ChangeOptions,
    ) -> Result<KeyChangeOutcome, ControlError> {
        let mut writer = self.lock_writer();
        self.reconcile(&mut writer)?;
        if let Some(answer) = self.stored_key_answer(options)? {
            return Ok(answer);
        }
        let stored = self.keys.stored();
        let held = stored.iter().find(|stored| stored.id == id).ok_or(KeyChangeError::Unknown)?;
        let now = SystemTime::now();
        let is_new = held.revoked.is_none();
        let end = Timestamp::from_system_time(now).map_err(|_error| ControlError::Clock)?;
        let key = StoredKey { revoked: held.revoked.or(Some(end)), ..held.clone() };
        let mut changed = KeyChangeReport {
            key: key.view(now),
            revision: writer.revision,
            changed: is_new,
            dry_run: options.dry_run,
            status: "KeyRevoked",
            secret: None,
        };
        if options.dry_run {
            return Ok(KeyChangeOutcome::Made(Box::new(changed)));
        }
        if !is_new {
            if let Some(request) = &options.request {
                self.ledger.remember(request, &to_json(&changed))?;
            }
            return Ok(KeyChangeOutcome::Made(Box::new(changed)));
        }
        let change = KeyChange {
            author: options.author.clone(),
            operation: "revoke_key",
            key,
            status: changed.status,
            forgotten: to_forget(&stored),
        };
        self.commit_key(&mut writer, &change, options, &mut changed)?;
        Ok(KeyChangeOutcome::Made(Box::new(changed)))
    }

    fn stored_key_answer(
        &self,
        options: &ChangeOptions,
    ) -> Result<Option<KeyChangeOutcome>, ControlError> {
        let Some(request) = &options.request else { return Ok(None) };
        match self.ledger.look_up(request)? {
            IdempotencyLookup::New => Ok(None),
            IdempotencyLookup::Answered(answer) => Ok(Some(KeyChangeOutcome::Replayed(answer))),
            IdempotencyLookup::Mismatch => Err(ControlError::IdempotencyMismatch),
        }
    }

    fn check_new(&self, new: &NewKey, stored: &[StoredKey]) -> Result<(), KeyChangeError> {
        let good = || stored.iter().filter(|stored| stored.revoked.is_none());
        let configured = self.keys.configured();
        let mut others = good().map(|stored| &stored.key).chain(&configured);
        if others.any(|other| other.name == new.name) {
            return Err(KeyChangeError::NameTaken(new.name.clone()));
        }
        if good().count() >= MAX_KEYS { Err(KeyChangeError::TooMany) } else { Ok(()) }
    }

    /// Make a change of a key durable, and then effective.
    fn commit_key(
        &self,
        writer: &mut Writer,
        change: &KeyChange,
        options: &ChangeOptions,
        changed: &mut KeyChangeReport,
    ) -> Result<(), LedgerError> {
        let revision = writer.revision + 1;
        changed.revision = revision;
        let request = options.request.as_ref();
        let committed = self.ledger.commit_key(change, revision, request, &to_json(changed));
        let Entry { hash, .. } = match committed {
            Ok(entry) => entry,
            Err(error) => {
                // The ledger may have it all the same; then it takes effect.
                writer.is_uncertain = true;
                if let Ok(stored) = self.ledger.keys() {
                    self.keys.replace_stored(stored);
                }
                return Err(error);
            }
        };
        let mut stored = self.keys.stored();
        stored.retain(|held| held.id != change.key.id && !change.forgotten.contains(&held.id));
        stored.push(change.key.clone());
        self.keys.replace_stored(stored);
        writer.revision = revision;
        self.publish_head(revision, hash);
        let StoredKey { id, key, .. } = &change.key;
        let actor = guesthouse_model::terminal::printable(&change.author.actor);
        let (operation, status) = (change.operation, change.status);
        tracing::info!(target: "change", revision, %actor, operation, key = %key.name, id, status, "changed");
        Ok(())
    }
}

/// The response that is kept for repetitions. It has no secret.
fn to_json(changed: &KeyChangeReport) -> String {
    assert!(changed.secret.is_none(), "a secret is never stored");
    serde_json::to_string(changed).expect("an answer is JSON")
}

/// A new id that is short enough to type.
fn new_id(stored: &[StoredKey]) -> String {
    loop {
        let id = format!("{:012x}", rand::rng().random_range(0..1_u64 << 48));
        if stored.iter().all(|stored| stored.id != id) {
            return id;
        }
    }
}

/// The keys to forget, so that another one can be revoked: those that were revoked first.
fn to_forget(stored: &[StoredKey]) -> Vec<String> {
    let mut revoked: Vec<_> =
        stored.iter().filter_map(|stored| Some((stored.revoked?, stored.id.clone()))).collect();
    revoked.sort();
    let too_many = (revoked.len() + 1).saturating_sub(MAX_REVOKED);
    revoked.into_iter().take(too_many).map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn keys_that_were_revoked_first_are_forgotten_first() {
        let stored = |number: u64| StoredKey {
            id: number.to_string(),
            key: Key::demo(),
            created: Timestamp::from_system_time(UNIX_EPOCH).unwrap(),
            created_by: "test".to_owned(),
            revoked: (number > 0).then(|| {
                Timestamp::from_system_time(UNIX_EPOCH + Duration::from_secs(number)).unwrap()
            }),
        };
        let most = u64::try_from(MAX_REVOKED).unwrap();
        let fewer: Vec<_> = (0..most).map(stored).collect();
        assert!(to_forget(&fewer).is_empty());
        let enough: Vec<_> = (0..=most).rev().map(stored).collect();
        assert_eq!(to_forget(&enough), ["1"]);
    }
}
