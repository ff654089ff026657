//! What the file says of traces and of requests that are kept.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, positive_at};
use crate::observe::capture::CaptureSettings;
use crate::observe::trace::TraceSettings;

/// Traces; off without an `endpoint`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracingFile {
    /// The collector's address: OTLP over gRPC.
    pub endpoint: Option<String>,
    /// The share of requests whose spans are sent, unless the caller's trace context decides; 0.01.
    pub sample: Option<f64>,
    /// What the server calls itself; `guesthouse`.
    pub service: Option<String>,
}

/// The files of captured requests; which models have any, says `capture_share`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureFile {
    /// The folder; `captures` in the state folder.
    pub folder: Option<PathBuf>,
    /// The size at which a file makes room for the next one; 64.
    pub file_mib: Option<u64>,
    /// How many files are kept; 4.
    pub files: Option<usize>,
}

impl TracingFile {
    pub(super) fn settle(self) -> Result<TraceSettings, ConfigError> {
        let wrong = |key: &str, reason: &str| ConfigError::Value {
            key: format!("tracing.{key}"),
            reason: reason.to_owned(),
        };
        if self.endpoint.as_ref().is_some_and(|endpoint| !endpoint.starts_with("http://")) {
            return Err(wrong("endpoint", "it must begin with http://: collectors are close by"));
        }
        // One of a hundred shows what is slow and costs little.
        let sample = self.sample.unwrap_or(0.01);
        if !(0.0..=1.0).contains(&sample) {
            return Err(wrong("sample", "it must be between 0 and 1"));
        }
        let service = self.service.unwrap_or_else(|| "guesthouse".to_owned());
        Ok(TraceSettings { endpoint: self.endpoint, sample, service })
    }
}

impl CaptureFile {
    pub(super) fn settle(self, state: &Path) -> Result<CaptureSettings, ConfigError> {
        let folder = self.folder.unwrap_or_else(|| state.join("captures"));
        // A quarter of a GiB together: hundreds of thousands of small requests.
        let mib = positive_at("capture.file_mib", self.file_mib, 64)?;
        let files = positive_at("capture.files", self.files, 4_usize)?;
        Ok(CaptureSettings { folder, file_bytes: mib.saturating_mul(1 << 20), files })
    }
}

/// The share of a model's requests that are kept.
pub(super) fn settle_share(share: Option<f64>) -> Result<f64, super::models::Wrong> {
    let share = share.unwrap_or(0.0);
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err(("capture_share", "it must be between 0 and 1"))
    }
}
