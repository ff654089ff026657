//! What the file says of `/metrics`: where it is served, and for whom.

use serde::Deserialize;

/// Where Prometheus reads, and whether it needs a key.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsFile {
    /// The listener of `/metrics`, `public` or `admin`; `public`.
    pub listener: Option<MetricsListener>,
    /// Whether a key is needed that is good for all models or for administration; no.
    pub key: Option<bool>,
}

/// A listener that can have `/metrics`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricsListener {
    /// The callers'.
    #[default]
    Public,
    /// The operators'.
    Admin,
}

/// The same, with its defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MetricsAccess {
    /// The listener that has `/metrics`.
    pub listener: MetricsListener,
    /// Whether a key is needed.
    pub needs_key: bool,
}

impl MetricsFile {
    pub(super) fn settle(&self) -> MetricsAccess {
        MetricsAccess {
            listener: self.listener.unwrap_or_default(),
            needs_key: self.key.unwrap_or_default(),
        }
    }
}
