//! The limits of one instance, with the reasons for their defaults.

use std::time::Duration;

use guesthouse_arithmetic::Backend;

/// The default limit for `start` functions. They set up static data, which takes milliseconds; 30 s
/// accommodate slow machines and end an infinite loop soon.
pub const DEFAULT_START_TIME: Duration = Duration::from_secs(30);

/// The limits of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceLimits {
    /// Linear memory, in bytes. 256 MiB by default: several times what a small model needs.
    pub memory_bytes: usize,
    /// Elements of each table. 100 000 by default: tract has some 20 000 functions.
    pub table_elements: usize,
    /// The most bytes that one host call or one result may carry: what a guest can make the host
    /// allocate at once. 64 MiB by default.
    pub transfer_bytes: usize,
    /// The most bytes that a guest may log in one call; further lines are dropped and counted. 16
    /// KiB by default: a backtrace and some lines.
    pub log_bytes: usize,
    /// The call stack, in bytes; deeper calls trap. 512 KiB by default: tract needs a tenth of it.
    /// Values that a Rust guest keeps by reference are in its linear memory instead.
    pub stack_bytes: usize,
    /// How long the `start` functions of the guest's modules may run, whatever the deadline of the
    /// request. [`DEFAULT_START_TIME`] by default.
    pub start_time: Duration,
    /// Whether outputs may be NaN or infinite. Not by default: such a score or probability means
    /// that the model is broken, and JSON cannot represent it.
    pub accept_non_finite: bool,
    /// The instructions with which the host executes operations for the guest, or `None` if it is
    /// not granted any. Those of the processor by default: the results are the same, and guests that
    /// do not import the interface are not affected.
    pub arithmetic: Option<Backend>,
}

impl Default for InstanceLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 20,
            table_elements: 100_000,
            transfer_bytes: 64 << 20,
            log_bytes: 16 << 10,
            stack_bytes: 512 << 10,
            start_time: DEFAULT_START_TIME,
            accept_non_finite: false,
            arithmetic: Some(Backend::fastest()),
        }
    }
}
