//! The child process: sets its own limits, runs `init`, takes the snapshot, compiles it, and
//! reports.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal};

use super::initialise::{self, Preinitialisation, StartLimit};
use super::{ChildPriority, CompileFiles, PreinitError, PreinitReport};
use crate::guest::Backend;
use crate::priority;

/// The hidden subcommand of the program that runs the child.
pub const SUBCOMMAND: &str = "preinit-child";

/// The niceness of a child.
const NICENESS: i32 = 10;

/// The child's command line.
#[derive(Debug, clap::Args)]
pub struct ChildArguments {
    /// The artifact; it may be a draft without a signature
    #[arg(long)]
    artifact: PathBuf,
    /// Where to write the compiled code; with the four paths below, or none of them
    #[arg(long)]
    output: Option<PathBuf>,
    /// Cached functions; the file need not exist
    #[arg(long)]
    functions: Option<PathBuf>,
    /// Where to write the functions to cache
    #[arg(long)]
    functions_output: Option<PathBuf>,
    /// The folder with compiled modules
    #[arg(long)]
    modules: Option<PathBuf>,
    /// The folder to create for modules that are compiled now
    #[arg(long)]
    modules_output: Option<PathBuf>,
    /// Limit of CPU time
    #[arg(long)]
    cpu_seconds: u64,
    /// Limit of CPU time for `start` functions
    #[arg(long)]
    start_seconds: u64,
    /// Limit of private writable memory
    #[arg(long)]
    memory_bytes: u64,
    /// Limit of the guest's linear memory
    #[arg(long)]
    guest_memory_bytes: usize,
    /// Limit of the guest's call stack
    #[arg(long)]
    guest_stack_bytes: usize,
    /// Grant the guest arithmetic with these instructions
    #[arg(long, value_parser = parse_backend)]
    arithmetic: Option<Backend>,
    /// Limit of the size of a file
    #[arg(long)]
    file_bytes: u64,
    /// The scheduling priority
    #[arg(long)]
    priority: ChildPriority,
}

impl ChildArguments {
    /// The files of a compilation, if all of them are given.
    fn files(&self) -> Option<CompileFiles> {
        Some(CompileFiles {
            compiled: self.output.clone()?,
            functions: self.functions.clone()?,
            functions_output: self.functions_output.clone()?,
            modules: self.modules.clone()?,
            modules_output: self.modules_output.clone()?,
        })
    }
}

/// Pre-initialise the artifact and write the report to standard output.
///
/// # Errors
/// The report could not be written. Problems of the artifact are part of the report.
pub fn run(arguments: &ChildArguments) -> std::io::Result<()> {
    let outcome = limit_self(arguments)
        .map_err(|error| PreinitError::Host(format!("limits: {error}")))
        .and_then(|()| initialise(arguments));
    write_report(&outcome)
}

fn parse_backend(name: &str) -> Result<Backend, String> {
    let found = Backend::ALL.into_iter().find(|backend| backend.name() == name);
    found.ok_or_else(|| "there are no such instructions".to_owned())
}

fn write_report(outcome: &Result<PreinitReport, PreinitError>) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, outcome)?;
    stdout.flush()
}

fn limit_self(arguments: &ChildArguments) -> rustix::io::Result<()> {
    let between = |resource, current, maximum| {
        let limit = Rlimit { current: Some(current), maximum: Some(maximum) };
        rustix::process::setrlimit(resource, limit)
    };
    let set = |resource, limit| between(resource, limit, limit);
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    set(Resource::Core, 0)?;
    // SIGXCPU at the soft limit, by which the parent recognises it; SIGKILL at the hard limit.
    between(Resource::Cpu, arguments.cpu_seconds, arguments.cpu_seconds.saturating_add(5))?;
    // Not the address space, of which wasmtime reserves far more than it uses.
    set(Resource::Data, arguments.memory_bytes)?;
    set(Resource::Fsize, arguments.file_bytes)?;
    set(Resource::Nofile, 64)?;
    if arguments.priority == ChildPriority::Idle
        && let Err(error) = priority::use_idle_scheduling()
    {
        tracing::warn!(%error, "cannot use idle priority, continuing with low priority");
    }
    // Has an effect only without the idle scheduling policy.
    rustix::process::nice(NICENESS)?;
    Ok(())
}

fn initialise(arguments: &ChildArguments) -> Result<PreinitReport, PreinitError> {
    let files = arguments.files();
    initialise::run(&Preinitialisation {
        artifact: &arguments.artifact,
        files: files.as_ref(),
        guest_memory_bytes: arguments.guest_memory_bytes,
        guest_stack_bytes: arguments.guest_stack_bytes,
        arithmetic: arguments.arithmetic,
        interruptible: true,
        start_limit: Some(StartLimit {
            time: Duration::from_secs(arguments.start_seconds),
            // If this fails, the parent has exited.
            report: |error| drop(write_report(&Err(error))),
        }),
    })
}
