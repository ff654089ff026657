//! The head file: the position of the ledger, and the revoked keys, in a second file.
//!
//! One damaged bit can make a database fall back to the state before its last transaction, and a database
//! that is restored from an old copy or deleted is consistent in itself. Each change of the ledger appends a
//! record to this file after its commit and before it is acknowledged, so that the next start detects such a
//! loss. The file is beside the ledger and called `ledger.head`.
//!
//! A record is a line: a checksum, a space and JSON. A line that fails its checksum is skipped. At the
//! end of the file, it is a record whose writing was interrupted, so its change was not acknowledged: the
//! ledger may be ahead of this file, but never behind it. Space for records is allocated with zeros before
//! the ledger commits, so that a full disk refuses a change before it is made.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::keys::KeyHash;
use guesthouse_runtime::durable;

/// The name of the file in the state folder.
pub(super) const NAME: &str = "ledger.head";

/// How many revoked keys are remembered here: ten times as many as in the ledger, for a ledger that is
/// restored from an old copy. They take 1.1 MB. Those that were revoked first are forgotten first.
const MAX_REVOKED: usize = 10_000;

/// After this many bytes of records, about 200 changes, the file is rewritten with its last record only.
const REWRITE_AFTER_BYTES: u64 = 64 << 10;

/// The space that is allocated at a time: about fifteen records.
const ALLOCATION_BYTES: usize = 4096;

/// The longest record: two hashes, three numbers and their names.
const MAX_RECORD_BYTES: u64 = 512;

/// Hexadecimal digits of a line's checksum: 128 bits.
const CHECKSUM_DIGITS: usize = 32;

/// A position of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The number of transactions since the head file exists.
    pub(super) writes: u64,
    /// The number of the last entry in the audit log; 0 if there is none.
    pub(super) sequence: u64,
    /// The last revision.
    pub(super) revision: u64,
    /// The hash of the last entry.
    pub(super) hash: String,
    /// A digest of all states and keys.
    pub(super) content: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Record {
    Head(Head),
    Revoked(KeyHash),
}

/// The contents of a head file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Noted {
    /// None if no such record can be read.
    pub(super) head: Option<Head>,
    /// The hashes of revoked keys, in the order of their revocation.
    pub(super) revoked: Vec<KeyHash>,
    /// Whether the file has anything but whole records.
    pub(super) is_damaged: bool,
    /// The offset of the next record.
    end: u64,
}

impl Noted {
    /// Read the head file of a state folder; none if there is none.
    pub(super) fn read(folder: &Path) -> io::Result<Option<Self>> {
        match fs::read(folder.join(NAME)) {
            Ok(bytes) => Ok(Some(Self::parse(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut noted = Self::default();
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            let is_allocated = lines.peek().is_none() && line.iter().all(|byte| *byte == 0);
            if is_allocated {
                break;
            }
            noted.end += line.len() as u64;
            match parse_line(line) {
                Some(Record::Head(head)) => noted.head = Some(head),
                Some(Record::Revoked(hash)) => noted.revoked.push(hash),
                None => noted.is_damaged = true,
            }
        }
        noted
    }
}

fn parse_line(line: &[u8]) -> Option<Record> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (given, json) = line.split_at_checked(CHECKSUM_DIGITS)?;
    let json = json.strip_prefix(' ')?;
    if given != checksum(json) {
        return None;
    }
    serde_json::from_str(json).ok()
}

fn line(record: &Record) -> String {
    let json = serde_json::to_string(record).expect("a record is JSON");
    format!("{} {json}\n", checksum(&json))
}

fn checksum(json: &str) -> String {
    let mut hex = blake3::hash(json.as_bytes()).to_hex().to_string();
    hex.truncate(CHECKSUM_DIGITS);
    hex
}

/// The head file of an open ledger.
#[derive(Debug)]
pub(super) struct HeadFile {
    folder: PathBuf,
    head: Head,
    revoked: Vec<KeyHash>,
    /// None if the file must be rewritten, because its contents are uncertain.
    tail: Option<Tail>,
}

/// The end of the file, where records are appended.
#[derive(Debug)]
struct Tail {
    file: File,
    end: u64,
    /// The allocated length.
    allocated: u64,
    /// The length at which the file is rewritten.
    limit: u64,
}

impl HeadFile {
    /// Open a head file that agrees with the ledger.
    pub(super) fn open(folder: &Path, noted: Noted, head: Head) -> io::Result<Self> {
        let Noted { revoked, is_damaged, end, .. } = noted;
        let mut this = Self { folder: folder.to_owned(), head, revoked, tail: None };
        if !is_damaged {
            this.tail = Some(this.open_tail(end)?);
        }
        Ok(this)
    }

    /// Write a new head file.
    pub(super) fn create(folder: &Path, head: Head, revoked: Vec<KeyHash>) -> io::Result<Self> {
        let mut this = Self { folder: folder.to_owned(), head, revoked, tail: None };
        this.rewrite()?;
        Ok(this)
    }

    /// The last position that is noted, or must be noted when the disk permits.
    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// The hashes of keys that were revoked.
    pub(super) fn revoked(&self) -> HashSet<KeyHash> {
        self.revoked.iter().copied().collect()
    }

    /// Allocate space for the record of the next change.
    pub(super) fn reserve(&mut self) -> io::Result<()> {
        if self.tail.as_ref().is_none_or(|tail| tail.end > tail.limit) {
            self.rewrite()?;
        }
        let Some(tail) = &mut self.tail else { return Ok(()) };
        // Space for one record of a revoked key and one of the head.
        if tail.end + 2 * MAX_RECORD_BYTES > tail.allocated {
            let extended = durable::extend(&tail.file, &[0; ALLOCATION_BYTES], tail.allocated);
            if extended.is_err() {
                self.tail = None;
                return extended;
            }
            tail.allocated += ALLOCATION_BYTES as u64;
        }
        Ok(())
    }

    /// Append a position, and a key that its change revoked. The space must be allocated.
    pub(super) fn append(&mut self, head: Head, revoked: Option<KeyHash>) -> io::Result<()> {
        let mut lines = String::new();
        if let Some(hash) = revoked.filter(|hash| !self.revoked.contains(hash)) {
            self.revoked.push(hash);
            lines.push_str(&line(&Record::Revoked(hash)));
        }
        self.head = head.clone();
        lines.push_str(&line(&Record::Head(head)));
        // Taken out, so that the file is rewritten after an error.
        let Some(mut tail) = self.tail.take() else { return self.rewrite() };
        durable::overwrite(&tail.file, lines.as_bytes(), tail.end)?;
        tail.end += lines.len() as u64;
        self.tail = Some(tail);
        Ok(())
    }

    /// Make the file agree with the ledger, if it does not.
    pub(super) fn reconcile(&mut self, head: Head, revoked: Vec<KeyHash>) -> io::Result<()> {
        let held = self.revoked();
        let new: Vec<_> = revoked.into_iter().filter(|hash| !held.contains(hash)).collect();
        if self.tail.is_some() && self.head == head && new.is_empty() {
            return Ok(());
        }
        self.head = head;
        self.revoked.extend(new);
        self.rewrite()
    }

    fn rewrite(&mut self) -> io::Result<()> {
        self.tail = None;
        let too_many = self.revoked.len().saturating_sub(MAX_REVOKED);
        self.revoked.drain(..too_many);
        let revoked = self.revoked.iter().map(|hash| Record::Revoked(*hash));
        let records = revoked.chain([Record::Head(self.head.clone())]);
        let text: String = records.map(|record| line(&record)).collect();
        durable::write_file(&self.folder, NAME, text.as_bytes())?;
        self.tail = Some(self.open_tail(text.len() as u64)?);
        Ok(())
    }

    fn open_tail(&self, end: u64) -> io::Result<Tail> {
        let file = File::options().write(true).open(self.folder.join(NAME))?;
        let allocated = file.metadata()?.len();
        let base = self.revoked.len() as u64 * MAX_RECORD_BYTES / 4;
        Ok(Tail { file, end, allocated, limit: base + REWRITE_AFTER_BYTES })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(sequence: u64) -> Head {
        let hash = "0".repeat(64);
        Head { writes: sequence, sequence, revision: sequence, content: hash.clone(), hash }
    }

    fn hash(number: usize) -> KeyHash {
        KeyHash::from_key(&number.to_le_bytes())
    }

    fn read(folder: &Path) -> Noted {
        Noted::read(folder).unwrap().unwrap()
    }

    #[test]
    fn appended_records_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Noted::read(folder.path()).unwrap(), None);
        let mut file = HeadFile::create(folder.path(), head(0), Vec::new()).unwrap();
        // Over the end of the room, and over the length at which the file is written anew.
        for sequence in 1..1000_u32 {
            file.reserve().unwrap();
            let revoked = (sequence % 3 == 0).then(|| hash(sequence as usize));
            file.append(head(sequence.into()), revoked).unwrap();
            if sequence % 100 == 0 {
                let noted = read(folder.path());
                assert!(!noted.is_damaged);
                file = HeadFile::open(folder.path(), noted, head(sequence.into())).unwrap();
            }
        }
        let noted = read(folder.path());
        assert_eq!((noted.head, noted.is_damaged), (Some(head(999)), false));
        assert_eq!(noted.revoked, (1..=333).map(|third| hash(third * 3)).collect::<Vec<_>>());
        let length = fs::metadata(folder.path().join(NAME)).unwrap().len();
        assert!(length < 2 * REWRITE_AFTER_BYTES + 333 * 128, "{length}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_incomplete_record_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let mut file = HeadFile::create(folder.path(), head(1), vec![hash(1)]).unwrap();
        let start = fs::metadata(&path).unwrap().len();
        file.reserve().unwrap();
        file.append(head(2), Some(hash(2))).unwrap();
        let whole = fs::read(&path).unwrap();
        let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for cut in usize::try_from(start).unwrap()..end {
            let mut torn = whole.clone();
            torn[cut..].fill(0);
            for bytes in [&torn[..], &torn[..cut]] {
                let noted = Noted::parse(bytes);
                assert_eq!(noted.head, Some(head(1)), "{cut}");
                assert_eq!(noted.revoked[0], hash(1));
            }
        }
        // What follows is not mixed up with it.
        fs::write(&path, &whole[..end - 20]).unwrap();
        let noted = read(folder.path());
        assert!(noted.is_damaged);
        let mut file = HeadFile::open(folder.path(), noted, head(2)).unwrap();
        file.reserve().unwrap();
        file.append(head(3), None).unwrap();
        let noted = read(folder.path());
        assert_eq!((noted.head, noted.is_damaged), (Some(head(3)), false));
    }

    #[test]
    fn a_flipped_bit_never_yields_another_record() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = HeadFile::create(folder.path(), head(1), vec![hash(1)]).unwrap();
        file.reserve().unwrap();
        file.append(head(2), Some(hash(2))).unwrap();
        let mut bytes = fs::read(folder.path().join(NAME)).unwrap();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let noted = Noted::parse(&bytes);
            assert!(noted.is_damaged, "bit {bit}");
            assert!([Some(head(2)), Some(head(1))].contains(&noted.head), "bit {bit}");
            assert!(noted.revoked.iter().all(|held| [hash(1), hash(2)].contains(held)));
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn the_number_of_revoked_keys_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let hashes: Vec<_> = (0..MAX_REVOKED + 5).map(hash).collect();
        HeadFile::create(folder.path(), head(1), hashes.clone()).unwrap();
        assert_eq!(read(folder.path()).revoked, hashes[5..]);
    }
}
