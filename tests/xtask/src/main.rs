//! `cargo xtask`: the commands that contributors and CI use.
//!
//! This file is the command line and the steps of each command. The modules, in the order in which
//! to read them: [`run`] (child processes), [`workspace`] (folders and packages), [`toolchain`] (the
//! guests' compilation target), [`guests`], [`pack`], [`python`], [`python_package`], [`operators`],
//! [`lint`], [`docs`], [`fuzz`], [`conformance`], [`bench`].

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program that reports its progress"
)]

mod bench;
mod conformance;
mod docs;
mod fuzz;
mod guests;
mod lint;
mod operators;
mod pack;
mod python;
mod python_package;
mod run;
mod toolchain;
mod workspace;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::workspace::{Profile, Workspace};

/// The environment variables through which tests find programs and files.
mod environment {
    /// The host program in the dev profile.
    pub(crate) const BIN: &str = "GUESTHOUSE_BIN";
    /// The folder of the guest components, named `<plugin>.wasm`.
    pub(crate) const GUESTS: &str = "GUESTHOUSE_GUESTS";
    /// The folder of the models' sources.
    pub(crate) const MODELS: &str = "GUESTHOUSE_MODELS";
    /// The folder of the packed artifacts, named `<model>-<version>.wasm`.
    pub(crate) const REPOSITORY: &str = "GUESTHOUSE_REPOSITORY";
    /// The folder with compiled code that runs of `guesthouse pack --onnx` share.
    pub(crate) const CACHE: &str = "GUESTHOUSE_CACHE";
    /// The folder of the programs of a Python environment with scikit-learn.
    pub(crate) const PYTHON: &str = "GUESTHOUSE_PYTHON";
}

/// Tests kill the host or fail its writes at any file operation.
const FAILPOINTS: [&str; 2] = ["--features", "guesthouse/failpoints"];

/// Builds, tests, checks and measures this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the compilation target of the guests.
    Setup,
    /// Build all guests.
    Guests,
    /// Build the host and the guests of the models, and pack all models.
    Pack,
    /// Build and pack everything, and serve the demo models.
    Demo {
        /// The address of the public listener.
        #[arg(long, default_value = "127.0.0.1:8000")]
        listen: String,
    },
    /// Build and pack everything, and run the tests.
    Test {
        /// Arguments of `cargo test`.
        #[arg(last = true)]
        extra: Vec<OsString>,
    },
    /// Check formatting, lints and licences.
    Lint,
    /// Check the documentation, run the commands of its tutorials, and build the book.
    Docs(docs::Options),
    /// Fuzz every parser of bytes from outside.
    Fuzz(fuzz::Options),
    /// Run ONNX's tests of its operators, and compare with those that passed before.
    Operators(operators::Options),
    /// Check the server and its packaging with third-party tools.
    Conformance(conformance::Options),
    /// Build in release mode, measure, and compare the figures with their bars.
    Bench {
        #[command(subcommand)]
        benchmark: bench::Benchmark,
    },
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    // Every task needs the target.
    toolchain::ensure_target()?;
    match task {
        Task::Setup => Ok(()),
        Task::Guests => build_guests(&Workspace::load()?),
        Task::Pack => build_and_pack(&Workspace::load()?),
        Task::Demo { listen } => demo(&Workspace::load()?, &listen),
        Task::Test { extra } => test(&Workspace::load()?, &extra, None),
        Task::Lint => lint::check(&Workspace::load()?),
        Task::Docs(options) => docs(&Workspace::load()?, &options),
        Task::Conformance(options) => conform(&Workspace::load()?, &options),
        Task::Operators(options) => operators::check(&Workspace::load()?, &options),
        Task::Fuzz(options) => fuzz::run(&Workspace::load()?, &options),
        Task::Bench { benchmark } => benchmark.run(),
    }
}

fn build_guests(workspace: &Workspace) -> Result<()> {
    guests::build(workspace, &workspace.guests)
}

fn build_and_pack(workspace: &Workspace) -> Result<()> {
    guests::build(workspace, &[guests::IN_HOST.to_owned()])?;
    run::shown(run::cargo().args(["build", "--locked", "--release", "--package", "guesthouse"]))?;
    let models = pack::models(workspace)?;
    guests::build(workspace, &pack::guests_of(&models))?;
    pack::pack(workspace, &models, &workspace.host_binary(Profile::Release))
}

fn demo(workspace: &Workspace, listen: &str) -> Result<()> {
    build_and_pack(workspace)?;
    let mut serve = Command::new(workspace.host_binary(Profile::Release));
    serve
        .args(["serve", "--demo", "--config", "models/demo.toml"])
        .arg("--repository")
        .arg(workspace.repository())
        .arg("--state")
        .arg(workspace.state())
        .args(["--listen", listen]);
    // Replacing this process passes on signals and the exit status.
    Err(serve.exec()).context("failed to start the server")
}

/// Builds and packs everything for tests and conformance checks; returns the host program.
fn build_for_tests(workspace: &Workspace) -> Result<PathBuf> {
    guests::build(workspace, &[guests::IN_HOST.to_owned()])?;
    // The same packages and targets as `cargo test`, so that both builds select the same features
    // of all dependencies and nothing is compiled twice.
    run::shown(
        run::cargo().args(["build", "--locked", "--bin", "guesthouse", "--tests"]).args(FAILPOINTS),
    )?;
    let tested = workspace.guests.iter().filter(|guest| *guest != guests::OF_BENCHMARK).cloned();
    guests::build(workspace, &tested.collect::<Vec<_>>())?;
    let host = workspace.host_binary(Profile::Dev);
    pack::pack(workspace, &pack::models(workspace)?, &host)?;
    Ok(host)
}

fn conform(workspace: &Workspace, options: &conformance::Options) -> Result<()> {
    let host = build_for_tests(workspace)?;
    conformance::check(workspace, &host, options)
}

fn docs(workspace: &Workspace, options: &docs::Options) -> Result<()> {
    test(workspace, &docs::tests(), options.variables())?;
    docs::build(workspace)
}

/// Builds everything and runs the tests, with `variable` in their environment.
fn test(workspace: &Workspace, extra: &[OsString], variable: Option<(&str, &str)>) -> Result<()> {
    if extra.is_empty() {
        // Natively, and without optimising tract, which would take minutes.
        run::shown(run::cargo().args(["test", "--locked", "--profile", "xtask"]).args([
            "--package",
            "guesthouse-guest",
            "--package",
            "onnx",
        ]))?;
        operators::check(workspace, &operators::Options::default())?;
    }
    let host = build_for_tests(workspace)?;
    let python = python_package::environment(workspace)?;
    run::shown(
        run::cargo()
            .args(["test", "--locked"])
            .args(FAILPOINTS)
            .args(extra)
            .envs(variable)
            .env(environment::BIN, &host)
            .env(environment::GUESTS, workspace.components())
            .env(environment::MODELS, workspace.models())
            .env(environment::REPOSITORY, workspace.repository())
            .env(environment::PYTHON, python.programs())
            .env(environment::CACHE, workspace.cache()),
    )?;
    if extra.is_empty() { python_package::test(workspace, &host) } else { Ok(()) }
}
