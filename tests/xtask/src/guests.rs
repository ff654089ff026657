//! Builds guests into WebAssembly components.
//!
//! [`Workspace`] lists the guests, and [`toolchain`](crate::toolchain) installs their target. Cargo
//! decides what is up to date.

use anyhow::{Result, ensure};

use crate::run;
use crate::toolchain::TARGET;
use crate::workspace::Workspace;

/// The guest of the performance benchmark. No test needs it, and with tract it takes minutes to link.
pub(crate) const OF_BENCHMARK: &str = "measured";

/// The guest that the host program contains: it is built first.
pub(crate) const IN_HOST: &str = "onnx";

/// Builds the named guests.
pub(crate) fn build(workspace: &Workspace, guests: &[String]) -> Result<()> {
    for guest in guests {
        ensure!(workspace.guests.contains(guest), "plugins/ has no guest named `{guest}`");
        // One at a time: cargo unifies the features of all packages in a build, so the content of a
        // guest would depend on which others are built with it.
        run::shown(run::cargo().args(["build", "--locked", "--profile", "guest"]).args([
            "--target",
            TARGET,
            "--package",
            guest,
        ]))?;
    }
    Ok(())
}
