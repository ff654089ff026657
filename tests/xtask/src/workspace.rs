//! The folders and guest packages of the workspace, from `cargo metadata`.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::run;
use crate::toolchain::TARGET;

/// The build profile of the host program.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    /// For tests.
    Dev,
    /// For users.
    Release,
}

/// The folders and packages of this workspace.
pub(crate) struct Workspace {
    /// The root of the repository.
    root: PathBuf,
    /// The packages under `plugins/` that build a component.
    pub(crate) guests: Vec<String>,
    /// The default members of the workspace.
    pub(crate) default_packages: Vec<String>,
    /// All packages under `plugins/`: the guests and what they share.
    pub(crate) plugins: Vec<String>,
    target: PathBuf,
    /// A release build of the host program in another place.
    release_host: Option<PathBuf>,
}

impl Workspace {
    /// Queries cargo, which respects `CARGO_TARGET_DIR` and configuration files, and changes to the
    /// root of the repository: cargo selects default packages by the current folder.
    pub(crate) fn load() -> Result<Self> {
        let metadata = run::output(run::cargo().args([
            "metadata",
            "--format-version=1",
            "--no-deps",
            "--locked",
        ]))?;
        let metadata: Value =
            serde_json::from_str(&metadata).context("cargo's metadata is not JSON")?;
        let root = folder(&metadata, "workspace_root")?;
        let target = folder(&metadata, "target_directory")?;

        env::set_current_dir(&root).context("cannot enter the repository's root")?;

        let plugins_folder = root.join("plugins");
        let mut guests = Vec::new();
        let mut plugins = Vec::new();
        let mut default_packages = Vec::new();
        let is_default = |package: &Value| {
            let members = metadata["workspace_default_members"].as_array();
            members.is_some_and(|members| members.contains(&package["id"]))
        };
        for package in metadata["packages"].as_array().into_iter().flatten() {
            let name = package["name"].as_str().context("a package without a name")?;
            if is_default(package) {
                default_packages.push(name.to_owned());
            }
            if !folder(package, "manifest_path")?.starts_with(&plugins_folder) {
                continue;
            }
            plugins.push(name.to_owned());
            if builds_component(package) {
                guests.push(name.to_owned());
            }
        }
        Ok(Self { root, guests, default_packages, plugins, target, release_host: None })
    }

    /// The host program.
    pub(crate) fn host_binary(&self, profile: Profile) -> PathBuf {
        match (profile, &self.release_host) {
            (Profile::Dev, _) => self.target.join("debug/guesthouse"),
            (Profile::Release, None) => self.target.join("release/guesthouse"),
            (Profile::Release, Some(program)) => program.clone(),
        }
    }

    /// The folder with compiled code that runs of `guesthouse pack --onnx` share.
    pub(crate) fn cache(&self) -> PathBuf {
        self.target.join("guesthouse/cache")
    }

    /// Uses another program as the release build of the host.
    pub(crate) fn use_release_host(&mut self, program: PathBuf) {
        self.release_host = Some(program);
    }

    /// The load generator.
    pub(crate) fn load_binary(&self) -> PathBuf {
        self.target.join("release").join("load")
    }

    /// The probe.
    pub(crate) fn probe_binary(&self) -> PathBuf {
        self.target.join("release").join("probe")
    }

    /// The program that runs models natively.
    pub(crate) fn native_binary(&self) -> PathBuf {
        self.target.join("release").join("native")
    }

    /// The folder of the Python programs of the performance benchmark.
    pub(crate) fn performance(&self) -> PathBuf {
        self.root.join("tests/performance")
    }

    /// Texts with their scores by scikit-learn, as lines of JSON.
    pub(crate) fn toxicity_oracle(&self) -> PathBuf {
        self.root.join("tests/data/toxicity/oracle.jsonl")
    }

    /// The folder of the guest components.
    pub(crate) fn components(&self) -> PathBuf {
        self.target.join(TARGET).join("guest")
    }

    /// The component of a guest.
    pub(crate) fn component(&self, guest: &str) -> PathBuf {
        self.components().join(guest.replace('-', "_")).with_extension("wasm")
    }

    /// An example of the SDK for guests, without optimisation.
    pub(crate) fn example_binary(&self, name: &str) -> PathBuf {
        self.target.join("xtask/examples").join(name)
    }

    /// The Python program that tests operators.
    pub(crate) fn operators_program(&self) -> PathBuf {
        self.root.join("tests/xtask/src/operators/nodes.py")
    }

    /// The list of the tests of operators that pass.
    pub(crate) fn passed_operators(&self) -> PathBuf {
        self.root.join("tests/data/operators/passed.txt")
    }

    /// The folder of the Python package.
    pub(crate) fn python_package(&self) -> PathBuf {
        self.root.join("host/python")
    }

    /// The folder of the book.
    pub(crate) fn book(&self) -> PathBuf {
        self.root.join("host/docs")
    }

    /// The folder of the models' sources.
    pub(crate) fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// The folder of the test models' sources and of their configuration.
    pub(crate) fn fixtures(&self) -> PathBuf {
        self.root.join("tests/models")
    }

    /// The folder of the Python programs that use published clients.
    pub(crate) fn client_programs(&self) -> PathBuf {
        self.root.join("tests/xtask/src/conformance/clients")
    }

    /// The output folder of xtask.
    pub(crate) fn output(&self) -> PathBuf {
        self.target.join("guesthouse")
    }

    /// The folder of the packed artifacts.
    pub(crate) fn repository(&self) -> PathBuf {
        self.output().join("repository")
    }

    /// The state folder of the demo, which keeps compiled versions.
    pub(crate) fn state(&self) -> PathBuf {
        self.output().join("state")
    }

    /// The fuzzer's crate and corpus.
    pub(crate) fn fuzz(&self) -> PathBuf {
        self.root.join("tests/fuzz")
    }

    /// The output folder of the fuzzer.
    pub(crate) fn fuzz_output(&self) -> PathBuf {
        self.target.join("fuzz")
    }

    /// The examples for operators.
    pub(crate) fn packaging(&self) -> PathBuf {
        self.root.join("host/packaging")
    }

    /// The folder of tools that checks install.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
}

fn folder(value: &Value, key: &str) -> Result<PathBuf> {
    let path = value[key].as_str().with_context(|| format!("cargo's metadata has no {key}"))?;
    Ok(Path::new(path).to_owned())
}

fn builds_component(package: &Value) -> bool {
    let targets = package["targets"].as_array().into_iter().flatten();
    let mut kinds =
        targets.flat_map(|target| target["crate_types"].as_array().into_iter().flatten());
    kinds.any(|kind| kind == "cdylib")
}
