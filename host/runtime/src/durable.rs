//! Durable file operations: every change is a write, a sync or a rename, and each of them is a failpoint,
//! at which a test can kill the process or simulate a full disk.
//!
//! With the feature `failpoints`, `GUESTHOUSE_FAILPOINT=kill:N` ends the process by SIGKILL at the
//! N-th operation since the start. `full:N` makes all operations from the N-th on fail as on a full
//! disk, except for syncs, renames and overwrites, for which a full disk has room. `once:N` makes
//! only the N-th operation fail.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

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
}
