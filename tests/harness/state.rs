//! State folders: those that a server refuses, cleaning one for reuse, and making one with compiled code.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Server, Setup, environment};

impl Server {
    /// The log of a server that exits during startup.
    ///
    /// # Panics
    /// The server starts.
    pub fn startup_failure(setup: &Setup) -> String {
        match Self::launch(setup, |_repository| {}) {
            Ok(_) => panic!("the server has started"),
            Err(error) => error,
        }
    }
}

/// Removes all deployments from a state folder and keeps the compiled code. The code is found by
/// the artifact's digest, but a version that was packed again has another digest and would conflict
/// with the deployed one.
pub(crate) fn forget_deployed(state: &Path) -> std::io::Result<()> {
    let ignore_absent = |outcome: std::io::Result<()>| match outcome {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    ignore_absent(fs::remove_file(state.join("ledger.redb")))?;
    ignore_absent(fs::remove_file(state.join("ledger.head")))?;
    ignore_absent(fs::remove_dir_all(state.join("artifacts")))
}

/// A new state folder in `folder` with the modules that `guesthouse pack --onnx` has compiled, so that
/// the server does not compile them again.
///
/// # Panics
/// Nothing has been packed yet, or the folder is not writable.
pub fn state_with_packed_modules(folder: &Path) -> PathBuf {
    let (cache, state) = (environment::cache(), folder.join("state"));
    fs::create_dir_all(state.join("compiled")).expect("the folder is writable");
    fs::copy(cache.join("key"), state.join("key")).expect("the key can be copied");
    for entry in fs::read_dir(cache.join("compiled")).expect("the cache is readable") {
        let entry = entry.expect("the cache is readable");
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("module-") {
            let link = state.join("compiled").join(name);
            fs::hard_link(entry.path(), link).expect("files can be linked");
        }
    }
    state
}
