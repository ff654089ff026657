//! From an artifact to compiled code with `init` already run.
//!
//! Everything that a hostile artifact could make expensive happens in a child process: validating,
//! running `init`, taking the snapshot, compiling. The child has limits on memory, CPU time, file
//! size and wall time, runs at low priority and dies with its parent. The parent takes nothing but
//! the report and one file; who may load that file is left to `store`.

pub mod child;
mod function_cache;
mod governor;
mod init_cache;
pub mod queue;
mod time_limit;

use std::io::Read;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::governor::Governor;
use crate::guest::DEFAULT_START_TIME;
use guesthouse_model::Signature;

/// The longest report that is read from a child, in bytes; a signature is far smaller.
const MAX_REPORT_BYTES: u64 = 16 << 20;

/// What one child may use. The defaults hold for models up to a few hundred megabytes; a file limit
/// of 4 GiB leaves room for the image of the largest memory.
#[derive(Debug, Clone, Copy)]
pub struct PreinitLimits {
    /// Time on all cores together until the child is killed. A guest with tract takes 25 s.
    pub cpu_time: Duration,
    /// Part of that which the `start` functions of the guest's modules may take, before `init`.
    pub start_time: Duration,
    /// Real time until the child is killed. Longer than the CPU time by far, because the child gets
    /// what a busy machine leaves.
    pub wall_time: Duration,
    /// Private writable memory of the child, in bytes: Cranelift takes about 1 GiB for a guest
    /// with tract, the guest's own memory comes on top.
    pub memory_bytes: u64,
    /// Linear memory of the guest, in bytes.
    pub guest_memory_bytes: usize,
    /// Call stack of the guest, in bytes.
    pub guest_stack_bytes: usize,
    /// The largest file that the child may write, in bytes.
    pub file_bytes: u64,
    /// Who goes first.
    pub priority: Priority,
}

/// How much less urgent than everything else the work of the child is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// It has what nobody else wants, gives way at once, and has only half of the cores while requests
    /// are served. A machine that is busy all the time never gets to it.
    Idle,
    /// It has a tenth of what others have, and what they leave, on all cores; who wakes up may wait
    /// for a few milliseconds.
    Low,
}

impl Priority {
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
            file_bytes: 4 << 30,
            priority: Priority::Low,
        }
    }
}

/// How the instances of a version begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// In the state of a snapshot that was taken after `init`: in microseconds, sharing its memory.
    Snapshot,
    /// By running `init`, each for itself, because there can be no snapshot; the text says why.
    Init(String),
}

/// What a child found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreinitReport {
    /// What the guest's `init` declared.
    pub signature: Signature,
    /// How instances begin.
    pub start: Start,
    /// Which engines can run the compiled form; none if none was asked for.
    pub fingerprint: Option<String>,
    /// Time of each step, in milliseconds.
    pub steps_ms: Vec<(String, u64)>,
    /// The most memory that the child had, in bytes.
    pub peak_memory_bytes: u64,
}

/// An artifact could not be pre-initialised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreinitError {
    /// The guest's `init` said no.
    #[error("init failed: {0}")]
    Init(String),
    /// The guest broke down before `init`.
    #[error("a `start` function trapped: {0}")]
    StartTrap(String),
    /// The guest broke down in `init`.
    #[error("init trapped: {0}")]
    Trap(String),
    /// The guest wanted more memory, in `init` or before, than it may have.
    #[error("init ran out of memory")]
    OutOfMemory,
    /// The component cannot be used: it does not validate, link or compile.
    #[error("the component is unusable: {0}")]
    Component(String),
    /// The child was ended so that others have their turn; it will have another one.
    #[error("pre-initialisation gave way to others")]
    Yielded,
    /// The child was over a limit on what the artifact may cost.
    #[error("pre-initialisation exceeded its limit of {0}")]
    Limit(String),
    /// The child did not end in time, which on a busy machine need not be the artifact's fault.
    #[error("pre-initialisation exceeded its limit of {0} s of real time")]
    WallTime(u64),
    /// Somebody else than this host ended the child: a person, a supervisor, or the kernel.
    #[error("pre-initialisation was killed by signal {0} from outside{hint}", hint = kill_hint(*.0))]
    Killed(i32),
    /// The child broke down without saying why.
    #[error("pre-initialisation broke down: {0}")]
    Crashed(String),
    /// The child could not be run: the host's own trouble.
    #[error("pre-initialisation could not be run: {0}")]
    Host(String),
}

/// What the child is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Goal<'a> {
    /// The signature alone: `init` is run and forgotten. For `pack`.
    Signature,
    /// The compiled form.
    Compiled(&'a CompileFiles),
}

/// Where the child finds and leaves what it compiles.
#[derive(Debug, Clone)]
pub struct CompileFiles {
    /// Where the compiled form goes; there must be no such file.
    pub compiled: PathBuf,
    /// Functions that an earlier child compiled; there may be no such file.
    pub functions: PathBuf,
    /// Where those that are worth keeping go; there is no such file if that fails.
    pub functions_output: PathBuf,
    /// The code for `init` that an earlier child compiled; there may be no such file.
    pub init_code: PathBuf,
    /// Where it goes if there was none; there is no such file if that fails.
    pub init_code_output: PathBuf,
}

/// What a child is watched by while it works.
pub struct Watch<'a> {
    /// Whether requests are served: then a child of idle priority leaves half of the cores to them.
    pub is_serving: &'a dyn Fn() -> bool,
    /// Whether the child has to end for the sake of others.
    pub must_yield: &'a dyn Fn() -> bool,
    /// The environment of the child, which inherits nothing else.
    pub environment: &'a dyn Fn() -> Vec<(&'static str, String)>,
}

/// Why a child did not come to its end.
enum Stopped {
    TimeIsUp,
    Yielded,
}

/// Run `init` of the artifact in a child process.
///
/// # Errors
/// [`PreinitError`]; nothing is left behind but perhaps a part of the output file.
pub fn run(
    artifact: &Path,
    goal: Goal<'_>,
    limits: &PreinitLimits,
    watch: &Watch<'_>,
) -> Result<PreinitReport, PreinitError> {
    let host = |error: std::io::Error| PreinitError::Host(error.to_string());
    let mut child = command(artifact, goal, limits, (watch.environment)())
        .map_err(host)?
        .spawn()
        .map_err(host)?;
    let hold_back = || limits.priority == Priority::Idle && (watch.is_serving)();
    let report = read_report(&mut child, limits.wall_time, &hold_back, watch.must_yield);
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
        Err(_) => Err(died(status, limits)),
    }
}

fn command(
    artifact: &Path,
    goal: Goal<'_>,
    limits: &PreinitLimits,
    environment: Vec<(&'static str, String)>,
) -> std::io::Result<Command> {
    // The program that runs now, even if an upgrade has replaced or removed its file: another one would
    // compile for another engine.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(std::env::current_exe()?);
    command.env_clear().envs(environment);
    command.arg(child::SUBCOMMAND).arg("--artifact").arg(artifact);
    if let Goal::Compiled(files) = goal {
        command.arg("--output").arg(&files.compiled);
        command.arg("--functions").arg(&files.functions);
        command.arg("--functions-output").arg(&files.functions_output);
        command.arg("--init-code").arg(&files.init_code);
        command.arg("--init-code-output").arg(&files.init_code_output);
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
    command.arg("--priority").arg(limits.priority.as_str());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    Ok(command)
}

/// What the child wrote until it closed its standard output, unless it has to be stopped.
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
        // A failed read leaves a report that does not parse, which the caller notices.
        let _ = stdout.take(MAX_REPORT_BYTES).read_to_end(&mut report);
        let _ = sender.send(report);
    });
    let deadline = Instant::now() + wall_time;
    let mut governor = Governor::new(child.id());
    loop {
        governor.govern(hold_back());
        match receiver.recv_timeout(governor::INTERVAL) {
            Ok(report) => return Ok(report),
            Err(RecvTimeoutError::Timeout) if must_yield() => return Err(Stopped::Yielded),
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            Err(_) => return Err(Stopped::TimeIsUp),
        }
    }
}

/// Signals by which a process is ended from outside: SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGPIPE, SIGALRM
/// and SIGTERM on every Linux. The child sends itself none of them.
const SENT_FROM_OUTSIDE: [i32; 7] = [1, 2, 3, SIGKILL, 13, 14, 15];

/// What the kernel ends a process with when the machine runs out of memory.
const SIGKILL: i32 = 9;

/// Why a child ended without a report.
fn died(status: ExitStatus, limits: &PreinitLimits) -> PreinitError {
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
        // Rust aborts when an allocation fails, and for other reasons; the child cannot say which.
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

    /// What is said of a child that ended with this wait status.
    fn said_of(status: i32) -> PreinitError {
        died(ExitStatus::from_raw(status), &PreinitLimits::default())
    }

    #[test]
    fn a_limit_is_only_blamed_where_the_kernel_says_so() {
        for signal in [1, 2, 9, 15] {
            assert_eq!(said_of(signal), PreinitError::Killed(signal));
        }
        for signal in [24, 25] {
            assert!(matches!(said_of(signal), PreinitError::Limit(_)), "{signal}");
        }
        // An abort, a crash of the compiler, and an exit by a panic.
        for status in [6, 7, 11, 101 << 8] {
            assert!(matches!(said_of(status), PreinitError::Crashed(_)), "{status}");
        }
    }
}
