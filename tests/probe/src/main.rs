//! `probe`: measures compiled versions from inside the process that maps them, and provides helper
//! processes for benchmarks.
//!
//! It uses the host as a library and does what a server does, without the server: [`loaded`] finds
//! and maps a version, and [`instances`], [`memory`] and [`isolation`] measure it and print JSON. [`infer`] runs the cases of
//! the performance benchmark.
//! The benchmarks compare the figures with their bars.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its result")]

mod arithmetic;
mod infer;
mod instances;
mod isolation;
mod loaded;
mod memory;
mod process;
mod statistics;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Measures compiled versions from inside a process.
#[derive(Parser)]
#[command(name = "probe")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure how long creating and dropping an instance takes.
    Instances {
        #[command(flatten)]
        version: VersionArguments,
        /// The number of instances of each kind.
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        count: u32,
    },
    /// Measure the memory of this process with one instance and with many.
    Memory {
        #[command(flatten)]
        version: VersionArguments,
        /// The number of instances at the end.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=1000))]
        count: u32,
    },
    /// Measure a call on a new instance and on a reused one.
    Isolation {
        #[command(flatten)]
        version: VersionArguments,
        /// The number of calls of each kind.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        count: u32,
    },
    /// Measure a call of the host's arithmetic, and the interruption of a long one.
    Arithmetic {
        #[command(flatten)]
        version: VersionArguments,
        /// The number of interrupted operations of each kind.
        #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
    },
    /// Answer requests for measurements of cases on the standard input.
    Infer {
        /// The folder of models and cases.
        #[arg(long)]
        models: PathBuf,
        /// The folder of the models' artifacts.
        #[arg(long)]
        artifacts: PathBuf,
        /// A state folder, which is created if it is absent.
        #[arg(long)]
        state: PathBuf,
    },
    /// Keep one core busy until the time is over or the parent process ends.
    Spin {
        /// The time limit in seconds.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
    },
    /// Execute another program, which is killed when the parent process ends.
    Become {
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// The version and its compiled code.
#[derive(Args)]
struct VersionArguments {
    /// The artifact.
    #[arg(long)]
    artifact: PathBuf,
    /// The state folder of a stopped server that has compiled it.
    #[arg(long)]
    state: PathBuf,
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
    let figures = match task {
        Task::Instances { version, count } => instances::measure(&version.load(1)?, count)?,
        Task::Memory { version, count } => memory::measure(&version.load(count)?, count)?,
        Task::Arithmetic { version, count } => arithmetic::measure(&version.load(2)?, count)?,
        Task::Isolation { version, count } => isolation::measure(&version.load(2)?, count)?,
        Task::Infer { models, artifacts, state } => {
            return infer::answer(&models, &artifacts, &state);
        }
        Task::Spin { seconds } => return process::spin(seconds),
        Task::Become { command } => return process::become_other(&command),
    };
    println!("{figures}");
    Ok(())
}

impl VersionArguments {
    fn load(&self, instances: u32) -> Result<loaded::Loaded> {
        loaded::Loaded::open(&self.artifact, &self.state, instances)
    }
}
