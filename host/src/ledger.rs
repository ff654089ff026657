//! The ledger: which versions of which models are served, which keys operators have made, every change of
//! both, and which requests for changes were answered.
//!
//! One file of redb, a transactional store: a change is in it with its entry in the audit log and the
//! answer to its caller, or not at all, whatever happens to the process or the machine. Each entry
//! carries the hash of the one before, so that nothing can be taken out or altered unnoticed; what is
//! cut off at the end shows only to who has noted the last hash, which is why it is told wherever the
//! revision is.

mod entry;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition, WriteTransaction,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use self::entry::no_hash;
pub use self::entry::{Author, Change, Entry, KeyChange, KeySubject, check_chain};

use crate::durable::DatabaseFile;
use crate::keys::StoredKey;
use crate::model::ModelName;
use crate::rollout::ModelState;

/// States by model, in JSON.
const MODELS: TableDefinition<'_, &str, &str> = TableDefinition::new("models");

/// Keys by their ids, in JSON.
const KEYS: TableDefinition<'_, &str, &str> = TableDefinition::new("keys");

/// Entries by their numbers, in JSON.
const AUDIT: TableDefinition<'_, u64, &str> = TableDefinition::new("audit");

/// By caller and idempotency key: when, what was asked (a hash), and the answer.
const ANSWERS: TableDefinition<'_, &str, (u64, &str, &str)> = TableDefinition::new("answers");

/// `format` and `revision`.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

/// What this module reads and writes.
const FORMAT: u64 = 2;

/// The format before there were keys: the same without them.
const FORMAT_WITHOUT_KEYS: u64 = 1;

/// How long an answer is kept for a caller that asks again, in milliseconds.
const ANSWER_LIFE: u64 = 24 * 60 * 60 * 1000;

/// The most answers that are kept.
const MAX_ANSWERS: usize = 1000;

/// The most entries that are looked at for one question: changes wait meanwhile.
const MAX_LOOKED_AT: usize = 10_000;

/// How many entries, from the last one back, are checked at the start.
const CHECKED_ENTRIES: usize = 1000;

/// The ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The store says so.
    #[error("use the ledger")]
    Store(#[source] Box<redb::Error>),
    /// It is of another format, or was altered.
    #[error("trust the ledger: {0}")]
    Untrusted(String),
}

impl LedgerError {
    /// Whether the disk is full, or this user's part of it.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let Self::Store(error) = self else { return false };
        matches!(&**error, redb::Error::Io(error)
            if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }
}

impl<E: Into<redb::Error>> From<E> for LedgerError {
    fn from(error: E) -> Self {
        Self::Store(Box::new(error.into()))
    }
}

/// A request for a change, as it can be asked again.
#[derive(Debug, Clone)]
pub struct Request {
    /// Who asks, and the key that tells its requests apart.
    pub key: String,
    /// The version of the form, then a hash of everything that is asked for.
    pub fingerprint: String,
}

/// The form that fingerprints are made of: SHA-256 over the request as canonical JSON (RFC 8785). An
/// answer that was stored under another form cannot be compared, so its key counts as used for something
/// else until the answer expires. Hosts before this wrote hashes without a form.
const FINGERPRINT_FORM: &str = "2:";

impl Request {
    /// What this caller asks under this key. `asked` must have a JSON form that is the same for the same
    /// request in every later version of the host.
    pub fn new(actor: &str, key: &str, asked: &impl Serialize) -> Self {
        let canonical = serde_json_canonicalizer::to_vec(asked)
            .expect("requests have texts for keys and finite numbers");
        let hash = Sha256::digest(&canonical);
        let fingerprint = format!("{FINGERPRINT_FORM}{:x}", HexOf(&hash));
        Self { key: format!("{actor}\n{key}"), fingerprint }
    }
}

/// Bytes that are formatted in hexadecimal.
struct HexOf<'a>(&'a [u8]);

impl std::fmt::LowerHex for HexOf<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// What is known of a request that may have been asked before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Unknown,
    /// It was answered with this.
    Answered(String),
    /// Something else was asked under the same key.
    Mismatch,
}

/// The durable record of what is served.
pub struct Ledger {
    path: PathBuf,
    /// None while it could not be opened again after an error.
    database: Mutex<Option<Database>>,
}

impl Ledger {
    /// Open the ledger, or begin one.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let database = open(path)?;
        let ledger = Self { path: path.to_owned(), database: Mutex::new(Some(database)) };
        let entries = ledger.history(None, None, CHECKED_ENTRIES)?;
        check_chain(&entries).map_err(LedgerError::Untrusted)?;
        ledger.check_ends(&entries)?;
        Ok(ledger)
    }

    /// Whether the log begins where it has to and ends where the state is.
    fn check_ends(&self, entries: &[Entry]) -> Result<(), LedgerError> {
        let revision = self.read(|transaction| {
            let numbers = transaction.open_table(NUMBERS)?;
            Ok(numbers.get("revision")?.map_or(0, |revision| revision.value()))
        })?;
        let first = entries.last().map_or(1, |entry| entry.sequence);
        let begins = entries.len() == CHECKED_ENTRIES || first == 1;
        let ends = entries.first().map_or(0, |entry| entry.revision) == revision;
        if begins && ends {
            return Ok(());
        }
        Err(LedgerError::Untrusted("a part of the audit log is missing".to_owned()))
    }

    /// Every model's state.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn models(&self) -> Result<BTreeMap<ModelName, ModelState>, LedgerError> {
        self.read(|transaction| {
            let mut models = BTreeMap::new();
            for row in transaction.open_table(MODELS)?.iter()? {
                let (name, state) = row?;
                let wrong =
                    |what: String| LedgerError::Untrusted(format!("a model's state: {what}"));
                let name = name.value().parse::<ModelName>().map_err(|e| wrong(e.to_string()))?;
                let state =
                    serde_json::from_str(state.value()).map_err(|e| wrong(e.to_string()))?;
                models.insert(name, state);
            }
            Ok(models)
        })
    }

    /// Every key, revoked ones included, the oldest first.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn keys(&self) -> Result<Vec<StoredKey>, LedgerError> {
        let mut keys = self.read(|transaction| {
            let mut keys = Vec::new();
            for row in transaction.open_table(KEYS)?.iter()? {
                let (id, json) = row?;
                let key = serde_json::from_str::<StoredKey>(json.value());
                keys.push(key.map_err(|error| {
                    LedgerError::Untrusted(format!("the key {}: {error}", id.value()))
                })?);
            }
            Ok(keys)
        })?;
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

    /// Entries of one model or all, the newest first, from before a number on.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn history(
        &self,
        model: Option<&ModelName>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Entry>, LedgerError> {
        self.read(|transaction| {
            let table = transaction.open_table(AUDIT)?;
            let mut entries = Vec::new();
            let rows = table.range(..before.unwrap_or(u64::MAX))?.rev();
            for row in rows.take(MAX_LOOKED_AT) {
                if entries.len() >= limit {
                    break;
                }
                let (number, json) = row?;
                let entry: Entry = serde_json::from_str(json.value()).map_err(|error| {
                    LedgerError::Untrusted(format!("entry {}: {error}", number.value()))
                })?;
                if model.is_none() || entry.model.as_ref() == model {
                    entries.push(entry);
                }
            }
            Ok(entries)
        })
    }

    /// Whether this was asked before.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn asked_before(&self, request: &Request) -> Result<Before, LedgerError> {
        self.read(|transaction| {
            let table = transaction.open_table(ANSWERS)?;
            let Some(answer) = table.get(request.key.as_str())? else {
                return Ok(Before::Unknown);
            };
            let (time, fingerprint, answer) = answer.value();
            Ok(if time.saturating_add(ANSWER_LIFE) < now() {
                Before::Unknown
            } else if fingerprint == request.fingerprint {
                Before::Answered(answer.to_owned())
            } else {
                Before::Mismatch
            })
        })
    }

    /// Make a change: the model's next state, its entry, and the answer that a caller gets who asks
    /// again. When this returns, all of it is on the disk.
    ///
    /// # Errors
    /// [`LedgerError`]; then none of it is.
    pub fn commit(
        &self,
        change: &Change,
        state: &ModelState,
        request: Option<&Request>,
        answer: &str,
    ) -> Result<Entry, LedgerError> {
        self.write(|transaction| {
            let json = serde_json::to_string(state).expect("a state is JSON");
            transaction.open_table(MODELS)?.insert(change.model.as_str(), json.as_str())?;
            transaction.open_table(NUMBERS)?.insert("revision", state.revision)?;
            if let Some(request) = request {
                remember(transaction, request, answer)?;
            }
            append(transaction, change.entry(), state.revision)
        })
    }

    /// Make a change of keys, in the same way.
    ///
    /// # Errors
    /// [`LedgerError`]; then none of it is.
    pub fn commit_key(
        &self,
        change: &KeyChange,
        revision: u64,
        request: Option<&Request>,
        answer: &str,
    ) -> Result<Entry, LedgerError> {
        self.write(|transaction| {
            let mut keys = transaction.open_table(KEYS)?;
            let json = serde_json::to_string(&change.key).expect("a key is JSON");
            keys.insert(change.key.id.as_str(), json.as_str())?;
            for id in &change.forgotten {
                keys.remove(id.as_str())?;
            }
            transaction.open_table(NUMBERS)?.insert("revision", revision)?;
            if let Some(request) = request {
                remember(transaction, request, answer)?;
            }
            append(transaction, change.entry(), revision)
        })
    }

    /// Keep the answer to a request that had nothing to change.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn remember(&self, request: &Request, answer: &str) -> Result<(), LedgerError> {
        self.write(|transaction| remember(transaction, request, answer))
    }

    /// Write down an attempt that failed.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn note_failure(&self, change: &Change) -> Result<Entry, LedgerError> {
        self.write(|transaction| {
            let numbers = transaction.open_table(NUMBERS)?;
            let revision = numbers.get("revision")?.map_or(0, |revision| revision.value());
            drop(numbers);
            append(transaction, change.entry(), revision)
        })
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        self.with(|database| read(&database.begin_read()?))
    }

    fn write<T>(
        &self,
        write: impl FnOnce(&WriteTransaction) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let written = write(&transaction)?;
            transaction.commit()?;
            Ok(written)
        })
    }

    /// After an error of the disk, redb wants to be opened again; the last change that was whole is
    /// what it then finds.
    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            *database = Some(open(&self.path)?);
        }
        let outcome = work(database.as_ref().expect("it was just opened"));
        if matches!(outcome, Err(LedgerError::Store(_))) {
            *database = None;
        }
        outcome
    }
}

fn open(path: &Path) -> Result<Database, LedgerError> {
    let database = Database::builder().create_with_backend(DatabaseFile::open(path)?)?;
    let is_new = {
        let transaction = database.begin_read()?;
        transaction.list_tables()?.next().is_none()
    };
    if is_new {
        let transaction = database.begin_write()?;
        transaction.open_table(NUMBERS)?.insert("format", FORMAT)?;
        transaction.open_table(MODELS)?;
        transaction.open_table(KEYS)?;
        transaction.open_table(AUDIT)?;
        transaction.open_table(ANSWERS)?;
        transaction.commit()?;
    }
    let format = database.begin_read()?.open_table(NUMBERS)?.get("format")?;
    match format.map(|format| format.value()) {
        Some(FORMAT) => Ok(database),
        Some(FORMAT_WITHOUT_KEYS) => {
            let transaction = database.begin_write()?;
            transaction.open_table(KEYS)?;
            transaction.open_table(NUMBERS)?.insert("format", FORMAT)?;
            transaction.commit()?;
            Ok(database)
        }
        other => Err(LedgerError::Untrusted(format!("its format is {other:?}, not {FORMAT}"))),
    }
}

/// Give an entry its number, its time and its place in the chain.
fn append(
    transaction: &WriteTransaction,
    mut entry: Entry,
    revision: u64,
) -> Result<Entry, LedgerError> {
    let mut audit = transaction.open_table(AUDIT)?;
    let last = match audit.last()? {
        Some((_, json)) => Some(
            serde_json::from_str::<Entry>(json.value())
                .map_err(|error| LedgerError::Untrusted(format!("the last entry: {error}")))?,
        ),
        None => None,
    };
    entry.sequence = last.as_ref().map_or(1, |last| last.sequence + 1);
    entry.revision = revision;
    entry.time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    entry.previous_hash = last.map_or_else(no_hash, |last| last.hash);
    entry.hash = entry.own_hash();
    let json = serde_json::to_string(&entry).expect("an entry is JSON");
    audit.insert(entry.sequence, json.as_str())?;
    Ok(entry)
}

/// Keep an answer, and see to it that there are not too many.
fn remember(
    transaction: &WriteTransaction,
    request: &Request,
    answer: &str,
) -> Result<(), LedgerError> {
    let mut answers = transaction.open_table(ANSWERS)?;
    answers.insert(request.key.as_str(), (now(), request.fingerprint.as_str(), answer))?;
    if answers.len()? > MAX_ANSWERS as u64 {
        let mut times = Vec::new();
        for row in answers.iter()? {
            let (key, answer) = row?;
            times.push((answer.value().0, key.value().to_owned()));
        }
        times.sort();
        // Not one each time: looking through them all is the dear part.
        for (_, key) in times.into_iter().take(MAX_ANSWERS / 10) {
            answers.remove(key.as_str())?;
        }
    }
    Ok(())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
