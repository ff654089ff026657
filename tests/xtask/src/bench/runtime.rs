//! Measures what the runtime promises: what instances cost, that a breaking version or a deployment
//! is not felt by others, that deadlines hold, that nothing is lost, leaks or survives damaged.
//!
//! The load generator, the server and whatever disturbs it share the processors, so nothing here is
//! held against a time measured elsewhere if it can be helped: what a disturbance costs is a ratio
//! to the same measurement without it, taken a moment before or after, and the figure is the median
//! of such pairs. Each module below is a section, measures one thing and says what would be
//! different if that thing were broken.

mod bystander;
mod crash;
mod damage;
mod deadline;
mod deploy;
mod instances;
mod isolation;
mod setup;
mod traps;

use anyhow::Result;

use self::setup::Bench;
use super::Figure;
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
    /// What making, keeping and dropping instances costs.
    Instances,
    /// A new instance for every request against reused ones.
    Isolation,
    /// What a healthy version feels of a breaking one.
    Bystander,
    /// What a healthy version feels of a deployment, and how long the second one of a guest takes.
    Deploy,
    /// When a guest that computes for ever is answered and ended.
    Deadline,
    /// Whether anything is lost or leaks when requests trap.
    Traps,
    /// Whether a server that is killed while it compiles starts again.
    Crash,
    /// Whether damage to stored code is noticed.
    Damage,
}

const SECTIONS: [Section; 8] = [
    Section::Instances,
    Section::Isolation,
    Section::Bystander,
    Section::Deploy,
    Section::Deadline,
    Section::Traps,
    Section::Crash,
    Section::Damage,
];

/// Measures every section, or those that were asked for. A section that cannot be measured does not
/// take the figures of the others away; it is in the second result.
pub(crate) fn measure(
    workspace: &Workspace,
    options: &Options,
) -> Result<(Vec<Figure>, Result<()>)> {
    let bench = Bench::prepare(workspace, options.general.seconds as f64)?;
    Ok(super::sections(&SECTIONS, &options.only, |section| section.measure(&bench)))
}

impl Section {
    fn measure(self, bench: &Bench<'_>) -> Result<Vec<Figure>> {
        match self {
            Self::Instances => instances::measure(bench),
            Self::Isolation => isolation::measure(bench),
            Self::Bystander => bystander::measure(bench),
            Self::Deploy => deploy::measure(bench),
            Self::Deadline => deadline::measure(bench),
            Self::Traps => traps::measure(bench),
            Self::Crash => crash::measure(bench),
            Self::Damage => damage::measure(bench),
        }
    }
}
