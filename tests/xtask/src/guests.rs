//! Builds guests into WebAssembly components.
//!
//! Which packages are guests is for [`Workspace`] to say, and the target they need is made by
//! [`toolchain`](crate::toolchain). Cargo decides what is up to date.

use anyhow::{Result, ensure};

use crate::run;
use crate::toolchain::TARGET;
use crate::workspace::Workspace;

/// Builds the named guests.
pub(crate) fn build(workspace: &Workspace, guests: &[String]) -> Result<()> {
    for guest in guests {
        ensure!(workspace.guests.contains(guest), "plugins/ has no guest named `{guest}`");
        // One at a time: cargo unites the features of all packages of one build, and then what a
        // guest contains (and whether it is rebuilt) would depend on which others were asked for.
        run::shown(run::cargo().args(["build", "--locked", "--profile", "guest"]).args([
            "--target",
            TARGET,
            "--package",
            guest,
        ]))?;
    }
    Ok(())
}
