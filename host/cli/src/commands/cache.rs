//! The folder with compiled code that runs of `guesthouse pack --onnx` share.
//!
//! Compiling the guest takes half a minute, and its code is the same for every model. Without a place
//! to keep it, a command only takes longer.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

/// The variable with the folder. Otherwise, it is in the user's folder of caches.
const VARIABLE: &str = "GUESTHOUSE_CACHE";

/// The folder, for one command at a time.
pub(super) struct CodeCache {
    folder: PathBuf,
    /// Held while the folder is used: whoever comes second waits, and then finds the code.
    _lock: Option<File>,
    _temporary: Option<TempDir>,
}

impl CodeCache {
    /// Open the folder, or a temporary one if there is none or it cannot be used.
    pub(super) fn open() -> anyhow::Result<Self> {
        if let Some(folder) = folder() {
            match lock(&folder) {
                Ok(lock) => return Ok(Self { folder, _lock: Some(lock), _temporary: None }),
                Err(error) => {
                    let folder = folder.display();
                    tracing::warn!(%folder, %error, "cannot keep compiled code, it is compiled again");
                }
            }
        }
        let temporary = tempfile::tempdir().context("cannot create a temporary folder")?;
        let folder = temporary.path().join("state");
        Ok(Self { folder, _lock: None, _temporary: Some(temporary) })
    }

    /// A folder for the state of a runtime.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

fn folder() -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    if let Some(folder) = absolute(VARIABLE) {
        return Some(folder);
    }
    let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(caches.join("guesthouse"))
}

/// Wait until nobody else uses the folder.
fn lock(folder: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let file = File::options().append(true).create(true).open(folder.join("command.lock"))?;
    file.lock()?;
    Ok(file)
}
