//! `cargo xtask conformance`: what others' tools say of the server and of what comes with it.
//!
//! Each step installs the tools that it needs into the target folder, in fixed versions, and leaves
//! nothing elsewhere. The steps are in modules of their own.

mod metrics;
mod packaging;

use std::path::Path;

use anyhow::{Result, ensure};

use crate::workspace::Workspace;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// This step alone.
    #[arg(long)]
    only: Option<String>,
}

/// A step: its name, and what it does.
type Step = (&'static str, fn(&Workspace, &Path) -> Result<()>);

const STEPS: [Step; 2] = [("metrics", metrics::check), ("packaging", packaging::check)];

/// Every step, or the one that is named.
pub(crate) fn check(workspace: &Workspace, host: &Path, options: &Options) -> Result<()> {
    let wanted = |step: &&Step| options.only.as_ref().is_none_or(|only| only == step.0);
    let steps: Vec<_> = STEPS.iter().filter(wanted).collect();
    ensure!(!steps.is_empty(), "the steps are {:?}", STEPS.map(|(name, _)| name));
    for (name, step) in steps {
        step(workspace, host).map_err(|error| error.context(format!("{name} does not conform")))?;
        println!("{name}: conforms");
    }
    Ok(())
}
