//! The members of an OpenAPI document that describe models.

use serde_json::{Map, Value};

/// A document, or the part of one that describes a model.
#[derive(Default)]
pub(super) struct Document {
    pub(super) paths: Map<String, Value>,
    pub(super) schemas: Map<String, Value>,
    pub(super) tags: Vec<Value>,
}
