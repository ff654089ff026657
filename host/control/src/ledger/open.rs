//! Opening the ledger, and checking that it has everything that was acknowledged.
//!
//! The check runs on a scratch copy first, so that a ledger that is refused stays unchanged. It verifies the
//! checksum of every page and the end of the audit log, and reads every state and key; a panic of the
//! library on a damaged file only ends the check. The result is compared with the head file. A ledger that
//! has lost something is only opened on request: an intact one continues from its end, and a damaged one is
//! set aside and replaced.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::{Builder, Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _};

use super::entry::{Author, Entry, check_chain, no_hash};
use super::error::LedgerError;
use super::format::{FORMAT, FORMAT_WITHOUT_KEYS};
use super::head::{self, Head, HeadFile, Noted};
use super::storage::{DatabaseFile, ScratchCopy};
use super::tables::{
    ANSWERS, AUDIT, KEYS, MODELS, NUMBERS, append, digest_of_nothing, history_of, keys_of,
    models_of, parse_entry, position, put_key, revoked, seal,
};
use crate::keys::{StoredKey, Timestamp};
use guesthouse_runtime::clock;
use guesthouse_runtime::durable;

/// The name of the database in the state folder.
pub(super) const NAME: &str = "ledger.redb";

/// The name of a new database until it is complete. It has the prefix of all unfinished files.
const UNFINISHED_NAME: &str = ".tmp-ledger.redb";

/// How many of the last entries are checked against their hashes at the start. Older ones are covered by the
/// page checksums of the database.
const CHECKED_ENTRIES: usize = 1000;

/// The most damaged ledgers that are kept.
const MAX_SET_ASIDE: usize = 100;

/// What a start does if the ledger has lost acknowledged changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLoss {
    /// It fails.
    #[default]
    Refuse,
    /// It continues with what is left, and records that in the audit log.
    Accept,
}

/// The contents of an intact ledger.
#[derive(Debug)]
struct Contents {
    /// Whether it has had a head file before.
    had_head: bool,
    position: Head,
    keys: Vec<StoredKey>,
    /// The hash of the entry that the head file refers to, if there is one with that number.
    noted_hash: Option<String>,
}

/// The state of the ledger's file.
enum Found {
    /// There is no file, or an empty one.
    Missing,
    Intact(Contents),
    /// The file cannot be used, for this reason.
    Damaged(String),
}

/// What the start does with the ledger.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// There was no ledger before: create one.
    Create,
    /// The ledger is complete.
    Continue,
    /// An earlier release without head files wrote it: add a head file.
    AddHead,
    /// This has been lost.
    Loss(String),
}

/// The files of an open ledger.
pub(super) struct Files {
    /// None while it could not be opened again after an error.
    pub(super) database: Option<Database>,
    pub(super) head: HeadFile,
}

/// Open the files of the ledger, or create them. See [`super::Ledger::open`].
///
/// # Errors
/// [`LedgerError`]; [`LedgerError::Lost`], unless that is accepted.
pub(super) fn open_files(
    folder: &Path,
    has_artifacts: bool,
    on_loss: OnLoss,
) -> Result<Files, LedgerError> {
    let path = folder.join(NAME);
    let head_error = |error| LedgerError::File(folder.join(head::NAME), error);
    let noted = Noted::read(folder).map_err(head_error)?;
    let found = check_file(&path, noted.as_ref())?;
    let decision = decide(&found, noted.as_ref(), has_artifacts);
    let noted = noted.unwrap_or_default();
    if noted.is_damaged {
        tracing::warn!("a part of ledger.head is damaged or incomplete; the file is rewritten");
    }
    let (database, head) = match (decision, found) {
        (Decision::Loss(what), _) if on_loss == OnLoss::Refuse => {
            return Err(LedgerError::Lost(what));
        }
        (Decision::Loss(what), found) => accept_loss(folder, found, noted, &what)?,
        (Decision::Create, _) | (_, Found::Missing | Found::Damaged(_)) => {
            let head = HeadFile::create(folder, empty_head(), noted.revoked).map_err(head_error)?;
            (create(folder)?, head)
        }
        (Decision::Continue | Decision::AddHead, Found::Intact(contents)) => {
            let head = match noted.head.clone() {
                Some(head) => HeadFile::open(folder, noted, head),
                None => {
                    HeadFile::create(folder, contents.position.clone(), revoked(&contents.keys))
                }
            };
            let mut head = head.map_err(head_error)?;
            // A crash may have prevented the last change from being noted.
            head.reconcile(contents.position, revoked(&contents.keys)).map_err(head_error)?;
            (open(&path)?, head)
        }
    };
    if on_loss == OnLoss::Accept {
        tracing::warn!("--accept-ledger-loss accepts any later loss as well: remove it");
    }
    Ok(Files { database: Some(database), head })
}

/// Open the database again after an error of the disk, and check that it has everything that was noted.
pub(super) fn reopen(path: &Path, head: &Head) -> Result<Database, LedgerError> {
    let database = open(path)?;
    let is = position(&database.begin_read()?)?;
    if is.writes < head.writes || is.sequence < head.sequence {
        let what = format!("it ends at {}, and not at {}", describe(&is), describe(head));
        return Err(LedgerError::Untrusted(what));
    }
    Ok(database)
}

/// The position of an empty ledger.
fn empty_head() -> Head {
    let content = digest_of_nothing();
    Head { writes: 0, sequence: 0, revision: 0, hash: no_hash(), content }
}

fn describe(head: &Head) -> String {
    format!("revision {} (entry {}, hash {})", head.revision, head.sequence, head.hash)
}

/// Check the ledger's file on a copy.
fn check_file(path: &Path, noted: Option<&Noted>) -> Result<Found, LedgerError> {
    let unreadable = |error| LedgerError::File(path.to_owned(), error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        Err(error) => return Err(unreadable(error)),
    };
    if file.metadata().map_err(unreadable)?.len() == 0 {
        return Ok(Found::Missing);
    }
    let noted_sequence =
        noted.and_then(|noted| noted.head.as_ref()).map_or(0, |head| head.sequence);
    try_open(file, noted_sequence)
}

/// Read all of a ledger from a copy, and the hash of the entry with the number that was noted.
fn try_open(file: File, noted_sequence: u64) -> Result<Found, LedgerError> {
    try_open_with(file, noted_sequence, |_transaction| Ok(()))
}

/// Like [`try_open`]; `look` reads the same transaction.
fn try_open_with(
    file: File,
    noted_sequence: u64,
    look: impl FnOnce(&ReadTransaction) -> Result<(), LedgerError>,
) -> Result<Found, LedgerError> {
    let trial = || {
        let copy =
            ScratchCopy::new(file).map_err(|error| LedgerError::Store(Box::new(error.into())))?;
        let database = builder().create_with_backend(copy)?;
        let had_head = upgrade(&database)?;
        let transaction = database.begin_read()?;
        let contents = read_all(&transaction, noted_sequence)?;
        look(&transaction)?;
        Ok(Contents { had_head, ..contents })
    };
    // Nothing of a check that has panicked is used again.
    let outcome = catch_unwind(AssertUnwindSafe(trial));
    Ok(match outcome {
        Ok(Ok(contents)) => Found::Intact(contents),
        Ok(Err(error)) => Found::Damaged(damage(error)?),
        Err(_panic) => Found::Damaged("the file is damaged".to_owned()),
    })
}

/// How a file is damaged. An error that is not the file's fault is returned as it is.
fn damage(error: LedgerError) -> Result<String, LedgerError> {
    let LedgerError::Store(source) = &error else {
        return match error {
            LedgerError::Untrusted(what) => Ok(what),
            other => Err(other),
        };
    };
    match &**source {
        redb::Error::Io(reason)
            if ![io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof]
                .contains(&reason.kind()) =>
        {
            Err(error)
        }
        other => Ok(format!("the file is damaged: {other}")),
    }
}

fn read_all(transaction: &ReadTransaction, noted_sequence: u64) -> Result<Contents, LedgerError> {
    let entries = history_of(transaction, None, None, CHECKED_ENTRIES)?;
    check_chain(&entries).map_err(LedgerError::Untrusted)?;
    let position = position(transaction)?;
    check_ends(&entries, position.revision)?;
    models_of(transaction)?;
    for row in transaction.open_table(ANSWERS)?.iter()? {
        row?;
    }
    let audit = transaction.open_table(AUDIT)?;
    let entry = audit.get(noted_sequence)?;
    let entry = entry.map(|json| parse_entry(noted_sequence, json.value())).transpose()?;
    Ok(Contents {
        had_head: true,
        position,
        keys: keys_of(transaction)?,
        noted_hash: entry.map(|entry| entry.hash),
    })
}

/// Check that the log starts with the first entry that must be there, and ends at the revision of the state.
fn check_ends(entries: &[Entry], revision: u64) -> Result<(), LedgerError> {
    let first = entries.last().map_or(1, |entry| entry.sequence);
    let begins = entries.len() == CHECKED_ENTRIES || first == 1;
    let ends = entries.first().map_or(0, |entry| entry.revision) == revision;
    if begins && ends {
        return Ok(());
    }
    Err(LedgerError::Untrusted("a part of the audit log is missing".to_owned()))
}

fn decide(found: &Found, noted: Option<&Noted>, has_artifacts: bool) -> Decision {
    let noted_head = noted.map(|noted| noted.head.as_ref());
    match (found, noted_head) {
        (Found::Missing, None) if !has_artifacts => Decision::Create,
        (Found::Missing, None) => {
            Decision::Loss("there is none, although artifacts were deployed".to_owned())
        }
        (Found::Missing, Some(Some(head))) if *head == empty_head() => Decision::Create,
        (Found::Missing, Some(Some(head))) => {
            Decision::Loss(format!("there is none, although one reached {}", describe(head)))
        }
        (Found::Missing, Some(None)) => {
            Decision::Loss("there is none, although there is a ledger.head".to_owned())
        }
        (Found::Damaged(why), Some(Some(head))) => {
            Decision::Loss(format!("it reached {}, but {why}", describe(head)))
        }
        (Found::Damaged(why), _) => Decision::Loss(why.clone()),
        (Found::Intact(contents), None) if !contents.had_head => Decision::AddHead,
        (Found::Intact(contents), None) => Decision::Loss(format!(
            "it ends at {}, and ledger.head, which would say whether that is all, is missing",
            describe(&contents.position)
        )),
        (Found::Intact(contents), Some(None)) => Decision::Loss(format!(
            "it ends at {}, and ledger.head, which would say whether that is all, is damaged",
            describe(&contents.position)
        )),
        (Found::Intact(contents), Some(Some(head))) => compare(contents, head),
    }
}

/// Compare the ledger with its head file. The ledger may be ahead by changes that were not acknowledged.
fn compare(contents: &Contents, head: &Head) -> Decision {
    let is = &contents.position;
    if head.sequence > 0 && contents.noted_hash.as_ref() != Some(&head.hash)
        || is.writes < head.writes
    {
        return Decision::Loss(format!(
            "it reached {}, and now ends at {}",
            describe(head),
            describe(is)
        ));
    }
    let is_same = is.writes == head.writes && is.sequence == head.sequence;
    if is_same && is.content != head.content {
        return Decision::Loss(format!(
            "what it holds at {} is not what it contents",
            describe(is)
        ));
    }
    Decision::Continue
}

/// Continue with what is left. Keys whose revocation is known stay revoked, and the log records what is
/// missing.
fn accept_loss(
    folder: &Path,
    found: Found,
    noted: Noted,
    what: &str,
) -> Result<(Database, HeadFile), LedgerError> {
    tracing::error!(lost = what, "the loss of a part of the ledger is accepted");
    let path = folder.join(NAME);
    let (database, contents) = match found {
        Found::Intact(contents) => (open(&path)?, Some(contents)),
        Found::Missing => (create(folder)?, None),
        Found::Damaged(_) => {
            set_aside(folder).map_err(|error| LedgerError::File(path, error))?;
            (create(folder)?, None)
        }
    };
    let mut keys = contents.as_ref().map(|contents| contents.keys.clone()).unwrap_or_default();
    let now = Timestamp::from_system_time(clock::now())
        .map_err(|error| LedgerError::Untrusted(error.to_string()))?;
    keys.retain(|key| key.revoked.is_none() && noted.revoked.contains(&key.key.sha256));
    keys.iter_mut().for_each(|key| key.revoked = Some(now));
    // Revisions that were used are not used again.
    let last = noted.head.as_ref().map_or(0, |head| head.revision);
    let revision = last.max(contents.map_or(0, |contents| contents.position.revision)) + 1;
    let again: Vec<_> = keys.iter().map(|key| key.id.as_str()).collect();
    let again = match &again[..] {
        [] => String::new(),
        ids => format!("; revoked again: {}", ids.join(", ")),
    };
    let reason = Some(format!("{what}{again}"));
    let author = Author { actor: "command line".to_owned(), reason };
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(KEYS)?;
        keys.iter().try_for_each(|key| put_key(&mut table, key))?;
        transaction.open_table(NUMBERS)?.insert("revision", revision)?;
    }
    append(&transaction, Entry::loss_accepted(author), revision)?;
    let head = seal(&transaction)?;
    transaction.commit()?;
    let mut all = noted.revoked;
    let contents = keys_of(&database.begin_read()?)?;
    all.extend(
        revoked(&contents).into_iter().filter(|hash| !all.contains(hash)).collect::<Vec<_>>(),
    );
    let head_error = |error| LedgerError::File(folder.join(head::NAME), error);
    Ok((database, HeadFile::create(folder, head, all).map_err(head_error)?))
}

/// Rename a damaged ledger, so that it can be examined later.
fn set_aside(folder: &Path) -> io::Result<()> {
    let mut names =
        (1..=MAX_SET_ASIDE).map(|number| folder.join(format!("{NAME}.damaged-{number}")));
    let free = names.find(|path| !path.exists());
    let free =
        free.ok_or_else(|| io::Error::other("too many damaged ledgers are kept: remove some"))?;
    durable::rename(&folder.join(NAME), &free)?;
    durable::sync_folder(folder)?;
    tracing::warn!(path = %free.display(), "the damaged ledger was set aside");
    Ok(())
}

/// Create a ledger under another name and rename it, so that it exists completely or not at all.
fn create(folder: &Path) -> Result<Database, LedgerError> {
    let unfinished = folder.join(UNFINISHED_NAME);
    let at = |error| LedgerError::File(unfinished.clone(), error);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
        _ => {}
    }
    let database = builder().create_with_backend(DatabaseFile::open(&unfinished)?)?;
    let transaction = database.begin_write()?;
    transaction.open_table(NUMBERS)?.insert("format", FORMAT)?;
    transaction.open_table(MODELS)?;
    transaction.open_table(AUDIT)?;
    transaction.open_table(ANSWERS)?;
    transaction.open_table(KEYS)?;
    transaction.commit()?;
    upgrade(&database)?;
    durable::rename(&unfinished, &folder.join(NAME)).map_err(at)?;
    durable::sync_folder(folder).map_err(at)?;
    Ok(database)
}

fn open(path: &Path) -> Result<Database, LedgerError> {
    let database = builder().create_with_backend(DatabaseFile::open(path)?)?;
    upgrade(&database)?;
    Ok(database)
}

/// The options of the database. Every page is verified whenever the file is opened, so that a file that was
/// damaged while it was closed is refused before anything is written to it.
fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_check_integrity_on_open(true);
    builder
}

/// All rows of a ledger, if it is not refused.
#[cfg(test)]
pub(super) fn logical_content(bytes: &[u8], noted: &Noted) -> Option<Vec<String>> {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    content_of(&file, noted)
}

/// A file of a ledger in which single bits can be flipped.
#[cfg(test)]
pub(super) struct Flippable<'a> {
    bytes: &'a [u8],
    file: File,
}

#[cfg(test)]
impl<'a> Flippable<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        Self { bytes, file }
    }

    /// All rows with this bit flipped; none if the ledger is refused.
    pub(super) fn flipped(&self, bit: usize, noted: &Noted) -> Option<Vec<String>> {
        use std::os::unix::fs::FileExt as _;
        let (byte, at) = (self.bytes[bit / 8], (bit / 8) as u64);
        self.file.write_all_at(&[byte ^ (1 << (bit % 8))], at).unwrap();
        let content = content_of(&self.file, noted);
        self.file.write_all_at(&[byte], at).unwrap();
        content
    }
}

/// All rows that a start would use, read as its check reads them.
#[cfg(test)]
fn content_of(file: &File, noted: &Noted) -> Option<Vec<String>> {
    let noted_sequence = noted.head.as_ref().unwrap().sequence;
    let mut rows = Vec::new();
    let found = try_open_with(file.try_clone().unwrap(), noted_sequence, |transaction| {
        rows.push(format!("{:?}", position(transaction)?));
        for table in [MODELS, KEYS] {
            for row in transaction.open_table(table)?.iter()? {
                let (key, value) = row?;
                rows.push(format!("{} {}", key.value(), value.value()));
            }
        }
        for row in transaction.open_table(AUDIT)?.iter()? {
            rows.push(row?.1.value().to_owned());
        }
        for row in transaction.open_table(ANSWERS)?.iter()? {
            let (key, value) = row?;
            rows.push(format!("{} {:?}", key.value(), value.value()));
        }
        Ok(())
    });
    (decide(&found.ok()?, Some(noted), true) == Decision::Continue).then_some(rows)
}

/// Upgrade a ledger of an earlier release to the current format. Returns whether there was a head file.
fn upgrade(database: &Database) -> Result<bool, LedgerError> {
    let (format, has_head) = {
        let numbers = database.begin_read()?.open_table(NUMBERS)?;
        let format = numbers.get("format")?.map(|format| format.value());
        (format, numbers.get("writes")?.is_some())
    };
    if !matches!(format, Some(FORMAT | FORMAT_WITHOUT_KEYS)) {
        return Err(LedgerError::Format(format.unwrap_or_default()));
    }
    if format == Some(FORMAT) && has_head {
        return Ok(true);
    }
    let transaction = database.begin_write()?;
    transaction.open_table(KEYS)?;
    {
        let mut numbers = transaction.open_table(NUMBERS)?;
        numbers.insert("format", FORMAT)?;
        if !has_head {
            numbers.insert("writes", 0)?;
        }
    }
    transaction.commit()?;
    Ok(has_head)
}
