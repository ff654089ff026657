//! `cargo xtask conformance`: what others' tools say of the server and of what comes with it.
//!
//! Each step installs the tools that it needs into the target folder, in fixed versions, and leaves
//! nothing elsewhere. The steps are in modules of their own.

mod packaging;

use anyhow::{Result, ensure};

use crate::workspace::Workspace;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// This step alone.
    #[arg(long)]
    only: Option<String>,
}

/// A step: its name, and what it does.
type Step = (&'static str, fn(&Workspace) -> Result<()>);

const STEPS: [Step; 1] = [("packaging", packaging::check)];

/// Every step, or the one that is named.
pub(crate) fn check(workspace: &Workspace, options: &Options) -> Result<()> {
    let wanted = |step: &&Step| options.only.as_ref().is_none_or(|only| only == step.0);
    let steps: Vec<_> = STEPS.iter().filter(wanted).collect();
    ensure!(!steps.is_empty(), "the steps are {:?}", STEPS.map(|(name, _)| name));
    for (name, step) in steps {
        step(workspace).map_err(|error| error.context(format!("{name} does not conform")))?;
        println!("{name}: conforms");
    }
    Ok(())
}
