//! The documentation page in a real browser with a real server.
//!
//! The browser is the machine's Chromium, or one in the target folder.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::with_server;
use crate::bench::server::KEY;
use crate::python::Python;
use crate::run;
use crate::workspace::Workspace;

const PACKAGES: [&str; 1] = ["playwright==1.65.2"];

/// The page lists all endpoints, sends a request, loads nothing from elsewhere, and does not
/// interpret text as markup.
pub(super) fn check(workspace: &Workspace, _host: &Path) -> Result<()> {
    let python = Python::install(workspace, "browser", &PACKAGES)?;
    let browsers = workspace.tools().join("browsers");
    if run::output(Command::new("chromium").arg("--version")).is_err() {
        let mut install = python.run("playwright");
        install.args(["install", "--only-shell", "chromium"]);
        run::output(install.env("PLAYWRIGHT_BROWSERS_PATH", &browsers))?;
    }
    let pictures = workspace.output().join("docs");
    with_server(workspace, |server| {
        let mut check = python.run("python");
        check.args(["-c", include_str!("page.py"), &server.url("")]).arg(&pictures);
        check.env("KEY", KEY).env("PLAYWRIGHT_BROWSERS_PATH", &browsers);
        print!("{}", run::output(&mut check)?);
        Ok(())
    })
}
