//! Measures what is promised of versions that change while they are asked: that no request fails, that
//! no answer comes from a version that is not live, that taking a version back takes milliseconds,
//! that a share is one, that a shadow is not felt, that what was acknowledged survives.
//!
//! As in the benchmark of the runtime, what a disturbance costs is a ratio to the same load without
//! it, a moment before or after. Each module below that has a `measure` is a section; [`liveness`]
//! and [`expected`] say, without asking the server, what its answers have to be.

mod check;
mod crash;
mod expected;
mod failpoints;
mod liveness;
mod loads;
mod restart;
mod rollback;
mod setup;
mod shadow;
mod split;
mod swaps;

use anyhow::Result;

use self::setup::Bench;
use super::Figure;
use crate::workspace::Workspace;

/// What this benchmark is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) general: super::Options,
    /// Swap versions 1000 times, each way that is measured, under a million requests.
    #[arg(long)]
    long: bool,
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
    /// What callers and the server's memory feel of hundreds of swaps under load.
    Swaps,
    /// How long callers get a version after it was taken back.
    Rollback,
    /// How long a start with twenty versions takes.
    Restart,
    /// How long what is compiled or small takes to be loaded while a large artifact is compiled.
    Loads,
    /// Whether a share is what it was said to be, and whether callers stay where they are.
    Split,
    /// What callers feel of a shadow, and what becomes of it when there is no time for it.
    Shadow,
    /// Whether acknowledged changes survive a server that is killed while it makes others.
    Crash,
    /// The same for each write of a change, and for a disk that is full from then on.
    Failpoints,
    /// Whether `guesthouse check` refuses numbers that promise too much, and only those.
    Check,
}

const SECTIONS: [Section; 9] = [
    Section::Swaps,
    Section::Rollback,
    Section::Restart,
    Section::Loads,
    Section::Split,
    Section::Shadow,
    Section::Crash,
    Section::Failpoints,
    Section::Check,
];

/// Measures every section, or those that were asked for. A section that cannot be measured does not
/// take the figures of the others away; it is in the second result.
pub(crate) fn measure(
    workspace: &Workspace,
    options: &Options,
) -> Result<(Vec<Figure>, Result<()>)> {
    let bench = Bench::prepare(workspace, options.general.seconds as f64, options.long)?;
    Ok(super::sections(&SECTIONS, &options.only, |section| section.measure(&bench)))
}

impl Section {
    fn measure(self, bench: &Bench<'_>) -> Result<Vec<Figure>> {
        match self {
            Self::Swaps => swaps::measure(bench),
            Self::Rollback => rollback::measure(bench),
            Self::Restart => restart::measure(bench),
            Self::Loads => loads::measure(bench),
            Self::Split => split::measure(bench),
            Self::Shadow => shadow::measure(bench),
            Self::Crash => crash::measure(bench),
            Self::Failpoints => failpoints::measure(bench),
            Self::Check => check::measure(bench),
        }
    }
}
