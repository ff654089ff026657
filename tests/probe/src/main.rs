//! `probe`: what benchmarks need to know of compiled versions that only a process knows that has
//! mapped them, and what they need of processes that takes a program of its own.
//!
//! It uses the host as a library and does what a server does, without the server: [`loaded`] finds
//! and maps a version, [`instances`], [`memory`] and [`isolation`] measure it and print JSON. What
//! the figures are held against is none of its business.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its result")]

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
    /// The time that making and dropping an instance takes.
    Instances {
        #[command(flatten)]
        version: VersionArguments,
        /// How many instances are made of each kind.
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        count: u32,
    },
    /// The memory that this process has with one instance and with many.
    Memory {
        #[command(flatten)]
        version: VersionArguments,
        /// How many instances there are in the end.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=1000))]
        count: u32,
    },
    /// What a call takes on a new instance and on a used one.
    Isolation {
        #[command(flatten)]
        version: VersionArguments,
        /// How many calls are made on each of them.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        count: u32,
    },
    /// Keep one core busy, for a while or until the parent process ends.
    Spin {
        /// For how long at most.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
    },
    /// Become another program, which ends when the parent process does.
    Become {
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Which version, and where its compiled form is.
#[derive(Args)]
struct VersionArguments {
    /// The artifact.
    #[arg(long)]
    artifact: PathBuf,
    /// The state folder of a server that has compiled it and does not run any more.
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
        Task::Isolation { version, count } => isolation::measure(&version.load(2)?, count)?,
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
