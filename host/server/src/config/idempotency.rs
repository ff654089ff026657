//! What the file says of predictions that are asked for again.

use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, bounded, positive_at};

/// How long answers are kept, and how many; those left out have the defaults of [`AnswerLimits`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdempotencyFile {
    /// How long an answer is kept; 600.
    pub seconds: Option<u64>,
    /// All answers together; 64.
    pub memory_mib: Option<u64>,
}

/// What is kept for who asks again, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerLimits {
    /// All answers together. 64 MiB are a hundred thousand small ones.
    pub bytes: u64,
    /// Each of them. 10 minutes are more than clients go on trying.
    pub time: Duration,
}

impl Default for AnswerLimits {
    fn default() -> Self {
        Self { bytes: 64 << 20, time: Duration::from_secs(600) }
    }
}

impl IdempotencyFile {
    pub(super) fn settle(&self) -> Result<AnswerLimits, ConfigError> {
        let default = AnswerLimits::default();
        let seconds = positive_at("idempotency.seconds", self.seconds, default.time.as_secs())?;
        let mib = positive_at("idempotency.memory_mib", self.memory_mib, default.bytes >> 20)?;
        let time = bounded("idempotency.seconds", Duration::from_secs(seconds))?;
        Ok(AnswerLimits { bytes: mib.saturating_mul(1 << 20), time })
    }
}
