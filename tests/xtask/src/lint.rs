//! Static checks: formatting, clippy for host and guests, licences and sources.
//!
//! The rules are in the workspace's `Cargo.toml`, `clippy.toml`, `rustfmt.toml` and `deny.toml`.
//! Warnings are errors.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::run;
use crate::toolchain::TARGET;
use crate::workspace::Workspace;
use crate::{FAILPOINTS, fuzz};

/// The version of cargo-deny to install if there is none. Fixed, so that a new release cannot fail
/// an unchanged commit.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Runs all checks, cheapest first, and stops at the first failure.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    run::shown(run::cargo().args(["fmt", "--all", "--check"]))?;

    let clippy = ["clippy", "--locked"];
    let strict = ["--", "--deny", "warnings"];
    run::shown(run::cargo().args(clippy).arg("--all-targets").args(strict))?;
    run::shown(run::cargo().args(clippy).arg("--all-targets").args(FAILPOINTS).args(strict))?;

    let mut fuzzer = run::cargo();
    fuzzer.args(clippy).args(["--test", "fuzz"]).args(fuzz::packages(workspace));
    run::shown(fuzzer.args(strict))?;

    let mut guests = run::cargo();
    guests.args(clippy).args(["--profile", "guest", "--target", TARGET]);
    for plugin in &workspace.plugins {
        guests.args(["--package", plugin]);
    }
    run::shown(guests.args(strict))?;

    let deny = cargo_deny(workspace)
        .context("licences are not checked: cargo-deny is missing and cannot be installed")?;
    run::shown(Command::new(deny).args(["--locked", "check", "licenses", "bans", "sources"]))
}

/// Finds cargo-deny in the search path or in the target folder, or installs it there.
fn cargo_deny(workspace: &Workspace) -> Result<PathBuf> {
    let ours = workspace.tools().join("bin").join("cargo-deny");
    for candidate in [PathBuf::from("cargo-deny"), ours.clone()] {
        if run::output(Command::new(&candidate).arg("--version")).is_ok() {
            return Ok(candidate);
        }
    }
    eprintln!("cargo-deny is not installed; building it once, which takes minutes");
    run::shown(
        run::cargo()
            .args(["install", "--locked", "cargo-deny", "--version", CARGO_DENY_VERSION, "--root"])
            .arg(workspace.tools()),
    )?;
    Ok(ours)
}
