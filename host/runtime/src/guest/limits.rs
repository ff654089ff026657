//! What one instance may use, with the reasons of the defaults.

use std::time::Duration;

/// How long `start` functions may take if the configuration says nothing. They set up static data,
/// which takes milliseconds; 30 s leave room for slow machines, and end a loop soon.
pub const DEFAULT_START_TIME: Duration = Duration::from_secs(30);

/// What one instance may use, and may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceLimits {
    /// Linear memory, in bytes. 256 MiB by default: several times what a small model takes.
    pub memory_bytes: usize,
    /// Elements of all tables, in entries. 100 000 by default: tract has some 20 000 functions.
    pub table_elements: usize,
    /// What one host call or one result may carry, in bytes: what a guest can make the host
    /// allocate at once. 64 MiB by default.
    pub transfer_bytes: usize,
    /// What a guest may log in one call, in bytes; the rest is dropped and counted. 16 KiB by
    /// default: a backtrace and a few words.
    pub log_bytes: usize,
    /// The call stack, in bytes; deeper calls trap. 512 KiB by default: tract takes a tenth of it.
    /// What a Rust guest keeps by reference lies in its linear memory instead.
    pub stack_bytes: usize,
    /// How long the `start` functions of its modules may run, whoever waits for the instance.
    /// [`DEFAULT_START_TIME`] by default.
    pub start_time: Duration,
    /// Whether an output may be NaN or infinite. Not by default: in a score or a probability it says
    /// that the model is broken, and JSON has no word for it.
    pub accept_non_finite: bool,
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
        }
    }
}
