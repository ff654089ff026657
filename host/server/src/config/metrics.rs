//! `[metrics]`: which listener serves `/metrics`, and whether it needs a key.

use schemars::JsonSchema;
use serde::Deserialize;

/// Which listener serves `/metrics`, and whether it needs a key.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsSection {
    /// The listener that serves `/metrics`.
    pub listener: Option<MetricsListener>,
    /// Whether `/metrics` needs a key. Keys with the scope `predict:*` or `admin` are accepted.
    pub key: Option<bool>,
}

/// A listener that can serve `/metrics`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MetricsListener {
    /// The public HTTP listener, `listen`.
    #[default]
    Public,
    /// The listener of the admin API, `admin_listen`.
    Admin,
}

/// The validated form of [`MetricsSection`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MetricsAccess {
    /// The listener that serves `/metrics`.
    pub listener: MetricsListener,
    /// Whether a key is needed.
    pub needs_key: bool,
}

impl MetricsSection {
    pub(super) fn validate(&self) -> MetricsAccess {
        MetricsAccess {
            listener: self.listener.unwrap_or_default(),
            needs_key: self.key.unwrap_or_default(),
        }
    }
}
