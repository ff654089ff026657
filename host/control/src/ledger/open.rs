//! Opening the ledger: is what it holds all that was acknowledged?
//!
//! A trial on a scratch copy comes first, so that a ledger that is refused is left as it was found. It
//! verifies the checksum of every page, the end of the audit log, and that every state and key can be
//! read; a panic of the library on a damaged file ends the trial alone. What is found is compared with
//! the head file. A ledger that lost something is opened only on request; then one that is whole in
//! itself goes on from where it ends, and one that is not is set aside for a new one.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

use redb::{Builder, Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _};

use super::entry::{Author, no_hash};
use super::head::{self, Head, HeadFile, Noted};
use super::{
    ANSWERS, AUDIT, Entry, FORMAT, FORMAT_WITHOUT_KEYS, Files, KEYS, Ledger, LedgerError, MODELS,
    NUMBERS, append, check_chain, history_of, keys_of, models_of, parse_entry, position, put_key,
    revoked,
};
use crate::keys::{StoredKey, Time};
use guesthouse_runtime::clock;
use guesthouse_runtime::durable::{self, DatabaseFile, ScratchCopy};

/// The name of the database in the state folder.
const NAME: &str = "ledger.redb";

/// The name under which a new database is made; it begins like that of everything unfinished.
const UNFINISHED_NAME: &str = ".tmp-ledger.redb";

/// How many entries, from the last one back, are checked against their hashes at the start. Older ones
/// are covered by the checksums of the database's pages.
const CHECKED_ENTRIES: usize = 1000;

/// The most ledgers that are set aside.
const MAX_SET_ASIDE: usize = 100;

/// What a start does when the ledger lost changes that were acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLoss {
    /// It fails.
    #[default]
    Refuse,
    /// It goes on with what is left, and says so in the audit log.
    Accept,
}

/// A ledger that is consistent in itself.
#[derive(Debug)]
struct Held {
    /// Whether it has ever had a head file.
    had_head: bool,
    position: Head,
    keys: Vec<StoredKey>,
    /// The hash of the entry that the head file names, if it has one of that number.
    named_hash: Option<String>,
}

/// What was found in the place of the ledger.
enum Found {
    /// No file, or an empty one.
    Nothing,
    Whole(Held),
    /// A file that cannot be used, and why.
    Broken(String),
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// There was never anything here.
    Begin,
    /// Everything is there.
    Continue,
    /// It is from before there were head files.
    TakeOver,
    /// This is missing.
    Loss(String),
}

impl Ledger {
    /// Open the ledger of a state folder, or begin one. `has_artifacts` says whether the folder keeps
    /// any, which it does only after there was a ledger.
    ///
    /// # Errors
    /// [`LedgerError`]; [`LedgerError::Lost`], unless that is accepted.
    pub fn open(folder: &Path, has_artifacts: bool, on_loss: OnLoss) -> Result<Self, LedgerError> {
        let path = folder.join(NAME);
        let head_error = |error| LedgerError::File(folder.join(head::NAME), error);
        let noted = Noted::read(folder).map_err(head_error)?;
        let found = find(&path, noted.as_ref())?;
        let verdict = judge(&found, noted.as_ref(), has_artifacts);
        let noted = noted.unwrap_or_default();
        if noted.is_damaged {
            tracing::warn!(
                "a part of ledger.head is damaged or was not finished; it is written anew"
            );
        }
        let (database, head) = match (verdict, found) {
            (Verdict::Loss(what), _) if on_loss == OnLoss::Refuse => {
                return Err(LedgerError::Lost(what));
            }
            (Verdict::Loss(what), found) => accept_loss(folder, found, noted, &what)?,
            (Verdict::Begin, _) | (_, Found::Nothing | Found::Broken(_)) => {
                let head =
                    HeadFile::create(folder, nothing(), noted.revoked).map_err(head_error)?;
                (create(folder)?, head)
            }
            (Verdict::Continue | Verdict::TakeOver, Found::Whole(held)) => {
                let head = match noted.head.clone() {
                    Some(head) => HeadFile::open(folder, noted, head),
                    None => HeadFile::create(folder, held.position.clone(), revoked(&held.keys)),
                };
                let mut head = head.map_err(head_error)?;
                // The last change may not have been noted any more.
                head.reconcile(held.position, revoked(&held.keys)).map_err(head_error)?;
                (open(&path)?, head)
            }
        };
        if on_loss == OnLoss::Accept {
            tracing::warn!("--accept-ledger-loss accepts any later loss as well: remove it");
        }
        Ok(Self { path, files: Mutex::new(Files { database: Some(database), head }) })
    }
}

/// Open the database again after an error of the disk.
pub(super) fn reopen(path: &Path, head: &Head) -> Result<Database, LedgerError> {
    let database = open(path)?;
    let is = position(&database.begin_read()?)?;
    if is.writes < head.writes || is.sequence < head.sequence {
        let what = format!("it ends at {}, and not at {}", place(&is), place(head));
        return Err(LedgerError::Untrusted(what));
    }
    Ok(database)
}

/// The position of a ledger in which there is nothing.
fn nothing() -> Head {
    let content = super::digest_of_nothing();
    Head { writes: 0, sequence: 0, revision: 0, hash: no_hash(), content }
}

fn place(head: &Head) -> String {
    format!("revision {} (entry {}, hash {})", head.revision, head.sequence, head.hash)
}

/// Try a ledger on a copy.
fn find(path: &Path, noted: Option<&Noted>) -> Result<Found, LedgerError> {
    let unreadable = |error| LedgerError::File(path.to_owned(), error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(unreadable(error)),
    };
    if file.metadata().map_err(unreadable)?.len() == 0 {
        return Ok(Found::Nothing);
    }
    let named = noted.and_then(|noted| noted.head.as_ref()).map_or(0, |head| head.sequence);
    try_open(file, named)
}

/// Read all of a ledger from a copy; the entry with the number `named` as well.
fn try_open(file: File, named: u64) -> Result<Found, LedgerError> {
    try_open_with(file, named, |_transaction| Ok(()))
}

/// The same; `look` is shown all of it.
fn try_open_with(
    file: File,
    named: u64,
    look: impl FnOnce(&ReadTransaction) -> Result<(), LedgerError>,
) -> Result<Found, LedgerError> {
    let trial = || {
        let copy =
            ScratchCopy::new(file).map_err(|error| LedgerError::Store(Box::new(error.into())))?;
        let database = builder().create_with_backend(copy)?;
        let had_head = upgrade(&database)?;
        let transaction = database.begin_read()?;
        let held = read_all(&transaction, named)?;
        look(&transaction)?;
        Ok(Held { had_head, ..held })
    };
    // Nothing of a trial that has panicked is used again.
    let outcome = catch_unwind(AssertUnwindSafe(trial));
    Ok(match outcome {
        Ok(Ok(held)) => Found::Whole(held),
        Ok(Err(error)) => Found::Broken(broken(error)?),
        Err(_panic) => Found::Broken("the file is damaged".to_owned()),
    })
}

/// What is wrong with a file; an error, if it is not the file's fault.
fn broken(error: LedgerError) -> Result<String, LedgerError> {
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

fn read_all(transaction: &ReadTransaction, named: u64) -> Result<Held, LedgerError> {
    let entries = history_of(transaction, None, None, CHECKED_ENTRIES)?;
    check_chain(&entries).map_err(LedgerError::Untrusted)?;
    let position = position(transaction)?;
    check_ends(&entries, position.revision)?;
    models_of(transaction)?;
    for row in transaction.open_table(ANSWERS)?.iter()? {
        row?;
    }
    let audit = transaction.open_table(AUDIT)?;
    let named_entry = audit.get(named)?;
    let named_entry = named_entry.map(|json| parse_entry(named, json.value())).transpose()?;
    Ok(Held {
        had_head: true,
        position,
        keys: keys_of(transaction)?,
        named_hash: named_entry.map(|entry| entry.hash),
    })
}

/// Whether the log begins where it has to and ends where the state is.
fn check_ends(entries: &[Entry], revision: u64) -> Result<(), LedgerError> {
    let first = entries.last().map_or(1, |entry| entry.sequence);
    let begins = entries.len() == CHECKED_ENTRIES || first == 1;
    let ends = entries.first().map_or(0, |entry| entry.revision) == revision;
    if begins && ends {
        return Ok(());
    }
    Err(LedgerError::Untrusted("a part of the audit log is missing".to_owned()))
}

fn judge(found: &Found, noted: Option<&Noted>, has_artifacts: bool) -> Verdict {
    let noted_head = noted.map(|noted| noted.head.as_ref());
    match (found, noted_head) {
        (Found::Nothing, None) if !has_artifacts => Verdict::Begin,
        (Found::Nothing, None) => {
            Verdict::Loss("there is none, although artifacts were deployed".to_owned())
        }
        (Found::Nothing, Some(Some(head))) if *head == nothing() => Verdict::Begin,
        (Found::Nothing, Some(Some(head))) => {
            Verdict::Loss(format!("there is none, although one reached {}", place(head)))
        }
        (Found::Nothing, Some(None)) => {
            Verdict::Loss("there is none, although there is a ledger.head".to_owned())
        }
        (Found::Broken(why), Some(Some(head))) => {
            Verdict::Loss(format!("it reached {}, but {why}", place(head)))
        }
        (Found::Broken(why), _) => Verdict::Loss(why.clone()),
        (Found::Whole(held), None) if !held.had_head => Verdict::TakeOver,
        (Found::Whole(held), None) => Verdict::Loss(format!(
            "it ends at {}, and ledger.head, which would say whether that is all, is missing",
            place(&held.position)
        )),
        (Found::Whole(held), Some(None)) => Verdict::Loss(format!(
            "it ends at {}, and ledger.head, which would say whether that is all, is damaged",
            place(&held.position)
        )),
        (Found::Whole(held), Some(Some(head))) => compare(held, head),
    }
}

/// A ledger may be ahead of its head by what was not acknowledged.
fn compare(held: &Held, head: &Head) -> Verdict {
    let is = &held.position;
    if head.sequence > 0 && held.named_hash.as_ref() != Some(&head.hash) || is.writes < head.writes
    {
        return Verdict::Loss(format!("it reached {}, and now ends at {}", place(head), place(is)));
    }
    let is_same = is.writes == head.writes && is.sequence == head.sequence;
    if is_same && is.content != head.content {
        return Verdict::Loss(format!("what it holds at {} is not what it held", place(is)));
    }
    Verdict::Continue
}

/// Go on with what is left: what revocations are known hold, and the log says what is missing.
fn accept_loss(
    folder: &Path,
    found: Found,
    noted: Noted,
    what: &str,
) -> Result<(Database, HeadFile), LedgerError> {
    tracing::error!(lost = what, "the loss of a part of the ledger is accepted");
    let path = folder.join(NAME);
    let (database, held) = match found {
        Found::Whole(held) => (open(&path)?, Some(held)),
        Found::Nothing => (create(folder)?, None),
        Found::Broken(_) => {
            set_aside(folder).map_err(|error| LedgerError::File(path, error))?;
            (create(folder)?, None)
        }
    };
    let mut keys = held.as_ref().map(|held| held.keys.clone()).unwrap_or_default();
    let now = Time::at(clock::now()).map_err(|error| LedgerError::Untrusted(error.to_string()))?;
    keys.retain(|key| key.revoked.is_none() && noted.revoked.contains(&key.key.sha256));
    keys.iter_mut().for_each(|key| key.revoked = Some(now));
    // Numbers of revisions that were given out are not given out again.
    let last = noted.head.as_ref().map_or(0, |head| head.revision);
    let revision = last.max(held.map_or(0, |held| held.position.revision)) + 1;
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
    append(&transaction, Entry::of_loss(author), revision)?;
    let head = super::seal(&transaction)?;
    transaction.commit()?;
    let mut all = noted.revoked;
    let held = keys_of(&database.begin_read()?)?;
    all.extend(revoked(&held).into_iter().filter(|hash| !all.contains(hash)).collect::<Vec<_>>());
    let head_error = |error| LedgerError::File(folder.join(head::NAME), error);
    Ok((database, HeadFile::create(folder, head, all).map_err(head_error)?))
}

/// Give a ledger that cannot be used another name, under which somebody may look at it.
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

/// Make a ledger under another name, so that it is there as a whole or not at all.
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

/// Every page is verified, and what is not in the pages made anew, whenever the file is opened: a file
/// that was damaged while nobody used it is to be refused before anything is written to it.
fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_check_integrity_on_open(true);
    builder
}

/// All rows of a ledger that is opened without a complaint.
#[cfg(test)]
pub(super) fn logical_content(bytes: &[u8], noted: &Noted) -> Option<Vec<String>> {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    content_of(&file, noted)
}

/// A ledger's file of which single bits can be flipped.
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

    /// What is read with this bit flipped; none, if the ledger is refused.
    pub(super) fn flipped(&self, bit: usize, noted: &Noted) -> Option<Vec<String>> {
        use std::os::unix::fs::FileExt as _;
        let (byte, at) = (self.bytes[bit / 8], (bit / 8) as u64);
        self.file.write_all_at(&[byte ^ (1 << (bit % 8))], at).unwrap();
        let content = content_of(&self.file, noted);
        self.file.write_all_at(&[byte], at).unwrap();
        content
    }
}

/// All rows that a start would serve, read in the way of the trial.
#[cfg(test)]
fn content_of(file: &File, noted: &Noted) -> Option<Vec<String>> {
    let named = noted.head.as_ref().unwrap().sequence;
    let mut rows = Vec::new();
    let found = try_open_with(file.try_clone().unwrap(), named, |transaction| {
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
    (judge(&found.ok()?, Some(noted), true) == Verdict::Continue).then_some(rows)
}

/// Bring a ledger that an earlier host wrote to what this one writes; whether there was a head file.
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
