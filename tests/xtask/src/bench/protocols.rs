//! Measures the overhead of each protocol, the effect of batching, and how soon a disconnect frees
//! the guest.
//!
//! The load generator shares the processors with the server, and the figures include what it uses.
//! Each module below with a `measure` is a section.

mod batching;
mod cancellation;
mod overhead;

use anyhow::Result;

use super::Figure;
use super::artifacts::{Model, pack_misbehave};
use super::rig::Rig;
use crate::pack;
use crate::workspace::{Profile, Workspace};

/// The options of this benchmark.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) general: super::Options,
    /// Measure only this section. Can be repeated.
    #[arg(long, value_enum)]
    only: Vec<Section>,
}

impl Options {
    pub(crate) fn absolute(self) -> Result<Self> {
        Ok(Self { general: self.general.absolute()?, ..self })
    }
}

/// A section of the benchmark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Section {
    /// Throughput and latency with batching against without.
    Batching,
    /// The latency of each protocol, by stage.
    Overhead,
    /// How soon a disconnect frees the guest.
    Cancellation,
}

const SECTIONS: [Section; 3] = [Section::Batching, Section::Overhead, Section::Cancellation];

/// What all sections share.
struct Bench<'a> {
    rig: Rig<'a>,
    /// A model with short calls, which are mostly overhead.
    short: Model,
    /// A model with long calls, whose duration is proportional to the rows.
    long: Model,
    /// A model that returns its input.
    identity: Model,
    misbehave: Model,
}

pub(crate) fn measure(
    workspace: &Workspace,
    options: &Options,
) -> Result<(Vec<Figure>, Result<()>)> {
    let rig = Rig::new(workspace, "protocols", options.general.seconds as f64)?;
    let packed = |name: &str| Model::inspect(workspace, &workspace.repository().join(name));
    let (short, long) = (packed("toxicity-1.0.0.wasm")?, packed("text-direction-1.0.0.wasm")?);
    let fixtures = pack::pack_fixtures(workspace, &workspace.host_binary(Profile::Release))?;
    let identity = Model::inspect(workspace, &fixtures.join("identity_fp32-1.0.0.wasm"))?;
    let misbehave = pack_misbehave(workspace, &rig.folder("."), "1.0.0")?;
    let misbehave = Model::inspect(workspace, &misbehave)?;
    let bench = Bench { rig, short, long, identity, misbehave };
    Ok(super::sections(&SECTIONS, &options.only, |section| match section {
        Section::Batching => batching::measure(&bench),
        Section::Overhead => overhead::measure(&bench),
        Section::Cancellation => cancellation::measure(&bench),
    }))
}
