//! Measures the runtime: the cost of instances, the effect of a faulting version or a deployment on
//! others, deadlines, losses, leaks, and damaged files.
//!
//! The load generator, the server and other processes share the processors, so most figures are
//! ratios: the effect of a disturbance is compared with the same measurement without it, taken a
//! moment before or after, and the figure is the median of such pairs. Each module below is a
//! section and says which defect it would detect.

mod arithmetic;
mod bystander;
mod crash;
mod damage;
mod deadline;
mod deploy;
mod instances;
mod isolation;
pub(super) mod setup;
mod traps;

use anyhow::Result;

use self::setup::Bench;
use super::Figure;

/// A section of the benchmark.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Section {
    /// The cost of creating, keeping and dropping instances.
    Instances,
    /// A new instance for every request against reused instances.
    Isolation,
    /// A healthy version beside a faulting one.
    Bystander,
    /// A running version beside a deployment, and the time of the second deployment of a guest.
    Deploy,
    /// When a request to an endless guest is answered, and when the guest stops.
    Deadline,
    /// Losses and leaks when requests trap.
    Traps,
    /// Restart of a server that was killed while it compiled.
    Crash,
    /// Detection of damaged stored code.
    Damage,
    /// The cost of a call of the host's arithmetic, and the interruption of a long one.
    Arithmetic,
}

impl Section {
    pub(super) fn measure(&self, bench: &Bench<'_>) -> Result<Vec<Figure>> {
        match self {
            Self::Instances => instances::measure(bench),
            Self::Isolation => isolation::measure(bench),
            Self::Bystander => bystander::measure(bench),
            Self::Deploy => deploy::measure(bench),
            Self::Deadline => deadline::measure(bench),
            Self::Traps => traps::measure(bench),
            Self::Crash => crash::measure(bench),
            Self::Damage => damage::measure(bench),
            Self::Arithmetic => arithmetic::measure(bench),
        }
    }
}
