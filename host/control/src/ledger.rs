//! The ledger: which versions of which models are served, which keys operators have made, every change of
//! both, and which requests for changes were answered.
//!
//! One file of redb, a transactional store: a change is in it with its entry in the audit log and the
//! answer to its caller, or not at all, whatever happens to the process or the machine. Each entry
//! carries the hash of the one before, so that nothing can be taken out or altered unnoticed. What is
//! cut off at the end is noticed by the head file (see `head`), in which each change is noted after its
//! commit and before it is acknowledged. How a ledger is checked at the start, and what happens if it
//! has lost something, is in `open`.

mod entry;
mod head;
mod open;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition, WriteTransaction,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use self::entry::no_hash;
pub use self::entry::{Author, Change, Entry, KeyChange, KeySubject, check_chain};
use self::head::{Head, HeadFile};
pub use self::open::OnLoss;

use crate::keys::{KeyHash, StoredKey};
use crate::rollout::ModelState;
use guesthouse_model::ModelName;
use guesthouse_runtime::clock;

/// States by model, in JSON.
const MODELS: TableDefinition<'_, &str, &str> = TableDefinition::new("models");

/// Keys by their ids, in JSON.
const KEYS: TableDefinition<'_, &str, &str> = TableDefinition::new("keys");

/// Entries by their numbers, in JSON.
const AUDIT: TableDefinition<'_, u64, &str> = TableDefinition::new("audit");

/// By caller and idempotency key: when, what was asked (a hash), and the answer.
const ANSWERS: TableDefinition<'_, &str, (u64, &str, &str)> = TableDefinition::new("answers");

/// `format`, `revision`, and `writes`: how many transactions were committed since there is a head file.
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

/// The ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The store says so.
    #[error("use the ledger")]
    Store(#[source] Box<redb::Error>),
    /// It was altered.
    #[error("trust the ledger: {0}")]
    Untrusted(String),
    /// A later host wrote it, or nobody did.
    #[error("understand the ledger: its format is {0}, not {FORMAT}")]
    Format(u64),
    /// Changes that were acknowledged are not in it.
    #[error(
        "trust the ledger: {0}. Put a newer copy of the state folder in place, or start once with \
         --accept-ledger-loss to go on with what is left: the audit log will say so, and keys whose \
         revocation is known stay revoked"
    )]
    Lost(String),
    /// What belongs to it cannot be read or written.
    #[error("use {0:?}")]
    File(PathBuf, #[source] io::Error),
}

impl LedgerError {
    /// Whether the disk is full, or this user's part of it.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let error = match self {
            Self::Store(error) => match &**error {
                redb::Error::Io(error) => error,
                _ => return false,
            },
            Self::File(_, error) => error,
            Self::Untrusted(_) | Self::Format(_) | Self::Lost(_) => return false,
        };
        matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
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
    files: Mutex<Files>,
}

struct Files {
    /// None while it could not be opened again after an error.
    database: Option<Database>,
    head: HeadFile,
}

impl Ledger {
    /// The hashes of all keys that are known to have been revoked, also if the ledger lost that.
    pub fn revoked_keys(&self) -> HashSet<KeyHash> {
        self.files().head.revoked()
    }

    /// Every model's state.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn models(&self) -> Result<BTreeMap<ModelName, ModelState>, LedgerError> {
        self.read(models_of)
    }

    /// Every key, revoked ones included, the oldest first.
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
        self.read(|transaction| history_of(transaction, model, before, limit))
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

    /// Keep the answer to a request that had nothing to change.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn remember(&self, request: &Request, answer: &str) -> Result<(), LedgerError> {
        self.write(None, |transaction| remember(transaction, request, answer))
    }

    /// Write down an attempt that failed.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn note_failure(&self, change: &Change) -> Result<Entry, LedgerError> {
        self.write(None, |transaction| {
            let numbers = transaction.open_table(NUMBERS)?;
            let revision = numbers.get("revision")?.map_or(0, |revision| revision.value());
            drop(numbers);
            append(transaction, change.entry(), revision)
        })
    }

    /// Note what the ledger says in the head file, if an error has kept that from being done. Before,
    /// what it says must not be acknowledged.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn settle(&self) -> Result<(), LedgerError> {
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

    /// After an error of the disk, redb wants to be opened again; the last change that was whole is
    /// what it then finds.
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

fn models_of(
    transaction: &ReadTransaction,
) -> Result<BTreeMap<ModelName, ModelState>, LedgerError> {
    let mut models = BTreeMap::new();
    for row in transaction.open_table(MODELS)?.iter()? {
        let (name, state) = row?;
        let wrong = |what: String| LedgerError::Untrusted(format!("a model's state: {what}"));
        let name = name.value().parse::<ModelName>().map_err(|e| wrong(e.to_string()))?;
        let state = serde_json::from_str(state.value()).map_err(|e| wrong(e.to_string()))?;
        models.insert(name, state);
    }
    Ok(models)
}

fn keys_of(transaction: &ReadTransaction) -> Result<Vec<StoredKey>, LedgerError> {
    let mut keys = Vec::new();
    for row in transaction.open_table(KEYS)?.iter()? {
        let (id, json) = row?;
        let key = serde_json::from_str::<StoredKey>(json.value());
        keys.push(
            key.map_err(|error| {
                LedgerError::Untrusted(format!("the key {}: {error}", id.value()))
            })?,
        );
    }
    Ok(keys)
}

fn history_of(
    transaction: &ReadTransaction,
    model: Option<&ModelName>,
    before: Option<u64>,
    limit: usize,
) -> Result<Vec<Entry>, LedgerError> {
    let table = transaction.open_table(AUDIT)?;
    let mut entries = Vec::new();
    let rows = table.range(..before.unwrap_or(u64::MAX))?.rev();
    for row in rows.take(MAX_LOOKED_AT) {
        if entries.len() >= limit {
            break;
        }
        let (number, json) = row?;
        let entry = parse_entry(number.value(), json.value())?;
        if model.is_none() || entry.model.as_ref() == model {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// Where the ledger is.
fn position(transaction: &ReadTransaction) -> Result<Head, LedgerError> {
    position_of(
        &transaction.open_table(NUMBERS)?,
        &transaction.open_table(AUDIT)?,
        [&transaction.open_table(MODELS)?, &transaction.open_table(KEYS)?],
    )
}

/// Count a transaction that is about to be committed; where the ledger is after it.
fn seal(transaction: &WriteTransaction) -> Result<Head, LedgerError> {
    let mut numbers = transaction.open_table(NUMBERS)?;
    let writes = numbers.get("writes")?.map_or(0, |writes| writes.value()) + 1;
    numbers.insert("writes", writes)?;
    position_of(
        &numbers,
        &transaction.open_table(AUDIT)?,
        [&transaction.open_table(MODELS)?, &transaction.open_table(KEYS)?],
    )
}

fn position_of(
    numbers: &impl ReadableTable<&'static str, u64>,
    audit: &impl ReadableTable<u64, &'static str>,
    content: [&impl ReadableTable<&'static str, &'static str>; 2],
) -> Result<Head, LedgerError> {
    let number = |name| Ok::<_, LedgerError>(numbers.get(name)?.map_or(0, |number| number.value()));
    let last = last_entry(audit)?;
    Ok(Head {
        writes: number("writes")?,
        revision: number("revision")?,
        sequence: last.as_ref().map_or(0, |last| last.sequence),
        hash: last.map_or_else(no_hash, |last| last.hash),
        content: digest(content)?,
    })
}

fn last_entry(audit: &impl ReadableTable<u64, &'static str>) -> Result<Option<Entry>, LedgerError> {
    let Some((number, json)) = audit.last()? else { return Ok(None) };
    parse_entry(number.value(), json.value()).map(Some)
}

fn parse_entry(number: u64, json: &str) -> Result<Entry, LedgerError> {
    serde_json::from_str(json)
        .map_err(|error| LedgerError::Untrusted(format!("entry {number}: {error}")))
}

/// A digest of all rows of these tables.
fn digest(
    tables: [&impl ReadableTable<&'static str, &'static str>; 2],
) -> Result<String, LedgerError> {
    let mut hasher = blake3::Hasher::new();
    for table in tables {
        hasher.update(&table.len()?.to_le_bytes());
        for row in table.iter()? {
            let (key, value) = row?;
            for part in [key.value(), value.value()] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn digest_of_nothing() -> String {
    blake3::hash(&[0; 2 * size_of::<u64>()]).to_hex().to_string()
}

/// The hashes of those that were revoked, in the order in which that happened.
fn revoked(keys: &[StoredKey]) -> Vec<KeyHash> {
    let mut revoked: Vec<_> =
        keys.iter().filter_map(|stored| Some((stored.revoked?, stored.key.sha256))).collect();
    revoked.sort_by_key(|(time, _)| *time);
    revoked.into_iter().map(|(_, hash)| hash).collect()
}

fn put_key(
    keys: &mut redb::Table<'_, &'static str, &'static str>,
    key: &StoredKey,
) -> Result<(), LedgerError> {
    let json = serde_json::to_string(key).expect("a key is JSON");
    keys.insert(key.id.as_str(), json.as_str())?;
    Ok(())
}

/// Give an entry its number, its time and its place in the chain.
fn append(
    transaction: &WriteTransaction,
    mut entry: Entry,
    revision: u64,
) -> Result<Entry, LedgerError> {
    let mut audit = transaction.open_table(AUDIT)?;
    let last = last_entry(&audit)?;
    entry.sequence = last.as_ref().map_or(1, |last| last.sequence + 1);
    entry.revision = revision;
    entry.time = humantime::format_rfc3339_millis(clock::now()).to_string();
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
    let since = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
