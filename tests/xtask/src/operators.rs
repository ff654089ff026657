//! `cargo xtask operators`: ONNX's own tests of its operators, run natively by the SDK for guests.
//!
//! The cases come from PyPI's package `onnx`, which makes them in memory. Those that have passed once are
//! listed in `tests/data/operators/passed.txt` and have to pass for ever; the page of the book with their
//! numbers is generated.

use anyhow::Result;

use crate::python_package;
use crate::run;
use crate::workspace::Workspace;

/// The program of the SDK that runs graphs.
const PROGRAM: &str = "nodes";

#[derive(Default, clap::Args)]
pub(crate) struct Options {
    /// Add tests that pass now to the list, and write the page anew.
    #[arg(long)]
    write: bool,
}

/// Runs all tests.
pub(crate) fn check(workspace: &Workspace, options: &Options) -> Result<()> {
    // Without optimising tract, which would take minutes, as for the SDK's own tests.
    run::shown(run::cargo().args(["build", "--locked", "--profile", "xtask"]).args([
        "--package",
        "guesthouse-guest",
        "--example",
        PROGRAM,
    ]))?;
    let python = python_package::environment(workspace)?;
    let mut nodes = python.run("python");
    nodes
        .arg(workspace.operators_program())
        .arg(workspace.example_binary(PROGRAM))
        .arg(workspace.output().join("operators"))
        .arg(workspace.passed_operators())
        .arg(workspace.book().join("src/reference/operators.md"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    if options.write {
        nodes.arg("--write");
    }
    run::shown(&mut nodes)
}
