//! The Python package `guesthouse-pack`: its environments and its tests.
//!
//! The tests of `cargo xtask test` need scikit-learn, and those of the step `python` of `cargo xtask
//! conformance` all frameworks that are reasonably small. Tests of a framework that is not installed are
//! skipped and say so.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::environment;
use crate::python::Python;
use crate::run;
use crate::workspace::Workspace;

/// What the tests of `cargo xtask test` and the tutorial need.
const PACKAGES: [&str; 7] = [
    "numpy==2.4.6",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "pandas==3.1.1",
    "pytest==9.2.0",
    "scikit-learn==1.9.1",
    "skl2onnx==1.20.0",
];

/// What the step of the conformance checks needs besides.
const MORE_PACKAGES: [&str; 6] = [
    "hatchling==1.33.0",
    "lightgbm==4.7.0",
    "mypy==2.4.1",
    "onnxmltools==1.16.0",
    "tokenizers==0.23.3",
    "xgboost-cpu==3.2.0",
];

/// Tests that need the frameworks of the conformance checks.
const FRAMEWORKS: &str = "tests/test_frameworks.py";

/// Installs the environment of `cargo xtask test`.
pub(crate) fn environment(workspace: &Workspace) -> Result<Python> {
    Python::install(workspace, "pack", &PACKAGES)
}

/// Runs the tests that need scikit-learn.
pub(crate) fn test(workspace: &Workspace, host: &Path) -> Result<()> {
    let python = environment(workspace)?;
    let ignored = format!("--ignore={FRAMEWORKS}");
    run::shown(&mut pytest(workspace, host, &python, &ignored))
}

/// Installs the package as a user does, checks its types, and runs the tests of all frameworks.
pub(crate) fn check(workspace: &Workspace, host: &Path) -> Result<()> {
    let packages: Vec<_> = PACKAGES.iter().chain(&MORE_PACKAGES).copied().collect();
    let python = Python::install(workspace, "pack-frameworks", &packages)?;
    let mut types = python.run("mypy");
    let cache = workspace.output().join("mypy");
    run::shown(types.current_dir(workspace.python_package()).arg("--cache-dir").arg(cache))?;
    let mut install = python.run("python");
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    install.args(["--no-deps", "--no-build-isolation", "--force-reinstall"]);
    run::shown(install.arg(workspace.python_package()))?;
    let mut help = python.run("guesthouse-pack");
    run::output(help.args(["golden", "--help"]))?;
    run::shown(&mut pytest(workspace, host, &python, FRAMEWORKS))
}

fn pytest(workspace: &Workspace, host: &Path, python: &Python, argument: &str) -> Command {
    let mut pytest = python.run("pytest");
    pytest
        .current_dir(workspace.python_package())
        .args(["-q", "-rs", argument])
        .env("PYTHONPATH", workspace.python_package().join("src"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env(environment::BIN, host)
        .env(environment::CACHE, workspace.cache());
    pytest
}
