//! Where the ledger's database is kept: its file, with failpoints, and a copy in memory for trials.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guesthouse_runtime::durable::{FileOperation, failpoint};
use redb::StorageBackend;
use redb::backends::FileBackend;

/// The file of a database, with failpoints.
#[derive(Debug)]
pub(super) struct DatabaseFile(FileBackend);

impl DatabaseFile {
    /// Open or create the file. Removes the permissions of other users.
    pub(super) fn open(path: &Path) -> Result<Self, redb::DatabaseError> {
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(path)?;
            let mode = file.metadata()?.permissions().mode() & 0o7777;
            if mode & 0o077 != 0 {
                tracing::warn!(path = %path.display(), mode = format_args!("{mode:04o}"), "others had access to a file: it is now for its owner alone");
                file.set_permissions(fs::Permissions::from_mode(0o600))?;
            }
            Ok::<_, io::Error>(file)
        };
        Ok(Self(FileBackend::new(open().map_err(redb::StorageError::from)?)?))
    }
}

impl StorageBackend for DatabaseFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        failpoint(FileOperation::Write)?;
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        failpoint(FileOperation::Sync)?;
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        failpoint(FileOperation::Write)?;
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

/// The size of the pieces of a [`ScratchCopy`].
const PIECE: usize = 4096;

/// A copy-on-write view of a database file, for trial writes: the file is only read, and changes
/// stay in memory.
#[derive(Debug)]
pub(super) struct ScratchCopy {
    file: File,
    changes: Mutex<Overlay>,
}

/// The difference between a copy and its file.
#[derive(Debug)]
struct Overlay {
    length: u64,
    /// How much of the file is visible: the copy may have been truncated and extended again.
    kept: u64,
    /// The changed pieces by index.
    pieces: BTreeMap<u64, Box<[u8; PIECE]>>,
}

impl ScratchCopy {
    /// A copy of the file that exists in memory only.
    ///
    /// # Errors
    /// The length of the file cannot be read.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let changes = Overlay { length, kept: length, pieces: BTreeMap::new() };
        Ok(Self { file, changes: Mutex::new(changes) })
    }

    fn changes(&self) -> MutexGuard<'_, Overlay> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Overlay {
    /// Call `visit` for each piece that a range overlaps, with its index, the offset within it, and
    /// the length.
    fn visit(
        &self,
        offset: u64,
        length: usize,
        mut visit: impl FnMut(u64, usize, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.length);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut at = offset;
        while at < end {
            let start = usize::try_from(at % PIECE as u64).expect("a piece is small");
            let here = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE - start);
            visit(at / PIECE as u64, start, here)?;
            at += here as u64;
        }
        Ok(())
    }

    /// The current content of a piece.
    fn piece(&self, file: &File, number: u64) -> io::Result<Box<[u8; PIECE]>> {
        if let Some(piece) = self.pieces.get(&number) {
            return Ok(piece.clone());
        }
        let mut piece = Box::new([0; PIECE]);
        let start = number * PIECE as u64;
        let there = self.kept.saturating_sub(start).min(PIECE as u64);
        let there = usize::try_from(there).expect("a piece is small");
        file.read_exact_at(&mut piece[..there], start)?;
        Ok(piece)
    }
}

impl StorageBackend for ScratchCopy {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changes().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (changes, mut done) = (self.changes(), 0);
        changes.visit(offset, out.len(), |number, start, length| {
            let piece = changes.piece(&self.file, number)?;
            out[done..done + length].copy_from_slice(&piece[start..start + length]);
            done += length;
            Ok(())
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut changes = self.changes();
        changes.kept = changes.kept.min(length);
        changes.pieces.retain(|number, _| number * (PIECE as u64) < length);
        if let Some(piece) = changes.pieces.get_mut(&(length / PIECE as u64)) {
            let rest = usize::try_from(length % PIECE as u64).expect("a piece is small");
            piece[rest..].fill(0);
        }
        changes.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changes = self.changes();
        let mut touched = Vec::new();
        let mut done = 0;
        changes.visit(offset, data.len(), |number, start, length| {
            let mut piece = changes.piece(&self.file, number)?;
            piece[start..start + length].copy_from_slice(&data[done..done + length]);
            done += length;
            touched.push((number, piece));
            Ok(())
        })?;
        changes.pieces.extend(touched);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn writes_to_a_scratch_copy_do_not_change_its_file() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..10_000_u32).map(|at| (at % 251).to_le_bytes()[0]).collect();
        file.write_all(&bytes).unwrap();
        let copy = ScratchCopy::new(file.try_clone().unwrap()).unwrap();
        let mut expected = bytes.clone();
        let read = |copy: &ScratchCopy, length: usize| {
            let mut out = vec![0; length];
            copy.read(0, &mut out).map(|()| out)
        };
        assert_eq!(read(&copy, 10_000).unwrap(), expected);
        copy.write(4000, &[7; 5000]).unwrap();
        expected[4000..9000].fill(7);
        assert_eq!(read(&copy, 10_000).unwrap(), expected);
        // Truncated content does not reappear.
        copy.set_len(5000).unwrap();
        assert!(read(&copy, 5001).is_err() && copy.write(4999, b"ab").is_err());
        copy.set_len(12_000).unwrap();
        expected.truncate(5000);
        expected.resize(12_000, 0);
        assert_eq!(read(&copy, 12_000).unwrap(), expected);
        let mut held = vec![0; 10_000];
        file.read_exact_at(&mut held, 0).unwrap();
        assert_eq!(held, bytes);
    }

    #[test]
    fn a_database_file_is_accessible_to_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("database");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        drop(DatabaseFile::open(&path).unwrap());
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        drop(DatabaseFile::open(&path).unwrap());
        assert_eq!(mode(), 0o600);
    }
}
