//! What the configuration says about requests. It can be reloaded while the server runs.

use std::collections::{BTreeMap, BTreeSet};

use guesthouse_model::ModelName;

use crate::config::{Limits, MetricsAccess, Origins, ServerIdentity, Sticky};

/// The configuration of requests.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Models whose worst disagreements with a shadow are kept with inputs and outputs.
    pub captured: BTreeSet<ModelName>,
    /// The share of a model's requests that is captured.
    pub capture_shares: BTreeMap<ModelName, f64>,
    /// The model of paths that name none.
    pub default_model: Option<ModelName>,
    /// The origins of web pages that may send requests.
    pub origins: Origins,
    /// The sticky header and field of a model.
    pub sticky: BTreeMap<ModelName, Sticky>,
    /// All bounds.
    pub limits: Limits,
    /// The listener of `/metrics`, and whether it requires a key.
    pub metrics: MetricsAccess,
    /// The server's name, and whether callers may load and unload models.
    pub server: ServerIdentity,
}
