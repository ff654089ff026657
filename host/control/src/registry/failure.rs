//! Why a version cannot serve.

use std::sync::Arc;
use std::time::Instant;

/// A failure that keeps a version from serving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The step that failed, for every reader.
    pub step: &'static str,
    /// The reason, for operators only.
    pub reason: Arc<str>,
    /// Whether another attempt may succeed.
    pub cause: FailureCause,
    /// When the version is tried again, unless somebody asks for it before.
    pub retry_at: Option<Instant>,
}

/// Where a failure comes from, which decides whether it is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCause {
    /// The artifact: the same bytes will fail again.
    Artifact,
    /// The machine: another attempt may succeed.
    Transient,
    /// Either of the two: a few more attempts are made.
    Unknown,
}
