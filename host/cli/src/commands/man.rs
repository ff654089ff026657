//! `guesthouse man`: the manual pages.

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;

#[derive(Debug, clap::Args)]
pub(crate) struct ManArguments {
    /// Write a page for the program and for each of its commands into this folder, and print none.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// Print the page of the program, or write all pages into a folder.
pub(crate) fn run(arguments: &ManArguments, program: clap::Command) -> anyhow::Result<()> {
    let Some(folder) = &arguments.output else {
        let mut page = Vec::new();
        clap_mangen::Man::new(program).render(&mut page).context("failed to render the page")?;
        return io::stdout().write_all(&page).context("failed to print the page");
    };
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(program, folder))
        .with_context(|| format!("failed to write the pages to {}", folder.display()))
}
