//! The `guesthouse` command.
#![expect(clippy::print_stdout, reason = "a command talks to the person who runs it")]

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use guesthouse::observe::logs;
use guesthouse::preinit::child;
use guesthouse::terminal;

/// A model server whose model versions are sandboxed WebAssembly components.
#[derive(Debug, Parser)]
#[command(name = "guesthouse", version, propagate_version = true)]
struct Arguments {
    /// What to log: a level, or levels by target, such as `info,request=warn`.
    #[arg(long, global = true, env = logs::FILTER_VARIABLE, default_value = "info")]
    log: String,
    /// How to log; text on a terminal and JSON elsewhere, if left out.
    #[arg(long, global = true, env = logs::FORMAT_VARIABLE)]
    log_format: Option<logs::Format>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve every artifact of a repository folder over HTTP.
    Serve(commands::serve::ServeArguments),
    /// Make an artifact: one `.wasm` file of a component, its assets and its golden examples.
    Pack(commands::pack::PackArguments),
    /// Print everything about an artifact without serving it.
    Inspect(commands::inspect::InspectArguments),
    #[command(name = child::SUBCOMMAND, hide = true)]
    PreinitChild(child::ChildArguments),
}

fn main() -> ExitCode {
    let started = std::time::Instant::now();
    let arguments = Arguments::parse();
    let outcome = logs::start(&arguments.log, arguments.log_format)
        .map_err(|error| anyhow::anyhow!("--log: {error}"))
        .and_then(|()| match arguments.command {
            Command::Serve(arguments) => commands::serve::run(&arguments, started),
            Command::Pack(arguments) => commands::pack::run(&arguments),
            Command::Inspect(arguments) => commands::inspect::run(&arguments),
            Command::PreinitChild(arguments) => Ok(child::run(&arguments)?),
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", terminal::reason(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}
