//! Measures what is promised of the public edge: that too many requests cost those that are answered
//! nothing, that refusals are quick, that it is over when it is over, and that callers who are slow,
//! silent or never stay take nothing from the others.
//!
//! The load generator, and whatever plays the bad callers, share the processors with the server, and
//! what they use is in the figures. Each module below that has a `measure` is a section.

mod callers;
mod catalogues;
mod failing;
mod overload;

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
    /// What becomes of half to ten times the requests that there is capacity for, and afterwards.
    Overload,
    /// What good callers feel of bad ones.
    Callers,
    /// How long answers about a thousand models take, and what predictions feel of them.
    Catalogues,
}

const SECTIONS: [Section; 3] = [Section::Overload, Section::Callers, Section::Catalogues];

/// What all sections share.
struct Bench<'a> {
    rig: Rig<'a>,
    /// A model whose calls are short.
    short: Model,
    /// A model whose calls are long, so that ten times its capacity can be sent from here.
    long: Model,
}

/// Measures every section, or those that were asked for. A section that cannot be measured does not
/// take the figures of the others away; it is in the second result.
pub(crate) fn measure(
    workspace: &Workspace,
    options: &Options,
) -> Result<(Vec<Figure>, Result<()>)> {
    let rig = Rig::new(workspace, "edge", options.general.seconds as f64)?;
    let packed = |name: &str| Model::inspect(workspace, &workspace.repository().join(name));
    let (short, long) = (packed("toxicity-1.0.0.wasm")?, packed("text-direction-1.0.0.wasm")?);
    let bench = Bench { rig, short, long };
    Ok(super::sections(&SECTIONS, &options.only, |section| match section {
        Section::Overload => overload::measure(&bench),
        Section::Catalogues => catalogues::measure(&bench),
        Section::Callers => callers::measure(&bench).and_then(|mut figures| {
            figures.extend(failing::measure(&bench)?);
            Ok(figures)
        }),
    }))
}
