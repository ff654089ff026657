//! Schemas of values whose types belong to modules that know no schemas.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A rate of predictions.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "describes `guesthouse_control::rate::Rate`, as it is written")]
pub(super) struct Rate {
    /// Predictions per second in the long run, from 0.001 to 1000000.
    per_second: f64,
    /// Predictions at once, from 1 to 1000000.
    burst: Option<u32>,
}

/// `guesthouse_runtime::preinit::ChildPriority`.
pub(super) fn priority(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["idle", "low"]})
}

/// Shares by version.
pub(super) fn split(_: &mut SchemaGenerator) -> Schema {
    let share = json_schema!({"type": ["integer", "string"]});
    json_schema!({"type": "object", "additionalProperties": share})
}
