//! What one instance may use, with the reasons of the defaults.

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
            accept_non_finite: false,
        }
    }
}
