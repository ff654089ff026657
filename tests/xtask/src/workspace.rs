//! Where things are: the workspace's folders and guest packages, as `cargo metadata` tells them.
//!
//! It reads no manifest itself and builds nothing.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::run;
use crate::toolchain::TARGET;

/// How the host program is built.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    /// Quick to build, for tests.
    Dev,
    /// As users build it.
    Release,
}

/// The folders and packages of this workspace.
pub(crate) struct Workspace {
    /// The repository's root.
    root: PathBuf,
    /// Packages under `plugins/` that build a component, by name.
    pub(crate) guests: Vec<String>,
    /// The packages that a command is about which names none.
    pub(crate) default_packages: Vec<String>,
    /// All packages under `plugins/`: the guests and what they share.
    pub(crate) plugins: Vec<String>,
    target: PathBuf,
}

impl Workspace {
    /// Asks cargo, which honours `CARGO_TARGET_DIR` and the configuration files, and enters the
    /// repository's root: in another folder, cargo would select other packages by default.
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
        Ok(Self { root, guests, default_packages, plugins, target })
    }

    /// The host program; it may have to be built first.
    pub(crate) fn host_binary(&self, profile: Profile) -> PathBuf {
        let folder = match profile {
            Profile::Dev => "debug",
            Profile::Release => "release",
        };
        self.target.join(folder).join("guesthouse")
    }

    /// The load generator; it may have to be built first.
    pub(crate) fn load_binary(&self) -> PathBuf {
        self.target.join("release").join("load")
    }

    /// The program that measures from inside; it may have to be built first.
    pub(crate) fn probe_binary(&self) -> PathBuf {
        self.target.join("release").join("probe")
    }

    /// Texts with the scores that scikit-learn gives them, as lines of JSON.
    pub(crate) fn toxicity_oracle(&self) -> PathBuf {
        self.root.join("tests/data/toxicity/oracle.jsonl")
    }

    /// The folder cargo leaves guest components in.
    pub(crate) fn components(&self) -> PathBuf {
        self.target.join(TARGET).join("guest")
    }

    /// One guest's component; it may have to be built first.
    pub(crate) fn component(&self, guest: &str) -> PathBuf {
        self.components().join(guest.replace('-', "_")).with_extension("wasm")
    }

    /// The folder of the book.
    pub(crate) fn book(&self) -> PathBuf {
        self.root.join("host/docs")
    }

    /// The folder with the models' sources.
    pub(crate) fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// The folder with the sources of models that are there for tests alone, and how they are served.
    pub(crate) fn fixtures(&self) -> PathBuf {
        self.root.join("tests/models")
    }

    /// The folder of the programs that ask a server by published clients.
    pub(crate) fn client_programs(&self) -> PathBuf {
        self.root.join("tests/xtask/src/conformance/clients")
    }

    /// The folder for all we make that cargo does not.
    pub(crate) fn output(&self) -> PathBuf {
        self.target.join("guesthouse")
    }

    /// The folder for packed artifacts.
    pub(crate) fn repository(&self) -> PathBuf {
        self.output().join("repository")
    }

    /// The folder for compiled versions, which a server fills and finds again.
    pub(crate) fn state(&self) -> PathBuf {
        self.output().join("state")
    }

    /// The fuzzer's crate and the inputs that it begins with.
    pub(crate) fn fuzz(&self) -> PathBuf {
        self.root.join("tests/fuzz")
    }

    /// The folder for what fuzzing finds.
    pub(crate) fn fuzz_output(&self) -> PathBuf {
        self.target.join("fuzz")
    }

    /// What operators need around the program.
    pub(crate) fn packaging(&self) -> PathBuf {
        self.root.join("host/packaging")
    }

    /// The folder for programs that checks need, and that the user should not find elsewhere.
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
