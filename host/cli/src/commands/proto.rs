//! `guesthouse proto`: prints the `.proto` of an artifact.

use std::path::PathBuf;

use anyhow::Context as _;
use guesthouse_artifact::Artifact;
use guesthouse_server::typed::{CompatibleRange, ModelService};

#[derive(Debug, clap::Args)]
pub(crate) struct ProtoArguments {
    /// The artifact.
    file: PathBuf,
}

pub(crate) fn run(arguments: &ProtoArguments) -> anyhow::Result<()> {
    let artifact = Artifact::open(&arguments.file)
        .with_context(|| format!("failed to open {}", arguments.file.display()))?;
    let signature = artifact.signature().context("the artifact does not carry its signature")?;
    let id = artifact.id();
    // The text of the artifact in it is escaped already.
    print!(
        "{}",
        ModelService::new(&id.name, CompatibleRange::from_version(&id.version), signature).proto()
    );
    Ok(())
}
