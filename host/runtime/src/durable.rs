//! Durable file operations: every change is a write, a sync or a rename, and each of them is a failpoint,
//! at which a test can kill the process or simulate a full disk.
//!
//! With the feature `failpoints`, `GUESTHOUSE_FAILPOINT=kill:N` ends the process by SIGKILL at the
//! N-th operation since the start. `full:N` makes all operations from the N-th on fail as on a full
//! disk, except for syncs, renames and overwrites, for which a full disk has room. `once:N` makes
//! only the N-th operation fail.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;
use redb::backends::FileBackend;
use tempfile::NamedTempFile;

/// An operation on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileOperation {
    /// Bytes are appended, or the length of the file changes.
    Write,
    /// Bytes are written within the file's allocated length, which also works on a full disk.
    Overwrite,
    /// Written bytes are flushed to the disk.
    Sync,
    /// A file is renamed.
    Rename,
}

/// Called before each operation. Does nothing in a build without the feature `failpoints`.
///
/// # Errors
/// The failure that a test injects here.
#[cfg(not(feature = "failpoints"))]
pub fn failpoint(_operation: FileOperation) -> io::Result<()> {
    Ok(())
}

/// Called before each operation. Ends the process or fails if a test has requested it.
///
/// # Errors
/// The failure that a test injects here.
#[cfg(feature = "failpoints")]
pub fn failpoint(operation: FileOperation) -> io::Result<()> {
    failpoints::reached(operation)
}

/// Write a file atomically: under a temporary name, which is synced and renamed. Readers see all of
/// it or nothing.
///
/// # Errors
/// The folder cannot be written to. The file is unchanged, or still absent.
pub fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(folder)?;
    failpoint(FileOperation::Write)?;
    file.write_all(bytes)?;
    publish(file, folder, name)
}

/// Sync a temporary file and rename it.
///
/// # Errors
/// The folder cannot be written to. The temporary file is removed.
pub(crate) fn publish(file: NamedTempFile, folder: &Path, name: &str) -> io::Result<()> {
    sync(file.as_file())?;
    failpoint(FileOperation::Rename)?;
    file.persist(folder.join(name))?;
    sync_folder(folder)
}

/// Wait until what was written is on the disk.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    failpoint(FileOperation::Sync)?;
    file.sync_all()
}

/// Give a file another name in the same folder. It lasts after [`sync_folder`].
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    failpoint(FileOperation::Rename)?;
    fs::rename(from, to)
}

/// Wait until names that were given are on the disk.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    failpoint(FileOperation::Sync)?;
    File::open(folder)?.sync_all()
}

/// Append bytes to a file.
pub fn extend(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    failpoint(FileOperation::Write)?;
    file.write_all_at(bytes, at)
}

/// Replace bytes of a file, and wait until they are on the disk.
pub fn overwrite(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    failpoint(FileOperation::Overwrite)?;
    file.write_all_at(bytes, at)?;
    failpoint(FileOperation::Sync)?;
    file.sync_data()
}

/// The file of a database, with failpoints.
#[derive(Debug)]
pub struct DatabaseFile(FileBackend);

impl DatabaseFile {
    /// Open or create the file. Removes the permissions of other users.
    pub fn open(path: &Path) -> Result<Self, redb::DatabaseError> {
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
pub struct ScratchCopy {
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
    pub fn new(file: File) -> io::Result<Self> {
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

#[cfg(feature = "failpoints")]
mod failpoints {
    use std::io;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::FileOperation;

    enum Failure {
        Kill(u64),
        Full(u64),
        Once(u64),
    }

    pub(super) fn reached(operation: FileOperation) -> io::Result<()> {
        static FAILURE: LazyLock<Option<Failure>> = LazyLock::new(wanted);
        static REACHED: AtomicU64 = AtomicU64::new(0);
        let number = REACHED.fetch_add(1, Ordering::SeqCst) + 1;
        match *FAILURE {
            Some(Failure::Kill(at)) if number == at => {
                // Nothing may happen between this operation and the end.
                let _ = kill_process(getpid(), Signal::KILL);
                loop {
                    std::thread::park();
                }
            }
            Some(Failure::Full(from)) if number >= from && operation == FileOperation::Write => {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            Some(Failure::Once(at)) if number == at => Err(io::Error::other("told to fail")),
            _ => Ok(()),
        }
    }

    fn wanted() -> Option<Failure> {
        let text = std::env::var("GUESTHOUSE_FAILPOINT").ok()?;
        let (what, number) = text.split_once(':')?;
        let number = number.parse().ok()?;
        match what {
            "kill" => Some(Failure::Kill(number)),
            "full" => Some(Failure::Full(number)),
            "once" => Some(Failure::Once(number)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_atomically() {
        let folder = tempfile::tempdir().unwrap();
        write_file(folder.path(), "name", b"one").unwrap();
        write_file(folder.path(), "name", b"two").unwrap();
        assert_eq!(fs::read(folder.path().join("name")).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_file(&folder.path().join("absent"), "name", b"").is_err());
    }

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
