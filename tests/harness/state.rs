//! State folders that a server is not to start with, or that it begins anew.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::{Server, Setup};

impl Server {
    /// What a server says that does not start.
    ///
    /// # Panics
    /// It starts.
    pub fn refusal(setup: &Setup) -> String {
        match Self::launch(setup, |_repository| {}) {
            Ok(_) => panic!("the server has started"),
            Err(why) => why,
        }
    }
}

/// Remove what is deployed from a state folder, and leave what is compiled: it is found by its
/// bytes, and what was deployed may have been packed anew since.
pub(crate) fn forget_deployed(state: &Path) -> std::io::Result<()> {
    let ignore_absent = |outcome: std::io::Result<()>| match outcome {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    ignore_absent(fs::remove_file(state.join("ledger.redb")))?;
    ignore_absent(fs::remove_file(state.join("ledger.head")))?;
    ignore_absent(fs::remove_dir_all(state.join("artifacts")))
}
