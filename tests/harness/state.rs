//! State folders that a server refuses, and cleaning a state folder for reuse.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::{Server, Setup};

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
