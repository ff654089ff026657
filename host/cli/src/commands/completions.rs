//! `guesthouse completions`: completion scripts for shells.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap_complete::Shell;

#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArguments {
    /// The shell.
    shell: Shell,
}

/// Print the script for the shell to standard output.
pub(crate) fn run(
    arguments: &CompletionsArguments,
    mut program: clap::Command,
) -> anyhow::Result<()> {
    let name = program.get_name().to_owned();
    // Into memory first: the generator panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut program, name, &mut script);
    io::stdout().write_all(&script).context("failed to print the completions")
}
