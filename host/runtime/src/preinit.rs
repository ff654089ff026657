//! Pre-initialisation: compiles an artifact into native code in which `init` has already run.
//!
//! Everything that a malicious artifact could make expensive happens in a child process:
//! validation, running `init`, taking the snapshot, and compilation. The child has limits on
//! memory, CPU time, file size and wall time, runs at low priority, and is killed when its parent
//! dies. The parent only takes the report and the compiled files; which files may be loaded is
//! decided by `store`.

pub mod child;
mod compiler;
mod core_limit;
mod cpu_time_limit;
mod errors;
mod function_cache;
mod initialise;
pub mod queue;
mod split;

use std::io::Read;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::core_limit::CoreLimit;
use self::initialise::Preinitialisation;
use crate::guest::{Backend, DEFAULT_START_TIME, InstanceLimits};
use guesthouse_artifact::Digest;
use guesthouse_model::Signature;

/// The longest report that is read from a child, in bytes; a signature is much smaller.
const MAX_REPORT_BYTES: u64 = 16 << 20;

/// The limits of one child. The defaults suffice for models up to a few hundred megabytes; a file
/// limit of 4 GiB leaves room for the image of the largest memory.
#[derive(Debug, Clone, Copy)]
pub struct PreinitLimits {
    /// CPU time on all cores together. A guest with tract takes 25 s.
    pub cpu_time: Duration,
    /// The part of the CPU time that the guest's `start` functions may take, before `init`.
    pub start_time: Duration,
    /// Wall time. Much longer than the CPU time, because the child only gets what a busy machine
    /// leaves.
    pub wall_time: Duration,
    /// Private writable memory, in bytes. Cranelift takes about 1 GiB for a guest with tract, and
    /// the guest's own memory adds to it.
    pub memory_bytes: u64,
    /// Linear memory of the guest, in bytes.
    pub guest_memory_bytes: usize,
    /// Call stack of the guest, in bytes.
    pub guest_stack_bytes: usize,
    /// The instructions of the arithmetic that the guest is granted, or `None`.
    pub arithmetic: Option<Backend>,
    /// Whether calls of the compiled code can be interrupted. If not, which only [`run_in_process`]
    /// supports, it runs on [`Engines::uninterruptible`](crate::guest::Engines::uninterruptible).
    pub interruptible: bool,
    /// The size of the largest file that the child may write, in bytes.
    pub file_bytes: u64,
    /// The scheduling priority of the child.
    pub priority: ChildPriority,
}

/// The scheduling priority of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ChildPriority {
    /// The child only gets idle processor time and is preempted at once, and it is restricted to
    /// half of the cores while requests are served. On a machine without idle time it never
    /// finishes.
    Idle,
    /// The child gets about a tenth of the share of a normal process, and all idle time, on all
    /// cores. A thread that wakes up may wait for it for a few milliseconds.
    Low,
}

impl ChildPriority {
    fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Low => "low",
        }
    }
}

impl Default for PreinitLimits {
    fn default() -> Self {
        Self {
            cpu_time: Duration::from_secs(240),
            start_time: DEFAULT_START_TIME,
            wall_time: Duration::from_secs(3600),
            memory_bytes: 6 << 30,
            guest_memory_bytes: 1 << 30,
            guest_stack_bytes: 512 << 10,
            arithmetic: InstanceLimits::default().arithmetic,
            interruptible: true,
            file_bytes: 4 << 30,
            priority: ChildPriority::Low,
        }
    }
}

/// How the instances of a version start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceStart {
    /// From a snapshot that was taken after `init`: in microseconds, and sharing its memory.
    Snapshot,
    /// By running `init` in each instance, because no snapshot is possible; the text is the reason.
    Init(String),
}

/// The report of a child.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreinitReport {
    /// The signature that `init` returned.
    pub signature: Signature,
    /// How instances start.
    pub start: InstanceStart,
    /// Whether the guest imports arithmetic and `init` was granted it: its state may depend on that.
    // Left out if false, because the MAC of records that were written without it covers the text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub arithmetic: bool,
    /// The modules that the compiled code imports, which versions of one guest share.
    // Left out if empty, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<Digest>,
    /// The fingerprint of the engines that can run the compiled code; `None` if only the signature
    /// was requested.
    pub fingerprint: Option<String>,
    /// The duration of each step, in milliseconds.
    pub steps_ms: Vec<(String, u64)>,
    /// The peak memory of the child, in bytes.
    pub peak_memory_bytes: u64,
}

/// Why an artifact could not be pre-initialised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreinitError {
    /// The guest's `init` returned an error.
    #[error("init failed: {0}")]
    Init(String),
    /// A `start` function of the guest trapped, before `init`.
    #[error("a `start` function trapped: {0}")]
    StartTrap(String),
    /// The guest's `init` trapped.
    #[error("init trapped: {0}")]
    Trap(String),
    /// The guest exceeded its memory limit in `init` or a `start` function.
    #[error("init ran out of memory")]
    OutOfMemory,
    /// The component does not validate, link or compile.
    #[error("the component is unusable: {0}")]
    Component(String),
    /// The child was stopped in favour of other artifacts, and will be started again.
    #[error("pre-initialisation gave way to others")]
    Yielded,
    /// The child exceeded a limit.
    #[error("pre-initialisation exceeded its limit of {0}")]
    Limit(String),
    /// The child exceeded the limit of wall time, which on a busy machine may not be the artifact's
    /// fault.
    #[error("pre-initialisation exceeded its limit of {0} s of real time")]
    WallTime(u64),
    /// The child was killed by someone other than this host: a person, a supervisor, or the kernel.
    #[error("pre-initialisation was killed by signal {0} from outside{hint}", hint = kill_hint(*.0))]
    Killed(i32),
    /// The child crashed without a report.
    #[error("pre-initialisation broke down: {0}")]
    Crashed(String),
    /// The child could not be run: not the artifact's fault.
    #[error("pre-initialisation could not be run: {0}")]
    Host(String),
}

/// What the child has to produce.
#[derive(Debug, Clone, Copy)]
pub enum PreinitGoal<'a> {
    /// Only the signature, for packing: the state after `init` is discarded.
    Signature,
    /// The compiled code, in these files.
    Compiled(&'a CompileFiles),
}

/// The files that a child reads and writes.
#[derive(Debug, Clone)]
pub struct CompileFiles {
    /// Output: the compiled code. The file must not exist.
    pub compiled: PathBuf,
    /// Input: the functions that earlier children compiled. The file need not exist.
    pub functions: PathBuf,
    /// Output: the functions to keep. There is no such file if writing it fails or is not
    /// worthwhile.
    pub functions_output: PathBuf,
    /// Input: the folder with modules that were compiled before, by their digest.
    pub modules: PathBuf,
    /// Output: the folder for modules that are compiled now, likewise. The child creates it.
    pub modules_output: PathBuf,
}

/// The program of a child.
#[derive(Debug, Clone, Copy)]
pub enum ChildProgram<'a> {
    /// The running program, which handles [`child::SUBCOMMAND`].
    Current,
    /// A program `guesthouse` of the same release.
    At(&'a Path),
}

/// The program and the environment of a child, and the conditions that the parent checks while it runs.
pub struct PreinitHooks<'a> {
    /// The program of the child.
    pub program: ChildProgram<'a>,
    /// Whether requests are being served: then a child of idle priority is restricted to half of
    /// the cores.
    pub is_serving: &'a dyn Fn() -> bool,
    /// Whether the child has to stop in favour of other artifacts.
    pub must_yield: &'a dyn Fn() -> bool,
    /// The environment variables of the child, which inherits no others.
    pub environment: &'a dyn Fn() -> Vec<(&'static str, String)>,
}

/// Why the parent stopped a child.
enum Stopped {
    TimeIsUp,
    Yielded,
}

/// Run `init` of the artifact in a child process.
///
/// # Errors
/// [`PreinitError`]; output files may have been written partly.
pub fn run(
    artifact: &Path,
    goal: PreinitGoal<'_>,
    limits: &PreinitLimits,
    hooks: &PreinitHooks<'_>,
) -> Result<PreinitReport, PreinitError> {
    let host = |error: std::io::Error| PreinitError::Host(error.to_string());
    let mut child = command(artifact, goal, limits, hooks).map_err(host)?.spawn().map_err(host)?;
    let hold_back = || limits.priority == ChildPriority::Idle && (hooks.is_serving)();
    let report = read_report(&mut child, limits.wall_time, &hold_back, hooks.must_yield);
    if report.is_err() {
        child.kill().map_err(host)?;
    }
    let status = child.wait().map_err(host)?;
    let report = report.map_err(|stopped| match stopped {
        Stopped::TimeIsUp => PreinitError::WallTime(limits.wall_time.as_secs()),
        Stopped::Yielded => PreinitError::Yielded,
    })?;
    match serde_json::from_slice::<Result<PreinitReport, PreinitError>>(&report) {
        Ok(outcome) => outcome,
        Err(_) => Err(exit_error(status, limits)),
    }
}

/// The stack of the thread on which [`run_in_process`] works, in bytes: that of a process's main thread on
/// Linux, on which the compiler otherwise runs, besides the guest's own.
const COMPILER_STACK_BYTES: usize = 8 << 20;

/// Run `init` of the artifact in this process.
///
/// Only the limits of the guest's memory and call stack apply. Nothing bounds the time and the memory that the
/// compiler and `init` take, so the artifact must be trusted not to exhaust them; use [`run`] otherwise.
///
/// # Errors
/// [`PreinitError`]; output files may have been written partly.
pub fn run_in_process(
    artifact: &Path,
    goal: PreinitGoal<'_>,
    limits: &PreinitLimits,
) -> Result<PreinitReport, PreinitError> {
    let files = match goal {
        PreinitGoal::Signature => None,
        PreinitGoal::Compiled(files) => Some(files),
    };
    let (guest_memory_bytes, guest_stack_bytes) =
        (limits.guest_memory_bytes, limits.guest_stack_bytes);
    let task = Preinitialisation {
        artifact,
        files,
        guest_memory_bytes,
        guest_stack_bytes,
        arithmetic: limits.arithmetic,
        interruptible: limits.interruptible,
        start_limit: None,
    };
    // On a thread of its own, because the caller's may have a small stack, or be a worker of tokio.
    let thread = std::thread::Builder::new().name("preinit".to_owned());
    let thread = thread.stack_size(COMPILER_STACK_BYTES.saturating_add(guest_stack_bytes));
    std::thread::scope(|scope| {
        let work = thread.spawn_scoped(scope, || initialise::run(&task));
        let work = work.map_err(|error| PreinitError::Host(error.to_string()))?;
        work.join().unwrap_or_else(|_panic| Err(PreinitError::Crashed("a panic".to_owned())))
    })
}

fn command(
    artifact: &Path,
    goal: PreinitGoal<'_>,
    limits: &PreinitLimits,
    hooks: &PreinitHooks<'_>,
) -> std::io::Result<Command> {
    let mut command = match hooks.program {
        ChildProgram::Current => {
            // Even if an upgrade has replaced or removed its file: another version might compile for
            // a different engine.
            let mut command = Command::new("/proc/self/exe");
            command.arg0(std::env::current_exe()?);
            command
        }
        ChildProgram::At(program) => Command::new(program),
    };
    command.env_clear().envs((hooks.environment)());
    command.arg(child::SUBCOMMAND).arg("--artifact").arg(artifact);
    if let PreinitGoal::Compiled(files) = goal {
        command.arg("--output").arg(&files.compiled);
        command.arg("--functions").arg(&files.functions);
        command.arg("--functions-output").arg(&files.functions_output);
        command.arg("--modules").arg(&files.modules);
        command.arg("--modules-output").arg(&files.modules_output);
    }
    let mut limit = |name: &str, value: u64| {
        command.arg(name).arg(value.to_string());
    };
    limit("--cpu-seconds", limits.cpu_time.as_secs());
    limit("--start-seconds", limits.start_time.as_secs());
    limit("--memory-bytes", limits.memory_bytes);
    limit("--guest-memory-bytes", limits.guest_memory_bytes as u64);
    limit("--guest-stack-bytes", limits.guest_stack_bytes as u64);
    limit("--file-bytes", limits.file_bytes);
    if let Some(backend) = limits.arithmetic {
        command.arg("--arithmetic").arg(backend.name());
    }
    command.arg("--priority").arg(limits.priority.as_str());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    Ok(command)
}

/// Read what the child writes to its standard output, unless it has to be stopped first.
fn read_report(
    child: &mut Child,
    wall_time: Duration,
    hold_back: &dyn Fn() -> bool,
    must_yield: &dyn Fn() -> bool,
) -> Result<Vec<u8>, Stopped> {
    let stdout = child.stdout.take().expect("the command pipes standard output");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut report = Vec::new();
        // A failed read results in a report that does not parse, which the caller notices.
        let _ = stdout.take(MAX_REPORT_BYTES).read_to_end(&mut report);
        let _ = sender.send(report);
    });
    let deadline = Instant::now() + wall_time;
    let mut core_limit = CoreLimit::new(child.id());
    loop {
        core_limit.apply(hold_back());
        match receiver.recv_timeout(core_limit::INTERVAL) {
            Ok(report) => return Ok(report),
            Err(RecvTimeoutError::Timeout) if must_yield() => return Err(Stopped::Yielded),
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            Err(_) => return Err(Stopped::TimeIsUp),
        }
    }
}

/// Signals that are sent from outside: SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGPIPE, SIGALRM and
/// SIGTERM on every Linux. The child never sends these to itself.
const SENT_FROM_OUTSIDE: [i32; 7] = [1, 2, 3, SIGKILL, 13, 14, 15];

/// The signal with which the kernel kills a process when the machine runs out of memory.
const SIGKILL: i32 = 9;

/// The error for a child that exited without a report.
fn exit_error(status: ExitStatus, limits: &PreinitLimits) -> PreinitError {
    /// SIGABRT, SIGXCPU and SIGXFSZ on every Linux.
    const ABORT: i32 = 6;
    const CPU_TIME: i32 = 24;
    const FILE_SIZE: i32 = 25;
    match status.signal() {
        Some(CPU_TIME) => {
            PreinitError::Limit(format!("{} s of CPU time", limits.cpu_time.as_secs()))
        }
        Some(FILE_SIZE) => PreinitError::Limit(format!("a file of {} bytes", limits.file_bytes)),
        Some(signal) if SENT_FROM_OUTSIDE.contains(&signal) => PreinitError::Killed(signal),
        // Rust aborts when an allocation fails, but also for other reasons, and the child cannot
        // tell which.
        Some(ABORT) => PreinitError::Crashed(format!(
            "the child aborted (signal {ABORT}), as it does when memory is refused to it: it may have {} MiB",
            limits.memory_bytes >> 20
        )),
        Some(signal) => PreinitError::Crashed(format!("the child died of signal {signal}")),
        None => PreinitError::Crashed(format!("the child gave no report ({status})")),
    }
}

fn kill_hint(signal: i32) -> &'static str {
    if signal == SIGKILL { ", perhaps because the machine ran out of memory" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error for a child with this wait status.
    fn error_for(status: i32) -> PreinitError {
        exit_error(ExitStatus::from_raw(status), &PreinitLimits::default())
    }

    #[test]
    fn a_limit_is_only_blamed_if_its_signal_was_sent() {
        for signal in [1, 2, 9, 15] {
            assert_eq!(error_for(signal), PreinitError::Killed(signal));
        }
        for signal in [24, 25] {
            assert!(matches!(error_for(signal), PreinitError::Limit(_)), "{signal}");
        }
        // An abort, a crash of the compiler, and an exit because of a panic.
        for status in [6, 7, 11, 101 << 8] {
            assert!(matches!(error_for(status), PreinitError::Crashed(_)), "{status}");
        }
    }
}
