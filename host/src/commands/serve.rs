//! `guesthouse serve`

use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArguments {}

pub(crate) fn run(_arguments: &ServeArguments, _started: Instant) -> anyhow::Result<()> {
    Ok(())
}
