//! `cargo xtask`: the project's own commands, and the only ones a contributor or CI needs.
//!
//! This file is the table of contents: the command line and what each command does, step by step.
//! How a step works is in the modules, in the order a reader should meet them: [`run`] (child
//! processes), [`workspace`] (where things are), [`toolchain`] (the guests' compilation target),
//! [`guests`], [`pack`], [`lint`], [`docs`], [`fuzz`], [`conformance`], [`bench`]. What the built programs do is none of its business, except
//! for how fast they do it.

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
mod pack;
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

/// What integration tests read to find the programs and files built for them.
mod environment {
    /// The host program, built in the dev profile.
    pub(crate) const BIN: &str = "GUESTHOUSE_BIN";
    /// The folder with every guest component, one `<plugin>.wasm` each.
    pub(crate) const GUESTS: &str = "GUESTHOUSE_GUESTS";
    /// The folder with the models' sources.
    pub(crate) const MODELS: &str = "GUESTHOUSE_MODELS";
    /// The folder with the packed artifacts, one `<model>-<version>.wasm` each.
    pub(crate) const REPOSITORY: &str = "GUESTHOUSE_REPOSITORY";
}

/// Tests end the host, or fill its disk, at any change of a file.
const FAILPOINTS: [&str; 2] = ["--features", "guesthouse/failpoints"];

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Make sure that the compilation target of the guests is installed.
    Setup,
    /// Build every guest.
    Guests,
    /// Build the host and the models' guests, and pack every model version into an artifact.
    Pack,
    /// Build and pack everything, then serve the demonstration models.
    Demo {
        /// The address to serve on.
        #[arg(long, default_value = "127.0.0.1:8000")]
        listen: String,
    },
    /// Build and pack everything, then run the tests.
    Test {
        /// Arguments for `cargo test`.
        #[arg(last = true)]
        extra: Vec<OsString>,
    },
    /// Check formatting, lints and licences.
    Lint,
    /// Check the documentation, run the commands of its tutorials, and build the book.
    Docs(docs::Options),
    /// Run every reader of bytes from outside on inputs that are made up, and look for those that break it.
    Fuzz(fuzz::Options),
    /// Ask others' tools, which are installed for it, about the server and what comes with it.
    Conformance(conformance::Options),
    /// Build everything in release mode, measure it and compare the figures with their bars.
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// The server: how fast it starts, answers, and how much it does in a second.
    Serve(bench::Options),
    /// The runtime: instances, isolation, deadlines, deployments, and what bystanders feel.
    Runtime(bench::runtime::Options),
    /// Versions that change while they are asked: swaps, rollbacks, shares, shadows, crashes.
    Versions(bench::versions::Options),
    /// The public edge: too many requests, and callers that are slow, silent or never stay.
    Edge(bench::edge::Options),
    /// What protocols cost, and what it brings that requests share calls of a guest.
    Protocols(bench::protocols::Options),
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
    // Every task needs the target, and nothing else is of use without it.
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
        Task::Fuzz(options) => fuzz::run(&Workspace::load()?, &options),
        Task::Bench { bench: Bench::Serve(options) } => bench_serve(&options.absolute()?),
        Task::Bench { bench: Bench::Runtime(options) } => bench_runtime(&options.absolute()?),
        Task::Bench { bench: Bench::Versions(options) } => bench_versions(&options.absolute()?),
        Task::Bench { bench: Bench::Edge(options) } => bench_edge(&options.absolute()?),
        Task::Bench { bench: Bench::Protocols(options) } => bench_protocols(&options.absolute()?),
    }
}

fn build_guests(workspace: &Workspace) -> Result<()> {
    guests::build(workspace, &workspace.guests)
}

fn build_and_pack(workspace: &Workspace) -> Result<()> {
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
    // Replacing this process hands signals and the exit status over without any code of ours.
    Err(serve.exec()).context("failed to start the server")
}

/// Builds and packs what tests and outside tools look at; the host program.
fn build_for_tests(workspace: &Workspace) -> Result<PathBuf> {
    // The same selection of packages and targets as `cargo test` below, so that both agree on the
    // features of every dependency and none is compiled twice.
    run::shown(
        run::cargo().args(["build", "--locked", "--bin", "guesthouse", "--tests"]).args(FAILPOINTS),
    )?;
    build_guests(workspace)?;
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

/// Builds everything and runs the tests, with a further variable in their environment if one is given.
fn test(workspace: &Workspace, extra: &[OsString], variable: Option<(&str, &str)>) -> Result<()> {
    let host = build_for_tests(workspace)?;

    run::shown(
        run::cargo()
            .args(["test", "--locked"])
            .args(FAILPOINTS)
            .args(extra)
            .envs(variable)
            .env(environment::BIN, host)
            .env(environment::GUESTS, workspace.components())
            .env(environment::MODELS, workspace.models())
            .env(environment::REPOSITORY, workspace.repository()),
    )
}

fn bench_serve(options: &bench::Options) -> Result<()> {
    let workspace = Workspace::load()?;
    build_and_pack(&workspace)?;
    run::shown(run::cargo().args(["build", "--locked", "--release", "--package", "load"]))?;
    bench::finish(&bench::serve::measure(&workspace, options.seconds)?, options)
}

fn bench_runtime(options: &bench::runtime::Options) -> Result<()> {
    let workspace = build_for_bench()?;
    let (figures, outcome) = bench::runtime::measure(&workspace, options)?;
    bench::finish(&figures, &options.general)?;
    outcome
}

fn bench_versions(options: &bench::versions::Options) -> Result<()> {
    let workspace = build_for_bench()?;
    let (figures, outcome) = bench::versions::measure(&workspace, options)?;
    bench::finish(&figures, &options.general)?;
    outcome
}

fn bench_edge(options: &bench::edge::Options) -> Result<()> {
    let workspace = build_for_bench()?;
    guests::build(&workspace, &["identity".to_owned()])?;
    let (figures, outcome) = bench::edge::measure(&workspace, options)?;
    bench::finish(&figures, &options.general)?;
    outcome
}

fn bench_protocols(options: &bench::protocols::Options) -> Result<()> {
    let workspace = build_for_bench()?;
    build_guests(&workspace)?;
    let (figures, outcome) = bench::protocols::measure(&workspace, options)?;
    bench::finish(&figures, &options.general)?;
    outcome
}

/// Builds what benchmarks need that disturb servers.
fn build_for_bench() -> Result<Workspace> {
    let workspace = Workspace::load()?;
    build_and_pack(&workspace)?;
    guests::build(&workspace, &["misbehave".to_owned()])?;
    for package in ["load", "probe"] {
        run::shown(run::cargo().args(["build", "--locked", "--release", "--package", package]))?;
    }
    Ok(workspace)
}
