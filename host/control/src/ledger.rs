//! The ledger: the durable record of which versions of which models are served, of the keys that operators
//! have created, of every change of both, and of the responses to idempotent requests.
//!
//! It is a redb database. One transaction has the change, its entry in the audit log and the response to its
//! caller, so that a crash loses all of them or none. Each entry contains the hash of the previous one, so
//! that an altered or removed entry is detected. A truncated log is detected by the head file (see `head`),
//! to which each change is written after its commit and before it is acknowledged. `open` checks the ledger
//! at the start, and handles one that has lost something.

mod entry;
mod error;
mod format;
mod head;
mod open;
mod storage;
mod tables;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    ReadableTableMetadata as _, WriteTransaction,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use self::entry::no_hash;
pub use self::entry::{Author, Change, Entry, KeyChange, KeySubject, check_chain};
pub use self::error::LedgerError;
use self::open::Files;
pub use self::open::OnLoss;
use self::tables::{
    ANSWERS, KEYS, MODELS, NUMBERS, append, history_of, keys_of, models_of, position, put_key,
    revoked, seal,
};

use crate::keys::{KeyHash, StoredKey};
use crate::rollout::ModelState;
use guesthouse_model::ModelName;
use guesthouse_runtime::clock;

/// How long a response is kept for a repetition of its request, in milliseconds.
const RESPONSE_LIFETIME_MS: u64 = 24 * 60 * 60 * 1000;

/// The most responses that are kept.
const MAX_RESPONSES: usize = 1000;

/// The identity of a request for a change, by which a repetition is recognised.
#[derive(Debug, Clone)]
pub struct IdempotentRequest {
    /// The actor and its idempotency key.
    pub key: String,
    /// The version of the fingerprint's form, then a hash of the whole request.
    pub fingerprint: String,
}

/// The version of the fingerprint's form: SHA-256 over the request as canonical JSON (RFC 8785). A response
/// that was stored under another form cannot be compared, so its key counts as used for another request until
/// the response expires. Earlier releases wrote hashes without a form.
const FINGERPRINT_FORM: &str = "2:";

impl IdempotentRequest {
    /// The identity of a request with this idempotency key. `content` must have the same JSON form for the same
    /// request in every later release.
    pub fn new(actor: &str, key: &str, content: &impl Serialize) -> Self {
        let canonical = serde_json_canonicalizer::to_vec(content)
            .expect("requests have texts for keys and finite numbers");
        let hash = Sha256::digest(&canonical);
        let fingerprint = format!("{FINGERPRINT_FORM}{:x}", HexOf(&hash));
        Self { key: format!("{actor}\n{key}"), fingerprint }
    }
}

/// Formats bytes in hexadecimal.
struct HexOf<'a>(&'a [u8]);

impl std::fmt::LowerHex for HexOf<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// The outcome of looking up an idempotent request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdempotencyLookup {
    /// The request is new.
    New,
    /// The request was answered with this response.
    Answered(String),
    /// The key was used for another request.
    Mismatch,
}

/// The durable record of what is served.
pub struct Ledger {
    path: PathBuf,
    files: Mutex<Files>,
}

impl Ledger {
    /// Open the ledger of a state folder, or create one. `has_artifacts` says whether the folder has any
    /// artifact, which it only has if there was a ledger.
    ///
    /// # Errors
    /// [`LedgerError`]; [`LedgerError::Lost`], unless the loss is accepted.
    pub fn open(folder: &Path, has_artifacts: bool, on_loss: OnLoss) -> Result<Self, LedgerError> {
        let files = Mutex::new(open::open_files(folder, has_artifacts, on_loss)?);
        Ok(Self { path: folder.join(open::NAME), files })
    }

    /// The hashes of all revoked keys, also of those whose revocation the ledger has lost.
    pub fn revoked_keys(&self) -> HashSet<KeyHash> {
        self.files().head.revoked()
    }

    /// The states of all models.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn models(&self) -> Result<BTreeMap<ModelName, ModelState>, LedgerError> {
        self.read(models_of)
    }

    /// All keys, with the revoked ones, the oldest first.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn keys(&self) -> Result<Vec<StoredKey>, LedgerError> {
        let mut keys = self.read(keys_of)?;
        keys.sort_by(|one, other| (one.created, &one.id).cmp(&(other.created, &other.id)));
        Ok(keys)
    }

    /// The revision of the last change, and the hash of the last entry.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn head(&self) -> Result<(u64, String), LedgerError> {
        let last = self.history(None, None, 1)?.pop();
        Ok(last.map_or_else(|| (0, no_hash()), |entry| (entry.revision, entry.hash)))
    }

    /// The entries of one model or of all, the newest first, with numbers below `before`.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn history(
        &self,
        model: Option<&ModelName>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Entry>, LedgerError> {
        self.read(|transaction| history_of(transaction, model, before, limit))
    }

    /// Look up whether a request was answered before.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn look_up(&self, request: &IdempotentRequest) -> Result<IdempotencyLookup, LedgerError> {
        self.read(|transaction| {
            let table = transaction.open_table(ANSWERS)?;
            let Some(answer) = table.get(request.key.as_str())? else {
                return Ok(IdempotencyLookup::New);
            };
            let (time, fingerprint, answer) = answer.value();
            Ok(if time.saturating_add(RESPONSE_LIFETIME_MS) < now() {
                IdempotencyLookup::New
            } else if fingerprint == request.fingerprint {
                IdempotencyLookup::Answered(answer.to_owned())
            } else {
                IdempotencyLookup::Mismatch
            })
        })
    }

    /// Write a change: the next state of the model, its entry, and the response for a repetition of the
    /// request. When this returns, all of it is durable.
    ///
    /// # Errors
    /// [`LedgerError`]; then it is unknown whether all of it is durable, or none.
    pub fn commit(
        &self,
        change: &Change,
        state: &ModelState,
        request: Option<&IdempotentRequest>,
        answer: &str,
    ) -> Result<Entry, LedgerError> {
        self.write(None, |transaction| {
            let json = serde_json::to_string(state).expect("a state is JSON");
            transaction.open_table(MODELS)?.insert(change.model.as_str(), json.as_str())?;
            transaction.open_table(NUMBERS)?.insert("revision", state.revision)?;
            if let Some(request) = request {
                remember(transaction, request, answer)?;
            }
            append(transaction, change.entry(), state.revision)
        })
    }

    /// Write a change of a key in the same way.
    ///
    /// # Errors
    /// [`LedgerError`]; then it is unknown whether all of it is durable, or none.
    pub fn commit_key(
        &self,
        change: &KeyChange,
        revision: u64,
        request: Option<&IdempotentRequest>,
        answer: &str,
    ) -> Result<Entry, LedgerError> {
        let revoked = change.key.revoked.map(|_time| change.key.key.sha256);
        self.write(revoked, |transaction| {
            let mut keys = transaction.open_table(KEYS)?;
            put_key(&mut keys, &change.key)?;
            for id in &change.forgotten {
                keys.remove(id.as_str())?;
            }
            drop(keys);
            transaction.open_table(NUMBERS)?.insert("revision", revision)?;
            if let Some(request) = request {
                remember(transaction, request, answer)?;
            }
            append(transaction, change.entry(), revision)
        })
    }

    /// Store the response to a request that changed nothing.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn remember(&self, request: &IdempotentRequest, answer: &str) -> Result<(), LedgerError> {
        self.write(None, |transaction| remember(transaction, request, answer))
    }

    /// Write an entry for a change that failed.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn record_failure(&self, change: &Change) -> Result<Entry, LedgerError> {
        self.write(None, |transaction| {
            let numbers = transaction.open_table(NUMBERS)?;
            let revision = numbers.get("revision")?.map_or(0, |revision| revision.value());
            drop(numbers);
            append(transaction, change.entry(), revision)
        })
    }

    /// Write the position of the ledger to the head file, if an error has prevented that. Until then, the
    /// ledger's last change must not be acknowledged.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn reconcile_head(&self) -> Result<(), LedgerError> {
        let mut files = self.files();
        let read = |database: &Database| {
            let transaction = database.begin_read()?;
            Ok((position(&transaction)?, keys_of(&transaction)?))
        };
        let (head, keys) = self.with(&mut files, read)?;
        files.head.reconcile(head, revoked(&keys)).map_err(|error| self.head_error(error))
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        self.with(&mut self.files(), |database| read(&database.begin_read()?))
    }

    fn write<T>(
        &self,
        revoked: Option<KeyHash>,
        write: impl FnOnce(&WriteTransaction) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let mut files = self.files();
        files.head.reserve().map_err(|error| self.head_error(error))?;
        let (written, head) = self.with(&mut files, |database| {
            let transaction = database.begin_write()?;
            let written = write(&transaction)?;
            let head = seal(&transaction)?;
            transaction.commit()?;
            Ok((written, head))
        })?;
        files.head.append(head, revoked).map_err(|error| self.head_error(error))?;
        Ok(written)
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn head_error(&self, error: io::Error) -> LedgerError {
        LedgerError::File(self.path.with_file_name(head::NAME), error)
    }

    /// Use the database. redb must be opened again after an error of the disk; it then has the last complete
    /// transaction.
    fn with<T>(
        &self,
        files: &mut Files,
        work: impl FnOnce(&Database) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        if files.database.is_none() {
            files.database = Some(open::reopen(&self.path, files.head.head())?);
        }
        let outcome = work(files.database.as_ref().expect("it was just opened"));
        if matches!(outcome, Err(LedgerError::Store(_))) {
            files.database = None;
        }
        outcome
    }
}

/// Store a response, and remove the oldest ones if there are too many.
fn remember(
    transaction: &WriteTransaction,
    request: &IdempotentRequest,
    answer: &str,
) -> Result<(), LedgerError> {
    let mut answers = transaction.open_table(ANSWERS)?;
    answers.insert(request.key.as_str(), (now(), request.fingerprint.as_str(), answer))?;
    if answers.len()? > MAX_RESPONSES as u64 {
        let mut times = Vec::new();
        for row in answers.iter()? {
            let (key, answer) = row?;
            times.push((answer.value().0, key.value().to_owned()));
        }
        times.sort();
        // Several at once, because reading all of them is expensive.
        for (_, key) in times.into_iter().take(MAX_RESPONSES / 10) {
            answers.remove(key.as_str())?;
        }
    }
    Ok(())
}

fn now() -> u64 {
    let since = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
