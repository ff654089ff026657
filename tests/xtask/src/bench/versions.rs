//! Measures changes of versions under load: no request may fail, no response may come from a
//! version that is not live, a rollback must take milliseconds, shares must be exact, a shadow must
//! have no effect, and acknowledged changes must survive crashes.
//!
//! The effect of a disturbance is a ratio to the same load without it, a moment before or after.
//! Each module below with a `measure` is a section; [`liveness`] and [`expected`] derive the
//! correct responses independently of the server.

mod check;
mod crash;
mod expected;
mod failpoints;
mod liveness;
mod loads;
mod restart;
mod rollback;
pub(super) mod setup;
mod shadow;
mod split;
mod swaps;

use anyhow::Result;

use self::setup::Bench;
use super::Figure;

/// A section of the benchmark.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Section {
    /// Hundreds of swaps under load, as callers and the server's memory see them.
    Swaps,
    /// How long callers get a version after its rollback.
    Rollback,
    /// The time of a start with twenty versions.
    Restart,
    /// The time of loading compiled or small versions while a large artifact is compiled.
    Loads,
    /// The accuracy of a split, and whether callers stay with their version.
    Split,
    /// The effect of a shadow on callers, and dropped comparisons without free time.
    Shadow,
    /// Acknowledged changes of a server that is killed at random moments.
    Crash,
    /// The same at each single write, and with a full disk from each write on.
    Failpoints,
    /// Whether `guesthouse check` rejects version steps that are too small, and only those.
    Check,
}

impl Section {
    pub(super) fn measure(&self, bench: &Bench<'_>) -> Result<Vec<Figure>> {
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
