//! What all sections need: the models, and values of the probe's report.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bench::Subject;
use crate::bench::artifacts::{Model, pack_misbehave};
use crate::bench::rig::Rig;

/// The model with the larger weights and the longer calls, if the repository has it.
const LARGE_ARTIFACT: &str = "text-direction-1.0.0.wasm";

/// What all sections share.
pub(crate) struct Bench<'a> {
    pub(super) rig: Rig<'a>,
    /// The healthy model, with short calls.
    pub(super) healthy: Model,
    /// Another version of the same guest.
    pub(super) sibling: Model,
    /// A model with long calls, if there is one.
    pub(super) large: Option<Model>,
    pub(super) misbehave: Model,
}

impl<'a> Bench<'a> {
    /// Finds and packs the artifacts. Programs and guests have been built.
    pub(crate) fn prepare(subject: &Subject<'a>) -> Result<Self> {
        let rig = Rig::new(subject, "runtime")?;
        let workspace = rig.workspace;
        let packed = |name: &str| Model::inspect(workspace, &workspace.repository().join(name));
        let has_large = workspace.repository().join(LARGE_ARTIFACT).exists();
        let misbehave = pack_misbehave(workspace, &rig.folder("."), "1.0.0")?;
        Ok(Self {
            healthy: packed("toxicity-1.0.0.wasm")?,
            sibling: packed("toxicity-2.0.0.wasm")?,
            large: has_large.then(|| packed(LARGE_ARTIFACT)).transpose()?,
            misbehave: Model::inspect(workspace, &misbehave)?,
            rig,
        })
    }

    /// The models whose costs are measured.
    pub(super) fn models(&self) -> impl Iterator<Item = &Model> {
        [&self.healthy].into_iter().chain(&self.large)
    }
}

/// A value in the report of the probe.
pub(super) fn value(report: &Value, pointer: &str) -> Result<f64> {
    let value = report.pointer(pointer).and_then(Value::as_f64);
    value.with_context(|| format!("the probe does not report {pointer}: {report}"))
}
