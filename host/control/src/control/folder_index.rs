//! What is known of the files in the repository folder: which of them hold which versions, and whether
//! they have changed.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use guesthouse_model::VersionId;

/// The files that were read, for those who deploy a model by its name.
#[derive(Default)]
pub(super) struct FolderIndex {
    /// The folder; set when it is watched.
    pub(super) path: OnceLock<PathBuf>,
    /// Files that were read, and the version in each; no more than there are files.
    files: Mutex<Files>,
}

type Files = BTreeMap<PathBuf, (FileStamp, Option<VersionId>)>;

/// Metadata by which a changed file is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileStamp {
    pub(super) inode: (u64, u64),
    pub(super) length: u64,
    pub(super) modified: (i64, i64),
    /// Permissions change without the content.
    pub(super) changed: (i64, i64),
}

impl FolderIndex {
    pub(super) fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files that are called `*.wasm` directly in the folder, without hidden ones. Whether they can be
/// read turns out later.
pub(super) fn list(folder: &Path) -> io::Result<BTreeMap<PathBuf, FileStamp>> {
    let mut stamps = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|extension| extension == "wasm") && !hidden {
            // It may have been removed since the folder was listed.
            let Some(stamp) = stamp(&path) else { continue };
            stamps.insert(path, stamp);
        }
    }
    Ok(stamps)
}

/// The stamp of a file, or of the target of a link; of a dangling link, its own.
pub(super) fn stamp(path: &Path) -> Option<FileStamp> {
    let metadata = std::fs::metadata(path).or_else(|_| std::fs::symlink_metadata(path)).ok()?;
    Some(FileStamp {
        inode: (metadata.dev(), metadata.ino()),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}
