//! `cargo xtask docs`: builds the book with mdBook, which it installs into the target folder in a fixed
//! version.
//!
//! Links, generated pages and the commands of the tutorials are checked by tests of their own, which
//! also run in every `cargo xtask test`; this command runs them first.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run;
use crate::workspace::Workspace;

/// The version of mdBook that the book is written for.
const MDBOOK_VERSION: &str = "0.5.4";

/// If it is set, the tests write generated pages instead of comparing them.
const WRITE_VARIABLE: &str = "GUESTHOUSE_DOCS_WRITE";

/// The tests of the documentation, by the module that holds them.
const TESTS: [&str; 5] = ["--test", "boundary", "--", "documentation::", "--nocapture"];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Update the parts of pages that are generated from the program.
    #[arg(long)]
    write: bool,
}

impl Options {
    /// The variables of the tests' environment.
    pub(crate) fn variables(&self) -> Option<(&'static str, &'static str)> {
        self.write.then_some((WRITE_VARIABLE, "1"))
    }
}

/// The arguments of `cargo test` that run the tests of the documentation.
pub(crate) fn tests() -> Vec<OsString> {
    TESTS.map(OsString::from).to_vec()
}

/// Build the book into `target/docs`.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let mdbook = mdbook(workspace).context("mdBook is missing and cannot be installed")?;
    let output = workspace.output().with_file_name("docs");
    run::shown(
        Command::new(mdbook).arg("build").arg(workspace.book()).arg("--dest-dir").arg(&output),
    )?;
    println!("the book is in {}", output.join("index.html").display());
    Ok(())
}

/// Finds the fixed version of mdBook among our own tools, or installs it there.
fn mdbook(workspace: &Workspace) -> Result<PathBuf> {
    let ours = workspace.tools().join("bin").join("mdbook");
    let version = run::output(Command::new(&ours).arg("--version")).unwrap_or_default();
    if version.trim().trim_start_matches("mdbook v") == MDBOOK_VERSION {
        return Ok(ours);
    }
    eprintln!("mdBook {MDBOOK_VERSION} is not installed; building it once, which takes minutes");
    run::shown(
        run::cargo()
            .args(["install", "--locked", "mdbook", "--version", MDBOOK_VERSION])
            .args(["--no-default-features", "--features", "search", "--root"])
            .arg(workspace.tools()),
    )?;
    Ok(ours)
}
