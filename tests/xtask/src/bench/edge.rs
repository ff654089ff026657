//! Measures the public listener: overload must not affect admitted requests, rejections must be
//! fast, the server must recover, and slow or silent clients must not affect others.
//!
//! The load generator and the clients that misbehave share the processors with the server, and the
//! figures include what they use. Each module below with a `measure` is a section.

mod callers;
mod catalogues;
mod failing;
mod overload;

use anyhow::Result;

use super::Figure;
use super::artifacts::Model;
use super::rig::Rig;
use crate::workspace::Workspace;

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
    /// Half to ten times the requests that the server has capacity for, and the recovery
    /// afterwards.
    Overload,
    /// Good callers beside slow, silent and failing ones.
    Callers,
    /// Pages about a thousand models, and predictions beside requests for them.
    Catalogues,
}

const SECTIONS: [Section; 3] = [Section::Overload, Section::Callers, Section::Catalogues];

/// What all sections share.
struct Bench<'a> {
    rig: Rig<'a>,
    /// A model with short calls.
    short: Model,
    /// A model with long calls, so that this machine can generate ten times its capacity.
    long: Model,
}

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
