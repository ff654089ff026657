//! The faults of a guest call, and who is responsible for them.

use std::fmt;

use wasmtime::{Trap, WasmBacktrace};

use super::arithmetic::ResultTooLarge;
use super::stop::StopReason;

/// A row that the guest rejected, because the caller's input is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The index of the row in the batch.
    pub row: usize,
    /// The input that is not acceptable.
    pub input: String,
    /// The reason, shown to the caller.
    pub reason: String,
}

/// Why a call returned no outputs. The instance must be dropped after every fault except those for
/// which [`Fault::leaves_instance_usable`] is true.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The guest rejected some rows: the caller's fault.
    #[error("the guest rejected {} rows", .0.len())]
    Rejected(Vec<Rejection>),
    /// Some rows have inputs that are not finite, and neither are their outputs: the caller's
    /// fault.
    #[error("{} rows are not finite, and neither are their outputs", .0.len())]
    NonFiniteInput(Vec<Rejection>),
    /// The guest reported a failure.
    #[error("the guest failed: {0}")]
    Failed(String),
    /// The guest trapped. The display text contains the backtrace: it is for the log, not for
    /// callers.
    #[error("the guest trapped ({kind}): {backtrace}")]
    Trap {
        /// The kind of trap.
        kind: TrapKind,
        /// The backtrace.
        backtrace: String,
    },
    /// The guest was interrupted at the deadline.
    #[error("the deadline passed while the guest was running")]
    Deadline,
    /// The guest was interrupted because all callers had disconnected.
    #[error("the caller disconnected while the guest was running")]
    Cancelled,
    /// The guest exceeded its memory limit.
    #[error("the guest ran out of memory")]
    OutOfMemory,
    /// The guest's outputs do not match its signature.
    #[error("the guest returned bad output: {0}")]
    BadOutput(String),
    /// The host could not create an instance or call the guest: not the guest's fault.
    #[error("the host could not run the guest: {0}")]
    Host(String),
}

impl Fault {
    /// The identifier in logs and metrics.
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

    /// The kind of trap as an identifier, if the guest trapped.
    pub fn trap(&self) -> Option<&'static str> {
        match self {
            Self::Trap { kind, .. } => Some(kind.as_str()),
            _ => None,
        }
    }

    /// Whether the instance can be used for further batches.
    pub fn leaves_instance_usable(&self) -> bool {
        matches!(self, Self::Rejected(_) | Self::NonFiniteInput(_) | Self::Failed(_))
    }

    /// Whether the caller's inputs are at fault, which an operator need not know.
    pub fn is_callers_fault(&self) -> bool {
        matches!(self, Self::Rejected(_) | Self::NonFiniteInput(_))
    }

    /// Whether the same inputs can be expected to cause the same fault again.
    pub fn is_deterministic(&self) -> bool {
        self.counts_against_version() && !matches!(self, Self::Host(_))
    }

    /// Whether the fault may be the version's, so that its breaker counts it.
    pub fn counts_against_version(&self) -> bool {
        match self {
            Self::Failed(_)
            | Self::Trap { .. }
            | Self::OutOfMemory
            | Self::BadOutput(_)
            | Self::Host(_) => true,
            // The caller's fault, or that of an overloaded machine.
            Self::Rejected(_) | Self::NonFiniteInput(_) | Self::Deadline | Self::Cancelled => false,
        }
    }

    /// Classify the error of a failed instantiation: a `start` function may have failed like any
    /// call, or the pool may be exhausted.
    pub(crate) fn from_instantiation(
        error: &wasmtime::Error,
        memory_was_denied: bool,
        stopped: Option<StopReason>,
    ) -> Self {
        // Errors of host functions carry a backtrace if a guest called them.
        let was_running = error.is::<Trap>() || error.is::<WasmBacktrace>();
        if was_running || memory_was_denied {
            Self::from_call(error, memory_was_denied, stopped)
        } else {
            Self::Host(format!("{error:#}"))
        }
    }

    /// Classify the error of a failed call.
    pub(crate) fn from_call(
        error: &wasmtime::Error,
        memory_was_denied: bool,
        stopped: Option<StopReason>,
    ) -> Self {
        let kind = match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) if stopped == Some(StopReason::Cancelled) => {
                return Self::Cancelled;
            }
            Some(Trap::Interrupt) => return Self::Deadline,
            _ if memory_was_denied || error.is::<ResultTooLarge>() => return Self::OutOfMemory,
            Some(Trap::StackOverflow) => TrapKind::StackOverflow,
            Some(Trap::UnreachableCodeReached) => TrapKind::Unreachable,
            Some(Trap::MemoryOutOfBounds | Trap::TableOutOfBounds) => TrapKind::OutOfBounds,
            Some(_) => TrapKind::Other,
            None => TrapKind::HostCall,
        };
        Self::Trap { kind, backtrace: format!("{error:?}") }
    }
}

/// The kinds of traps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrapKind {
    /// The call stack overflowed.
    StackOverflow,
    /// A panic, an abort or an assertion.
    Unreachable,
    /// An access outside of a memory or a table.
    OutOfBounds,
    /// Any other trap of WebAssembly.
    Other,
    /// A host function returned an error: a denied import, or too much data at once.
    HostCall,
}

impl TrapKind {
    /// The identifier in logs and metrics.
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
