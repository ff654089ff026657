//! `[tracing]` and `[capture]`: where spans are exported to, and where sampled requests are written.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{ConfigError, positive_at};
use crate::observe::capture::CaptureSettings;
use crate::observe::trace::TraceSettings;

/// OpenTelemetry traces. They are off without an `endpoint`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TracingSection {
    /// The URL of the collector, which is reached by OTLP over gRPC without TLS.
    pub endpoint: Option<String>,
    /// The share of requests that are traced, from 0 to 1. A `traceparent` of the client decides
    /// instead.
    pub sample: Option<f64>,
    /// The `service.name` of the spans.
    pub service: Option<String>,
}

/// Where sampled requests and their responses are written. A model's `capture_share` selects them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptureSection {
    /// The folder of the files, which only the server's user may read.
    pub folder: Option<PathBuf>,
    /// The size at which the next file is begun.
    pub file_mib: Option<u64>,
    /// How many files are kept; the oldest is deleted.
    pub files: Option<usize>,
}

impl TracingSection {
    pub(super) fn validate(self) -> Result<TraceSettings, ConfigError> {
        let wrong = |key: &str, reason: &str| ConfigError::Value {
            key: format!("tracing.{key}"),
            reason: reason.to_owned(),
        };
        if self.endpoint.as_ref().is_some_and(|endpoint| !endpoint.starts_with("http://")) {
            return Err(wrong("endpoint", "it must begin with http://: collectors are close by"));
        }
        // One in a hundred shows what is slow and costs little.
        let sample = self.sample.unwrap_or(0.01);
        if !(0.0..=1.0).contains(&sample) {
            return Err(wrong("sample", "it must be between 0 and 1"));
        }
        let service = self.service.unwrap_or_else(|| "guesthouse".to_owned());
        Ok(TraceSettings { endpoint: self.endpoint, sample, service })
    }
}

impl CaptureSection {
    pub(super) fn validate(self, state: &Path) -> Result<CaptureSettings, ConfigError> {
        let folder = self.folder.unwrap_or_else(|| state.join("captures"));
        // A quarter of a GiB together: hundreds of thousands of small requests.
        let mib = positive_at("capture.file_mib", self.file_mib, 64)?;
        let files = positive_at("capture.files", self.files, 4_usize)?;
        Ok(CaptureSettings { folder, file_bytes: mib.saturating_mul(1 << 20), files })
    }
}

/// The share of a model's requests that are captured; 0 by default.
pub(super) fn validate_share(share: Option<f64>) -> Result<f64, super::models::InvalidKey> {
    let share = share.unwrap_or(0.0);
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err(("capture_share", "it must be between 0 and 1"))
    }
}
