//! Measures the overhead of each protocol, the effect of batching, and how soon a disconnect frees
//! the guest.
//!
//! The load generator shares the processors with the server, and the figures include what it uses.
//! Each module below with a `measure` is a section.

mod batching;
mod cancellation;
pub(super) mod overhead;

use anyhow::Result;

use super::artifacts::{Model, pack_misbehave};
use super::rig::Rig;
use super::{Figure, Subject};
use crate::pack;
use crate::workspace::Profile;

/// A section of the benchmark.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Section {
    /// Throughput and latency with batching against without.
    Batching,
    /// The latency of each protocol, by stage.
    Overhead,
    /// How soon a disconnect frees the guest.
    Cancellation,
}

/// What all sections share.
pub(super) struct Bench<'a> {
    rig: Rig<'a>,
    /// A model with short calls, which are mostly overhead.
    short: Model,
    /// A model with long calls, whose duration is proportional to the rows.
    long: Model,
    /// A model that returns its input.
    identity: Model,
    misbehave: Model,
}

impl<'a> Bench<'a> {
    pub(super) fn prepare(subject: &Subject<'a>) -> Result<Self> {
        let rig = Rig::new(subject, "protocols")?;
        let workspace = rig.workspace;
        let packed = |name: &str| Model::inspect(workspace, &workspace.repository().join(name));
        let (short, long) = (packed("toxicity-1.0.0.wasm")?, packed("text-direction-1.0.0.wasm")?);
        let fixtures = pack::pack_fixtures(workspace, &workspace.host_binary(Profile::Release))?;
        let identity = Model::inspect(workspace, &fixtures.join("identity_fp32-1.0.0.wasm"))?;
        let misbehave = pack_misbehave(workspace, &rig.folder("."), "1.0.0")?;
        let misbehave = Model::inspect(workspace, &misbehave)?;
        Ok(Self { rig, short, long, identity, misbehave })
    }
}

impl Section {
    pub(super) fn measure(&self, bench: &Bench<'_>) -> Result<Vec<Figure>> {
        match self {
            Self::Batching => batching::measure(bench),
            Self::Overhead => overhead::measure(bench),
            Self::Cancellation => cancellation::measure(bench),
        }
    }
}
