//! Why a server cannot start, or has not stopped in time.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use guesthouse_control::control::ControlError;
use guesthouse_control::ledger::LedgerError;
use guesthouse_runtime::guest::EngineError;
use guesthouse_runtime::store::StoreError;

use crate::config::ListenAddress;
use crate::edge::TlsError;

/// Why a server cannot start, or has not stopped in time.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is in use or not one of this machine, or the name is unknown.
    #[error("listen on {0}")]
    Listen(ListenAddress, #[source] io::Error),
    /// The operating system refuses threads, signals or timers.
    #[error("start")]
    Start(#[source] io::Error),
    /// The repository folder cannot be read.
    #[error("read the repository folder {0:?}")]
    Repository(PathBuf, #[source] io::Error),
    /// The engine cannot be set up.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// The state folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The splits or keys of the configuration cannot be applied.
    #[error(transparent)]
    Configure(#[from] ControlError),
    /// The certificate cannot be used.
    #[error("set up TLS")]
    Tls(#[from] TlsError),
    /// Requests were still running when the drain time was over.
    #[error("drain within {} s: requests were cut off", .0.as_secs())]
    Drain(Duration),
}
