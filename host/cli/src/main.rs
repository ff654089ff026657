//! The `guesthouse` command.
#![expect(clippy::print_stdout, reason = "a command talks to the person who runs it")]

mod commands;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use guesthouse_model::terminal;
use guesthouse_runtime::preinit::child;
use guesthouse_server::observe::logs::{self, WriteMode};

/// Each request is a line at `info`.
const DEFAULT_FILTER: &str = "info";

/// A model server whose model versions are sandboxed WebAssembly components.
#[derive(Debug, Parser)]
#[command(name = "guesthouse", version, propagate_version = true)]
struct Arguments {
    /// What to log: a level, or levels by target, such as `info,request=warn`.
    #[arg(long, global = true, env = logs::FILTER_VARIABLE, default_value = DEFAULT_FILTER)]
    log: String,
    /// How to log; text on a terminal and JSON elsewhere, if left out.
    #[arg(long, global = true, env = logs::FORMAT_VARIABLE)]
    log_format: Option<logs::LogFormat>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve every artifact of a repository folder over HTTP.
    Serve(commands::serve::ServeArguments),
    /// Look at a configuration.
    #[command(subcommand)]
    Config(commands::serve::ConfigCommand),
    /// Make an artifact: one `.wasm` file of a component, its assets and its golden examples.
    Pack(commands::pack::PackArguments),
    /// Print everything about an artifact without serving it.
    Inspect(commands::inspect::InspectArguments),
    /// Print the `.proto` of the gRPC service that a server makes of an artifact's signature.
    Proto(commands::proto::ProtoArguments),
    /// Compare two versions of a model: is the step between their numbers as large as the one between
    /// their signatures?
    Check(commands::check::CheckArguments),
    #[command(flatten)]
    Operate(commands::operate::OperateCommand),
    #[command(name = child::SUBCOMMAND, hide = true)]
    PreinitChild(child::ChildArguments),
}

fn main() -> ExitCode {
    let started = Instant::now();
    let arguments = Arguments::parse();
    let writing = match arguments.command {
        Command::Serve(_) => WriteMode::Queued,
        Command::Config(_)
        | Command::Pack(_)
        | Command::Inspect(_)
        | Command::Proto(_)
        | Command::Check(_)
        | Command::Operate(_)
        | Command::PreinitChild(_) => WriteMode::Direct,
    };
    // A variable that is set to nothing counts as one that is not set.
    let filter = Some(arguments.log.trim()).filter(|filter| !filter.is_empty());
    let filter = filter.unwrap_or(DEFAULT_FILTER);
    let logs = match logs::init(filter, arguments.log_format, writing) {
        Ok(logs) => logs,
        Err(error) => {
            let variable = logs::FILTER_VARIABLE;
            let reason = terminal::reason(&error.to_string());
            eprintln!("error: failed to use --log or {variable}: {reason}");
            return ExitCode::FAILURE;
        }
    };
    match run(arguments.command, started) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever should read it may be gone, and there is nobody else to tell.
            let line = format!("error: {}\n", terminal::reason(&format!("{error:#}")));
            let _ = logs.writer().write_all(line.as_bytes());
            commands::operate::exit_code(&error)
        }
    }
}

fn run(command: Command, started: Instant) -> anyhow::Result<()> {
    match command {
        Command::Serve(arguments) => commands::serve::run(&arguments, started),
        Command::Config(command) => commands::serve::config(&command),
        Command::Pack(arguments) => commands::pack::run(&arguments),
        Command::Inspect(arguments) => commands::inspect::run(&arguments),
        Command::Proto(arguments) => commands::proto::run(&arguments),
        Command::Check(arguments) => commands::check::run(&arguments),
        Command::Operate(command) => commands::operate::run(&command),
        Command::PreinitChild(arguments) => Ok(child::run(&arguments)?),
    }
}
