//! The tables of the database, and how their rows are read and written.

use std::collections::BTreeMap;

use guesthouse_model::ModelName;
use guesthouse_runtime::clock;
use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::entry::{Entry, no_hash};
use super::error::LedgerError;
use super::head::Head;
use crate::keys::{KeyHash, StoredKey};
use crate::rollout::ModelState;

/// The state of each model, in JSON.
pub(super) const MODELS: TableDefinition<'_, &str, &str> = TableDefinition::new("models");

/// Keys by id, in JSON.
pub(super) const KEYS: TableDefinition<'_, &str, &str> = TableDefinition::new("keys");

/// Entries of the audit log by number, in JSON.
pub(super) const AUDIT: TableDefinition<'_, u64, &str> = TableDefinition::new("audit");

/// By caller and idempotency key: the time, the fingerprint of the request, and the response.
pub(super) const ANSWERS: TableDefinition<'_, &str, (u64, &str, &str)> =
    TableDefinition::new("answers");

/// `format`, `revision`, and `writes`: the number of transactions since the head file exists.
pub(super) const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

/// The most entries that one query reads: changes wait meanwhile.
pub(super) const MAX_ENTRIES_READ: usize = 10_000;

pub(super) fn models_of(
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

pub(super) fn keys_of(transaction: &ReadTransaction) -> Result<Vec<StoredKey>, LedgerError> {
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

pub(super) fn history_of(
    transaction: &ReadTransaction,
    model: Option<&ModelName>,
    before: Option<u64>,
    limit: usize,
) -> Result<Vec<Entry>, LedgerError> {
    let table = transaction.open_table(AUDIT)?;
    let mut entries = Vec::new();
    let rows = table.range(..before.unwrap_or(u64::MAX))?.rev();
    for row in rows.take(MAX_ENTRIES_READ) {
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

/// The position of the ledger.
pub(super) fn position(transaction: &ReadTransaction) -> Result<Head, LedgerError> {
    position_of(
        &transaction.open_table(NUMBERS)?,
        &transaction.open_table(AUDIT)?,
        [&transaction.open_table(MODELS)?, &transaction.open_table(KEYS)?],
    )
}

/// Count a transaction that is about to be committed, and return the position after it.
pub(super) fn seal(transaction: &WriteTransaction) -> Result<Head, LedgerError> {
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

pub(super) fn parse_entry(number: u64, json: &str) -> Result<Entry, LedgerError> {
    serde_json::from_str(json)
        .map_err(|error| LedgerError::Untrusted(format!("entry {number}: {error}")))
}

/// A digest over all rows of these tables.
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

pub(super) fn digest_of_nothing() -> String {
    blake3::hash(&[0; 2 * size_of::<u64>()]).to_hex().to_string()
}

/// The hashes of revoked keys, in the order of their revocation.
pub(super) fn revoked(keys: &[StoredKey]) -> Vec<KeyHash> {
    let mut revoked: Vec<_> =
        keys.iter().filter_map(|stored| Some((stored.revoked?, stored.key.sha256))).collect();
    revoked.sort_by_key(|(time, _)| *time);
    revoked.into_iter().map(|(_, hash)| hash).collect()
}

pub(super) fn put_key(
    keys: &mut redb::Table<'_, &'static str, &'static str>,
    key: &StoredKey,
) -> Result<(), LedgerError> {
    let json = serde_json::to_string(key).expect("a key is JSON");
    keys.insert(key.id.as_str(), json.as_str())?;
    Ok(())
}

/// Append an entry: give it its number, its time and the hash of the previous one.
pub(super) fn append(
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
