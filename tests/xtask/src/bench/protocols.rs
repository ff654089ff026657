//! Measures what protocols cost, what it brings that requests which meet share a call of the guest, and
//! how soon a caller that leaves frees what worked for it.
//!
//! The load generator shares the processors with the server, and what it uses is in the figures. Each
//! module below that has a `measure` is a section.

mod batching;
mod cancellation;
mod overhead;

use anyhow::Result;

use super::Figure;
use super::artifacts::{Model, pack_misbehave};
use super::rig::Rig;
use crate::pack;
use crate::workspace::{Profile, Workspace};

/// What this benchmark is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) general: super::Options,
    /// Measure only this section. Can be given again for more.
    #[arg(long, value_enum)]
    only: Vec<Section>,
}

impl Options {
    /// The same for any current folder.
    pub(crate) fn absolute(self) -> Result<Self> {
        Ok(Self { general: self.general.absolute()?, ..self })
    }
}

/// A part of the benchmark that can be measured by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Section {
    /// Throughput and latency with batching on against off.
    Batching,
    /// What each protocol costs, by stage.
    Overhead,
    /// How soon a caller that leaves frees its guest.
    Cancellation,
}

const SECTIONS: [Section; 3] = [Section::Batching, Section::Overhead, Section::Cancellation];

/// What all sections share.
struct Bench<'a> {
    rig: Rig<'a>,
    /// A model whose calls are short, so that most of each is the call itself.
    short: Model,
    /// A model whose calls are long, and as long for each row.
    long: Model,
    /// A model that says what it is told.
    identity: Model,
    misbehave: Model,
}

/// Measures every section, or those that were asked for. A section that cannot be measured does not
/// take the figures of the others away; it is in the second result.
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
