//! `[idempotency]`: how long responses to predictions with an idempotency key are kept.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{ConfigError, bounded, positive_at};

/// How long responses to predictions with an idempotency key are kept, and how many.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdempotencySection {
    /// How long a response is kept. 10 minutes are longer than clients keep retrying.
    pub seconds: Option<u64>,
    /// The memory of all kept responses together; the oldest are dropped first. 64 MiB hold a hundred
    /// thousand small ones.
    pub memory_mib: Option<u64>,
}

/// How long responses are kept for retries, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerLimits {
    /// The bytes of all of them together.
    pub bytes: u64,
    /// How long each of them is kept.
    pub time: Duration,
}

impl Default for AnswerLimits {
    fn default() -> Self {
        Self { bytes: 64 << 20, time: Duration::from_secs(600) }
    }
}

impl IdempotencySection {
    pub(super) fn validate(&self) -> Result<AnswerLimits, ConfigError> {
        let default = AnswerLimits::default();
        let seconds = positive_at("idempotency.seconds", self.seconds, default.time.as_secs())?;
        let mib = positive_at("idempotency.memory_mib", self.memory_mib, default.bytes >> 20)?;
        let time = bounded("idempotency.seconds", Duration::from_secs(seconds))?;
        Ok(AnswerLimits { bytes: mib.saturating_mul(1 << 20), time })
    }
}
