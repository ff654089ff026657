//! What can go wrong in a call of a guest, by whose fault it is.

use std::fmt;

use wasmtime::{Trap, WasmBacktrace};

use super::stop::StopReason;

/// One row that the guest will not predict for, through the caller's fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Index in the batch.
    pub row: usize,
    /// The input that is at fault.
    pub input: String,
    /// Why, for the caller to read.
    pub reason: String,
}

/// Why a call gave no outputs. Every fault but those that [`Fault::spares_instance`] names leaves an
/// instance that must not be used again.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The caller's fault: some rows are unacceptable.
    #[error("the guest rejected {} rows", .0.len())]
    Rejected(Vec<Rejection>),
    /// The caller's fault: rows with inputs that are not finite have outputs that are not either.
    #[error("{} rows are not finite, and neither are their outputs", .0.len())]
    NonFiniteInput(Vec<Rejection>),
    /// The guest said that it failed.
    #[error("the guest failed: {0}")]
    Failed(String),
    /// The guest broke down. The text holds its backtrace: for the log, not for a caller.
    #[error("the guest trapped ({kind}): {backtrace}")]
    Trap {
        /// How.
        kind: TrapKind,
        /// Where.
        backtrace: String,
    },
    /// The guest was still running at the deadline and was interrupted.
    #[error("the deadline passed while the guest was running")]
    Deadline,
    /// Nobody waited for the answer any more, so the guest was interrupted.
    #[error("the caller has gone while the guest was running")]
    Cancelled,
    /// The guest wanted more memory than it may have.
    #[error("the guest ran out of memory")]
    OutOfMemory,
    /// What the guest returned is not what its signature promises.
    #[error("the guest returned bad output: {0}")]
    BadOutput(String),
    /// The host could not make an instance or a call: not the guest's fault.
    #[error("the host could not run the guest: {0}")]
    Host(String),
}

impl Fault {
    /// A word for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Rejected(_) => "rejected",
            Self::NonFiniteInput(_) => "non_finite_input",
            Self::Failed(_) => "failed",
            Self::Trap { .. } => "trap",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::OutOfMemory => "out_of_memory",
            Self::BadOutput(_) => "bad_output",
            Self::Host(_) => "host",
        }
    }

    /// A word for how the guest broke down, where it did.
    pub fn trap(&self) -> Option<&'static str> {
        match self {
            Self::Trap { kind, .. } => Some(kind.as_str()),
            _ => None,
        }
    }

    /// Whether the instance is still good.
    pub fn spares_instance(&self) -> bool {
        matches!(self, Self::Rejected(_) | Self::NonFiniteInput(_) | Self::Failed(_))
    }

    /// Whether it is the fault of whoever sent the inputs, and no news for an operator.
    pub fn is_callers(&self) -> bool {
        matches!(self, Self::Rejected(_) | Self::NonFiniteInput(_))
    }

    /// Whether the same inputs can be expected to end in the same way.
    pub fn is_repeatable(&self) -> bool {
        self.condemns_version() && !matches!(self, Self::Host(_))
    }

    /// Whether the version did not do for the caller what it should, which may be the version's fault.
    pub fn condemns_version(&self) -> bool {
        match self {
            Self::Failed(_)
            | Self::Trap { .. }
            | Self::OutOfMemory
            | Self::BadOutput(_)
            | Self::Host(_) => true,
            // The caller's fault, or of a machine that is too busy.
            Self::Rejected(_) | Self::NonFiniteInput(_) | Self::Deadline | Self::Cancelled => false,
        }
    }

    /// The class of what wasmtime says of a failed instantiation: a `start` function may have done
    /// what any call can do, and the host may have had no room.
    pub(crate) fn of_instantiation(
        error: &wasmtime::Error,
        memory_was_denied: bool,
        stopped: Option<StopReason>,
    ) -> Self {
        // Errors of functions of the host have a backtrace if a guest called them.
        let was_running = error.is::<Trap>() || error.is::<WasmBacktrace>();
        if was_running || memory_was_denied {
            Self::of_call(error, memory_was_denied, stopped)
        } else {
            Self::Host(format!("{error:#}"))
        }
    }

    /// The class of what wasmtime says of a failed call.
    pub(crate) fn of_call(
        error: &wasmtime::Error,
        memory_was_denied: bool,
        stopped: Option<StopReason>,
    ) -> Self {
        let kind = match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) if stopped == Some(StopReason::Cancelled) => {
                return Self::Cancelled;
            }
            Some(Trap::Interrupt) => return Self::Deadline,
            _ if memory_was_denied => return Self::OutOfMemory,
            Some(Trap::StackOverflow) => TrapKind::StackOverflow,
            Some(Trap::UnreachableCodeReached) => TrapKind::Unreachable,
            Some(Trap::MemoryOutOfBounds | Trap::TableOutOfBounds) => TrapKind::OutOfBounds,
            Some(_) => TrapKind::Other,
            None => TrapKind::HostCall,
        };
        Self::Trap { kind, backtrace: format!("{error:?}") }
    }
}

/// How a guest broke down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrapKind {
    /// The call stack is exhausted.
    StackOverflow,
    /// A panic, an abort or an assertion.
    Unreachable,
    /// An access outside of memory or of a table.
    OutOfBounds,
    /// Any other trap of WebAssembly.
    Other,
    /// A call of the host was refused: a denied import, too much data at once.
    HostCall,
}

impl TrapKind {
    /// A word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StackOverflow => "stack_overflow",
            Self::Unreachable => "unreachable",
            Self::OutOfBounds => "out_of_bounds",
            Self::Other => "other",
            Self::HostCall => "host_call",
        }
    }
}

impl fmt::Display for TrapKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
