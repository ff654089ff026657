//! The `guesthouse` command.
#![expect(clippy::print_stdout, reason = "a command talks to the person who runs it")]

mod commands;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory as _, Parser, Subcommand};
use guesthouse_model::terminal;
use guesthouse_runtime::preinit::child;
use guesthouse_server::observe::logs::{self, WriteMode};

/// Logs a line for each request.
const SERVER_FILTER: &str = "info";

/// Leaves the terminal to what a command prints.
const COMMAND_FILTER: &str = "warn";

/// A model server whose model versions are sandboxed WebAssembly components.
#[derive(Debug, Parser)]
#[command(name = "guesthouse", version, propagate_version = true)]
struct Arguments {
    /// The log filter: a level, or levels by target, such as `info,request=warn`. By default `info` for
    /// `serve`, and `warn` for the other commands.
    #[arg(long, global = true, env = logs::FILTER_VARIABLE)]
    log: Option<String>,
    /// The format of the log. By default, text on a terminal and JSON elsewhere.
    #[arg(long, global = true, env = logs::FORMAT_VARIABLE)]
    log_format: Option<logs::LogFormat>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models over HTTP and gRPC: those of a repository folder, and those that operators deploy.
    Serve(commands::serve::ServeArguments),
    /// Check a configuration.
    #[command(subcommand)]
    Config(commands::serve::ConfigCommand),
    /// Make a folder with a model to start from, which can be built, tested and packed as it is.
    New(commands::new::NewArguments),
    /// Make an artifact: one `.wasm` file of a component, its assets and its golden examples.
    Pack(commands::pack::PackArguments),
    /// Print the contents of an artifact.
    Inspect(commands::inspect::InspectArguments),
    /// Run the golden examples of an artifact in every policy of isolation, with and without the host's
    /// arithmetic; compare it with recorded outputs; measure its latency and memory.
    Verify(commands::verify::VerifyArguments),
    /// Predict for rows in JSON, for files or for a folder of files: with an artifact in this process, or
    /// with a model of a server.
    Predict(commands::predict::PredictArguments),
    /// Print the `.proto` of the gRPC service that a server derives from an artifact's signature.
    Proto(commands::proto::ProtoArguments),
    /// Compare two versions of a model: does the version number grow as much as the changes of the
    /// signature require?
    Check(commands::check::CheckArguments),
    #[command(flatten)]
    Operate(commands::operate::OperateCommand),
    /// Print a completion script for a shell.
    Completions(commands::completions::CompletionsArguments),
    /// Print the manual page.
    Man(commands::man::ManArguments),
    /// Print a part of the reference documentation.
    #[command(hide = true)]
    Reference(commands::reference::ReferenceArguments),
    #[command(name = child::SUBCOMMAND, hide = true)]
    PreinitChild(child::ChildArguments),
}

fn main() -> ExitCode {
    let started = Instant::now();
    let arguments = Arguments::parse();
    let (writing, default_filter) = match arguments.command {
        Command::Serve(_) => (WriteMode::Queued, SERVER_FILTER),
        Command::Config(_)
        | Command::New(_)
        | Command::Pack(_)
        | Command::Inspect(_)
        | Command::Verify(_)
        | Command::Predict(_)
        | Command::Proto(_)
        | Command::Check(_)
        | Command::Operate(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Reference(_)
        | Command::PreinitChild(_) => (WriteMode::Direct, COMMAND_FILTER),
    };
    // An empty variable counts as unset.
    let filter = arguments.log.as_deref().map(str::trim).filter(|filter| !filter.is_empty());
    let filter = filter.unwrap_or(default_filter);
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
            // If standard error is closed, there is nowhere else to report it.
            let line = format!("error: {}\n", terminal::reason(&format!("{error:#}")));
            let _ = logs.writer().write_all(line.as_bytes());
            commands::exit_code::of(&error)
        }
    }
}

fn run(command: Command, started: Instant) -> anyhow::Result<()> {
    match command {
        Command::Serve(arguments) => commands::serve::run(&arguments, started),
        Command::Config(command) => commands::serve::config(&command),
        Command::New(arguments) => commands::new::run(&arguments),
        Command::Pack(arguments) => commands::pack::run(&arguments),
        Command::Inspect(arguments) => commands::inspect::run(&arguments),
        Command::Verify(arguments) => commands::verify::run(&arguments),
        Command::Predict(arguments) => commands::predict::run(&arguments),
        Command::Proto(arguments) => commands::proto::run(&arguments),
        Command::Check(arguments) => commands::check::run(&arguments),
        Command::Operate(command) => commands::operate::run(&command),
        Command::Completions(arguments) => {
            commands::completions::run(&arguments, Arguments::command())
        }
        Command::Man(arguments) => commands::man::run(&arguments, Arguments::command()),
        Command::Reference(arguments) => commands::reference::run(&arguments, Arguments::command()),
        Command::PreinitChild(arguments) => Ok(child::run(&arguments)?),
    }
}
