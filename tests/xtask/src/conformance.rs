//! Has outside tools look at a real server: the tools that its users will use.

mod metrics;

use std::path::Path;

use anyhow::Result;

use crate::workspace::Workspace;

/// One step: what it looks at, and how.
type Step = (&'static str, fn(&Workspace, &Path) -> Result<()>);

/// All of them, in this order.
const STEPS: [Step; 1] = [("metrics", metrics::check)];

/// Takes all steps with a server of this program.
pub(crate) fn check(workspace: &Workspace, host: &Path) -> Result<()> {
    for (name, step) in STEPS {
        println!("conformance: {name}");
        step(workspace, host)?;
    }
    Ok(())
}
