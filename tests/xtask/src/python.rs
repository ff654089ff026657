//! Python environments with fixed versions of packages, in the target folder.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::run;
use crate::workspace::Workspace;

/// A virtual environment.
pub(crate) struct Python(PathBuf);

impl Python {
    /// Installs the packages, unless exactly these are installed.
    pub(crate) fn install(workspace: &Workspace, name: &str, packages: &[&str]) -> Result<Self> {
        let python = Self(workspace.tools().join(name));
        let stamp = python.0.join("installed");
        let wanted = packages.join(" ");
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return Ok(python);
        }
        run::step(&format!("installing {wanted}"), || {
            run::output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&python.0))?;
            if !packages.is_empty() {
                let mut pip = python.run("python");
                pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
                run::output(pip.args(packages))?;
            }
            Ok(fs::write(&stamp, &wanted)?)
        })?;
        Ok(python)
    }

    /// A command that runs a program of the environment.
    pub(crate) fn run(&self, program: &str) -> Command {
        Command::new(self.program(program))
    }

    /// The folder of the programs of the environment.
    pub(crate) fn programs(&self) -> PathBuf {
        self.0.join("bin")
    }

    /// The path of a program of the environment.
    pub(crate) fn program(&self, program: &str) -> PathBuf {
        self.programs().join(program)
    }
}
