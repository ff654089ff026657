//! Why the ledger cannot be used.

use std::io;
use std::path::PathBuf;

use super::format::FORMAT;

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database reports an error.
    #[error("use the ledger")]
    Store(#[source] Box<redb::Error>),
    /// It was altered, or is damaged.
    #[error("trust the ledger: {0}")]
    Untrusted(String),
    /// It has the format of a later release, or none that is known.
    #[error("understand the ledger: its format is {0}, not {FORMAT}")]
    Format(u64),
    /// It lacks changes that were acknowledged.
    #[error(
        "trust the ledger: {0}. Put a newer copy of the state folder in place, or start once with \
         --accept-ledger-loss to go on with what is left: the audit log will say so, and keys whose \
         revocation is known stay revoked"
    )]
    Lost(String),
    /// One of its files cannot be read or written.
    #[error("use {0:?}")]
    File(PathBuf, #[source] io::Error),
}

impl LedgerError {
    /// Whether the disk or the user's quota is full.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let error = match self {
            Self::Store(error) => match &**error {
                redb::Error::Io(error) => error,
                _ => return false,
            },
            Self::File(_, error) => error,
            Self::Untrusted(_) | Self::Format(_) | Self::Lost(_) => return false,
        };
        matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    }
}

impl<E: Into<redb::Error>> From<E> for LedgerError {
    fn from(error: E) -> Self {
        Self::Store(Box::new(error.into()))
    }
}
