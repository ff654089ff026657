//! Making and revoking keys: changes like any other, durable before they hold.

use std::time::SystemTime;

use rand::RngExt as _;
use serde::Serialize;

use super::change::Ask;
use super::error::{ControlError, KeyRefusal};
use super::state::{Control, Writer};
use crate::keys::{
    self, Key, KeyHash, KeyName, MAX_KEYS, MAX_REVOKED, Scopes, ShownKey, StoredKey, Time,
};
use crate::ledger::{Before, Entry, KeyChange, LedgerError};
use crate::rate::Rate;

/// A key that is asked for.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its name.
    pub name: KeyName,
    /// What it is to be good for.
    pub scopes: Scopes,
    /// When it is to end.
    pub expires: Option<Time>,
    /// How often it may ask for predictions, if not as often as others.
    pub rate: Option<Rate>,
}

/// The answer to a request for a change of keys.
#[derive(Debug)]
pub enum KeyAnswer {
    /// The change was made now, or there was nothing to do, or it was a trial.
    Now(Box<KeyChanged>),
    /// The same was asked before: what was answered then, in JSON, without the key.
    Before(String),
}

/// A change of keys that was made.
#[derive(Debug, Serialize)]
pub struct KeyChanged {
    /// The key as it is now.
    pub key: ShownKey,
    /// The revision of the change, or of the last one if nothing was changed.
    pub revision: u64,
    /// Whether anything is different.
    pub changed: bool,
    /// Whether it was a trial.
    pub dry_run: bool,
    /// What became of it.
    pub status: &'static str,
    /// The key itself, for who has made it, once: it is kept nowhere, not even in the answer that is
    /// stored for who asks again.
    pub secret: Option<String>,
}

impl Control {
    /// Put the keys of the configuration into force.
    ///
    /// # Errors
    /// [`ControlError::SameKey`]; then those from before hold.
    pub fn configure_keys(
        &self,
        configured: Vec<Key>,
        general: Option<Rate>,
    ) -> Result<(), ControlError> {
        // So that nobody makes a key of the same name meanwhile.
        let _writer = self.lock_writer();
        Ok(self.keys.replace_configured(configured, general)?)
    }

    /// Make a key.
    ///
    /// # Errors
    /// [`ControlError`]; then there is none.
    pub fn create_key(&self, new: NewKey, ask: &Ask) -> Result<KeyAnswer, ControlError> {
        let mut writer = self.lock_writer();
        self.reconcile(&mut writer)?;
        if let Some(answer) = self.key_answer_of(ask)? {
            return Ok(answer);
        }
        let stored = self.keys.stored();
        let now = SystemTime::now();
        self.check_new(&new, &stored)?;
        let NewKey { name, scopes, expires, rate } = new;
        let secret = keys::generate().map_err(ControlError::Randomness)?;
        let sha256 = KeyHash::of(secret.as_bytes());
        let new = StoredKey {
            id: new_id(&stored),
            key: Key { name, sha256, scopes, expires, rate },
            created: Time::at(now).map_err(|_error| ControlError::Clock)?,
            created_by: ask.author.actor.clone(),
            revoked: None,
        };
        let mut changed = KeyChanged {
            key: new.shown(now),
            revision: writer.revision,
            changed: true,
            dry_run: ask.dry_run,
            status: "KeyCreated",
            secret: None,
        };
        if ask.dry_run {
            changed.key.id = None;
            return Ok(KeyAnswer::Now(Box::new(changed)));
        }
        let change = KeyChange {
            author: ask.author.clone(),
            operation: "create_key",
            key: new,
            status: changed.status,
            forgotten: Vec::new(),
        };
        self.commit_key(&mut writer, &change, ask, &mut changed)?;
        changed.secret = Some(secret);
        Ok(KeyAnswer::Now(Box::new(changed)))
    }

    /// Take a key back. When this returns, nobody is let in with it any more.
    ///
    /// # Errors
    /// [`ControlError`]; then it is as good as before.
    pub fn revoke_key(&self, id: &str, ask: &Ask) -> Result<KeyAnswer, ControlError> {
        let mut writer = self.lock_writer();
        self.reconcile(&mut writer)?;
        if let Some(answer) = self.key_answer_of(ask)? {
            return Ok(answer);
        }
        let stored = self.keys.stored();
        let held = stored.iter().find(|stored| stored.id == id).ok_or(KeyRefusal::Unknown)?;
        let now = SystemTime::now();
        let is_new = held.revoked.is_none();
        let end = Time::at(now).map_err(|_error| ControlError::Clock)?;
        let key = StoredKey { revoked: held.revoked.or(Some(end)), ..held.clone() };
        let mut changed = KeyChanged {
            key: key.shown(now),
            revision: writer.revision,
            changed: is_new,
            dry_run: ask.dry_run,
            status: "KeyRevoked",
            secret: None,
        };
        if ask.dry_run {
            return Ok(KeyAnswer::Now(Box::new(changed)));
        }
        if !is_new {
            if let Some(request) = &ask.request {
                self.ledger.remember(request, &to_json(&changed))?;
            }
            return Ok(KeyAnswer::Now(Box::new(changed)));
        }
        let change = KeyChange {
            author: ask.author.clone(),
            operation: "revoke_key",
            key,
            status: changed.status,
            forgotten: to_forget(&stored),
        };
        self.commit_key(&mut writer, &change, ask, &mut changed)?;
        Ok(KeyAnswer::Now(Box::new(changed)))
    }

    fn key_answer_of(&self, ask: &Ask) -> Result<Option<KeyAnswer>, ControlError> {
        let Some(request) = &ask.request else { return Ok(None) };
        match self.ledger.asked_before(request)? {
            Before::Unknown => Ok(None),
            Before::Answered(answer) => Ok(Some(KeyAnswer::Before(answer))),
            Before::Mismatch => Err(ControlError::KeyMismatch),
        }
    }

    fn check_new(&self, new: &NewKey, stored: &[StoredKey]) -> Result<(), KeyRefusal> {
        let good = || stored.iter().filter(|stored| stored.revoked.is_none());
        let configured = self.keys.configured();
        let mut others = good().map(|stored| &stored.key).chain(&configured);
        if others.any(|other| other.name == new.name) {
            return Err(KeyRefusal::NameTaken(new.name.clone()));
        }
        if good().count() >= MAX_KEYS { Err(KeyRefusal::TooMany) } else { Ok(()) }
    }

    /// Write the change down, and only then let it hold.
    fn commit_key(
        &self,
        writer: &mut Writer,
        change: &KeyChange,
        ask: &Ask,
        changed: &mut KeyChanged,
    ) -> Result<(), LedgerError> {
        let revision = writer.revision + 1;
        changed.revision = revision;
        let request = ask.request.as_ref();
        let committed = self.ledger.commit_key(change, revision, request, &to_json(changed));
        let Entry { hash, .. } = match committed {
            Ok(entry) => entry,
            Err(error) => {
                // It may be in the ledger all the same; then it has to hold.
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

/// What is kept of an answer for who asks again: nothing that is a secret.
fn to_json(changed: &KeyChanged) -> String {
    assert!(changed.secret.is_none(), "a secret is never written down");
    serde_json::to_string(changed).expect("an answer is JSON")
}

/// Short enough to be typed, and none of those that there are.
fn new_id(stored: &[StoredKey]) -> String {
    loop {
        let id = format!("{:012x}", rand::rng().random_range(0..1_u64 << 48));
        if stored.iter().all(|stored| stored.id != id) {
            return id;
        }
    }
}

/// Those revoked first, if with another one there would be too many.
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
    fn the_oldest_revoked_keys_are_dropped_first() {
        let stored = |number: u64| StoredKey {
            id: number.to_string(),
            key: Key::demo(),
            created: Time::at(UNIX_EPOCH).unwrap(),
            created_by: "test".to_owned(),
            revoked: (number > 0)
                .then(|| Time::at(UNIX_EPOCH + Duration::from_secs(number)).unwrap()),
        };
        let most = u64::try_from(MAX_REVOKED).unwrap();
        let fewer: Vec<_> = (0..most).map(stored).collect();
        assert!(to_forget(&fewer).is_empty());
        let enough: Vec<_> = (0..=most).rev().map(stored).collect();
        assert_eq!(to_forget(&enough), ["1"]);
    }
}
