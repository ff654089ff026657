//! Changes of files that survive a crash: each is a write, a sync or a rename, and each of these is a
//! place at which a test can end the process or fill the disk.
//!
//! With the feature `failpoints`, `GUESTHOUSE_FAILPOINT=kill:N` ends the process by SIGKILL at the
//! N-th of them since the start, and `full:N` lets every one from the N-th on fail as on a full disk,
//! except for syncs and renames, which a full disk still does; `once:N` lets the N-th fail and no other.
//! Without it, nothing is counted.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use redb::StorageBackend;
use redb::backends::FileBackend;
use tempfile::NamedTempFile;

/// What is about to be done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Bytes are written, or the file gets another length.
    Write,
    /// What was written reaches the disk.
    Sync,
    /// A file gets its name.
    Rename,
}

/// The place before a step; what a test makes of it.
#[cfg(not(feature = "failpoints"))]
#[expect(clippy::unnecessary_wraps, reason = "with the feature, it can fail")]
pub(crate) fn before(_step: Step) -> io::Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
pub(crate) fn before(step: Step) -> io::Result<()> {
    failpoints::reached(step)
}

/// Write a file under a temporary name, sync it, and give it its name for good. Whoever looks sees all
/// of it or nothing.
///
/// # Errors
/// The folder cannot be written to; then there is no such file, or the one that was there before.
pub(crate) fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(folder)?;
    before(Step::Write)?;
    file.write_all(bytes)?;
    publish(file, folder, name)
}

/// Give a file that is written its name for good.
///
/// # Errors
/// The folder cannot be written to; the file is gone.
pub(crate) fn publish(file: NamedTempFile, folder: &Path, name: &str) -> io::Result<()> {
    sync(file.as_file())?;
    before(Step::Rename)?;
    file.persist(folder.join(name))?;
    sync_folder(folder)
}

/// Wait until what was written is on the disk.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    before(Step::Sync)?;
    file.sync_all()
}

/// Give a file another name in the same folder. It lasts after [`sync_folder`].
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    before(Step::Rename)?;
    fs::rename(from, to)
}

/// Wait until names that were given are on the disk.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    before(Step::Sync)?;
    File::open(folder)?.sync_all()
}

/// The file of a database.
#[derive(Debug)]
pub(crate) struct DatabaseFile(FileBackend);

impl DatabaseFile {
    /// Open the file, or make it.
    pub(crate) fn open(path: &Path) -> Result<Self, redb::DatabaseError> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        Ok(Self(FileBackend::new(file.map_err(redb::StorageError::from)?)?))
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
        before(Step::Write)?;
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        before(Step::Sync)?;
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        before(Step::Write)?;
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

#[cfg(feature = "failpoints")]
mod failpoints {
    use std::io;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::Step;

    enum Failure {
        Kill(u64),
        Full(u64),
        Once(u64),
    }

    pub(super) fn reached(step: Step) -> io::Result<()> {
        static FAILURE: LazyLock<Option<Failure>> = LazyLock::new(wanted);
        static REACHED: AtomicU64 = AtomicU64::new(0);
        let number = REACHED.fetch_add(1, Ordering::SeqCst) + 1;
        match *FAILURE {
            Some(Failure::Kill(at)) if number == at => {
                // Nothing may happen between this step and the end.
                let _ = kill_process(getpid(), Signal::KILL);
                loop {
                    std::thread::park();
                }
            }
            Some(Failure::Full(from)) if number >= from && step == Step::Write => {
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
    fn a_file_is_there_as_a_whole_under_its_name() {
        let folder = tempfile::tempdir().unwrap();
        write_file(folder.path(), "name", b"one").unwrap();
        write_file(folder.path(), "name", b"two").unwrap();
        assert_eq!(fs::read(folder.path().join("name")).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_file(&folder.path().join("absent"), "name", b"").is_err());
    }
}
