//! Measures what protocols cost, and what it brings that requests which meet share a call of the guest.
//!
//! The load generator shares the processors with the server, and what it uses is in the figures. Each
//! module below that has a `measure` is a section.

mod batching;

use anyhow::Result;

use super::Figure;
use super::artifacts::Model;
use super::rig::Rig;
use crate::workspace::Workspace;

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
}

const SECTIONS: [Section; 1] = [Section::Batching];

/// What all sections share.
struct Bench<'a> {
    rig: Rig<'a>,
    /// A model whose calls are short, so that most of each is the call itself.
    short: Model,
    /// A model whose calls are long, and as long for each row.
    long: Model,
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
    let bench = Bench { rig, short, long };
    Ok(super::sections(&SECTIONS, &options.only, |section| match section {
        Section::Batching => batching::measure(&bench),
    }))
}
