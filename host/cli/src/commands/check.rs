//! `guesthouse check`: compares the signatures of two versions with their numbers.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use guesthouse_artifact::Artifact;
use guesthouse_model::contract::{self, Bump, SignatureChange, SignatureSnapshot};
use guesthouse_model::terminal::{printable, printable_json};
use serde_json::json;

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArguments {
    /// The current artifact, or the JSON that `guesthouse inspect --signature` printed of it.
    old: PathBuf,
    /// The next artifact, or the JSON that `guesthouse inspect --signature` printed of it.
    new: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Fails if the new version number promises more compatibility than the signature keeps.
pub(crate) fn run(arguments: &CheckArguments) -> anyhow::Result<()> {
    let (old, new) = (open(&arguments.old)?, open(&arguments.new)?);
    let (was, is) = (&old, &new);
    if was.model != is.model {
        bail!("failed to compare: one is a version of {}, the other of {}", was.model, is.model);
    }
    let changes = contract::changes(&was.signature, &is.signature);
    let needed = contract::required_bump(&changes);
    let promised = Bump::between(&was.version, &is.version);
    if arguments.json {
        let report = json!({
            "model": was.model,
            "old": was.version.to_string(),
            "new": is.version.to_string(),
            "needed": needed,
            "promised": promised,
            "fits": promised >= Some(needed),
            "changes": changes,
        });
        println!("{}", printable_json(&serde_json::to_string_pretty(&report)?));
    } else {
        changes.iter().for_each(print);
    }
    match promised {
        None => bail!("{} does not come after {}", is.version, was.version),
        Some(promised) if promised < needed => {
            bail!(
                "{} after {} is a {promised} step, but it takes a {needed} one",
                is.version,
                was.version
            )
        }
        Some(promised) if !arguments.json => {
            println!(
                "{} after {} is a {promised} step, and it takes a {needed} one",
                is.version, was.version
            );
            Ok(())
        }
        Some(_) => Ok(()),
    }
}

fn open(path: &Path) -> anyhow::Result<SignatureSnapshot> {
    let read = || -> anyhow::Result<_> {
        if path.extension().is_some_and(|extension| extension == "json") {
            return Ok(SignatureSnapshot::parse(&std::fs::read(path)?)?);
        }
        let artifact = Artifact::open(path)?;
        let signature = artifact.signature().context("it has no signature")?;
        Ok(SignatureSnapshot::new(artifact.id(), signature))
    };
    read().with_context(|| format!("failed to read {}", path.display()))
}

fn print(change: &SignatureChange) {
    println!("{:<6} {}", change.bump.to_string(), printable(&change.what));
}
