//! The exit codes of the process after an error.
//!
//! | exit code | meaning |
//! |---|---|
//! | 1 | a failure: no server, no key, no file, an error of the server |
//! | 2 | the command line is invalid (as in clap) |
//! | 3 | the artifact, the row or the request is rejected, and a retry would be rejected too |
//! | 4 | a conflict: look at the current state, then decide again (only operators' commands) |
//! | 5 | the server was too busy or not ready until the deadline: try again later |

use std::process::ExitCode;

use super::operate;

/// An error with an exit code other than 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line is not valid, in a way that the parser cannot see.
    #[error("{0}")]
    Usage(String),
    /// A retry does not help.
    #[error("{0}")]
    Rejected(String),
    /// A retry may help.
    #[error("{0}")]
    Busy(String),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Rejected(_) => 3,
            Self::Busy(_) => 5,
        }
    }
}

/// The exit code of the process after an error of any command.
pub(crate) fn of(error: &anyhow::Error) -> ExitCode {
    error
        .downcast_ref::<Failure>()
        .map_or_else(|| operate::exit_code(error), |failure| ExitCode::from(failure.exit_code()))
}
