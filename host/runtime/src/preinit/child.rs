//! The child process: sets its own limits, runs `init`, takes the snapshot, compiles it, and
//! reports.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal};
use wasmtime::Store;
use wasmtime::component::{Component, Instance};
use wasmtime_wizer::{WasmtimeWizerComponent, Wizer};

use super::cpu_time_limit::CpuTimeLimit;
use super::function_cache::FunctionCache;
use super::init_cache::InitCode;
use super::{ChildPriority, InstanceStart, PreinitError, PreinitReport};
use crate::guest::{
    self, Engine, EngineError, Fault, HostState, InstanceLimits, Model, NotInSnapshot, Phase,
};
use crate::priority;
use guesthouse_artifact::Artifact;
use guesthouse_model::Signature;
use guesthouse_model::terminal;

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
    /// Where to write the compiled code; without this, nothing is compiled
    #[arg(long)]
    output: Option<PathBuf>,
    /// Cached functions; the file need not exist
    #[arg(long)]
    functions: Option<PathBuf>,
    /// Where to write the functions to cache
    #[arg(long)]
    functions_output: Option<PathBuf>,
    /// The cached code for `init`; the file need not exist
    #[arg(long)]
    init_code: Option<PathBuf>,
    /// Where to write the code for `init` if it was not cached
    #[arg(long)]
    init_code_output: Option<PathBuf>,
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
    /// Limit of the size of a file
    #[arg(long)]
    file_bytes: u64,
    /// The scheduling priority
    #[arg(long)]
    priority: ChildPriority,
}

/// Pre-initialise the artifact and write the report to standard output.
///
/// # Errors
/// The report could not be written. Problems of the artifact are part of the report.
pub fn run(arguments: &ChildArguments) -> std::io::Result<()> {
    let outcome = limit_self(arguments)
        .map_err(|error| PreinitError::Host(format!("limits: {error}")))
        .and_then(|()| preinitialise(arguments));
    write_report(&outcome)
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

fn preinitialise(arguments: &ChildArguments) -> Result<PreinitReport, PreinitError> {
    let mut steps = StepTimes { last: Instant::now(), milliseconds: Vec::new() };
    let artifact = Artifact::open_draft(&arguments.artifact);
    let artifact = artifact.map_err(|error| PreinitError::Component(error.to_string()))?;
    steps.done("read");
    let (initialised, cache) = std::thread::scope(|scope| {
        // In parallel with `init`.
        let cache = scope.spawn(|| read_functions(arguments));
        let initialised = initialise(&Arc::new(artifact), arguments, &mut steps);
        (initialised, Arc::new(cache.join().unwrap_or_default()))
    });
    let Initialised { signature, component, start } = initialised?;
    let mut fingerprint = None;
    if let Some(output) = &arguments.output {
        fingerprint = Some(compile(&component, output, &cache, &mut steps)?);
    }
    if let Some(output) = &arguments.functions_output
        && cache.is_worth_writing()
    {
        write_functions(&cache, output);
        steps.done("keep functions");
    }
    let (steps_ms, peak_memory_bytes) = (steps.milliseconds, peak_memory_bytes());
    Ok(PreinitReport { signature, start, fingerprint, steps_ms, peak_memory_bytes })
}

/// The result of running `init`.
struct Initialised {
    signature: Signature,
    /// The component to compile.
    component: Vec<u8>,
    start: InstanceStart,
}

fn initialise(
    artifact: &Arc<Artifact>,
    arguments: &ChildArguments,
    steps: &mut StepTimes,
) -> Result<Initialised, PreinitError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| PreinitError::Host(error.to_string()))?;
    match runtime.block_on(snapshot(artifact, arguments, steps)) {
        Ok((signature, component)) => {
            Ok(Initialised { signature, component, start: InstanceStart::Snapshot })
        }
        Err(SnapshotFailure::Artifact(error)) => Err(error),
        Err(SnapshotFailure::Impossible(reason)) => {
            // Outside of the runtime, because the linked imports start one of their own.
            let signature = init_without_snapshot(artifact, arguments, steps)?;
            let (component, start) = (component_bytes(artifact)?, InstanceStart::Init(reason));
            Ok(Initialised { signature, component, start })
        }
    }
}

/// Read the cached functions. A cache that cannot be read only costs time.
fn read_functions(arguments: &ChildArguments) -> FunctionCache {
    let Some(path) = &arguments.functions else { return FunctionCache::default() };
    FunctionCache::read(path).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read compiled functions");
        FunctionCache::default()
    })
}

/// Write the functions to cache. A cache that cannot be written only costs time later.
fn write_functions(cache: &FunctionCache, output: &Path) {
    if let Err(error) = cache.write(output) {
        tracing::warn!(%error, "cannot keep compiled functions");
        // Remove an incomplete file; the parent ignores one that cannot be removed, because it does
        // not parse.
        let _ = std::fs::remove_file(output);
    }
}

/// Why no snapshot was taken.
enum SnapshotFailure {
    /// No snapshot of this component is possible, but it may work without one.
    Impossible(String),
    /// The artifact is unusable.
    Artifact(PreinitError),
}

impl From<PreinitError> for SnapshotFailure {
    fn from(error: PreinitError) -> Self {
        Self::Artifact(error)
    }
}

/// Run `init`. Returns the signature and, if it is to be compiled, the component with the memory
/// that `init` left.
async fn snapshot(
    artifact: &Arc<Artifact>,
    arguments: &ChildArguments,
    steps: &mut StepTimes,
) -> Result<(Signature, Vec<u8>), SnapshotFailure> {
    let none = |error: wasmtime::Error| SnapshotFailure::Impossible(one_line(&error));
    let engine = Engine::snapshotting(arguments.guest_stack_bytes).map_err(host_error)?;
    let mut wizer = Wizer::new();
    // Rust guests reference `init` in a table, so it cannot be removed.
    wizer.keep_init_func(true);
    let bare = component_bytes(artifact)?;
    let (context, instrumented) = wizer.instrument_component(&bare).map_err(none)?;
    steps.done("instrument");
    let code = InitCode {
        cached: arguments.init_code.as_deref(),
        output: arguments.init_code_output.as_deref(),
    };
    let component = code.load(&engine, &instrumented).map_err(unusable)?;
    drop(instrumented);
    steps.done("compile for init");
    let linker = guest::linker(&engine, &component, Phase::Snapshot).map_err(unusable)?;
    let mut store = init_store(&engine, artifact, arguments);
    let limit = limit_start(arguments)?;
    let instance = linker.instantiate_async(&mut store, &component).await;
    limit.end();
    let instance = instance.map_err(|error| instantiation_failure(&store, &error))?;
    let signature = init(&mut store, &instance)?;
    steps.done("init");
    if arguments.output.is_none() {
        return Ok((signature, Vec::new()));
    }
    let mut access = WasmtimeWizerComponent { store: &mut store, instance };
    let snapshot = wizer.snapshot_component(&context, &mut access).await.map_err(none)?;
    steps.done("snapshot");
    Ok((signature, snapshot))
}

/// Run `init` as each instance will run it. Returns the signature.
fn init_without_snapshot(
    artifact: &Arc<Artifact>,
    arguments: &ChildArguments,
    steps: &mut StepTimes,
) -> Result<Signature, PreinitError> {
    let engine = Engine::snapshotting(arguments.guest_stack_bytes).map_err(host_error)?;
    let component =
        Component::new(engine.wasmtime(), component_bytes(artifact)?).map_err(unusable)?;
    steps.done("compile for init alone");
    let linker = guest::linker(&engine, &component, Phase::Serve).map_err(unusable)?;
    let mut store = init_store(&engine, artifact, arguments);
    let limit = limit_start(arguments)?;
    let instance = linker.instantiate(&mut store, &component);
    limit.end();
    let instance = instance.map_err(|error| instantiation_failure(&store, &error));
    let outcome = instance.and_then(|instance| init(&mut store, &instance));
    steps.done("init alone");
    match outcome {
        Ok(signature) => Ok(signature),
        Err(SnapshotFailure::Artifact(error)) => Err(error),
        Err(SnapshotFailure::Impossible(reason)) => Err(PreinitError::Trap(reason)),
    }
}

fn component_bytes(artifact: &Artifact) -> Result<Vec<u8>, PreinitError> {
    artifact.component().map_err(|error| file_error("reading the artifact", &error))
}

fn init_store(
    engine: &Engine,
    artifact: &Arc<Artifact>,
    arguments: &ChildArguments,
) -> Store<HostState> {
    let version = Arc::new(artifact.id().clone());
    let memory_bytes = arguments.guest_memory_bytes;
    let limits = InstanceLimits { memory_bytes, ..InstanceLimits::default() };
    let state = HostState::new(version, &limits, Some(Arc::clone(artifact)));
    let mut store = Store::new(engine.wasmtime(), state);
    store.limiter(HostState::limiter);
    // Taking a snapshot transfers whole memories as lists.
    store.set_hostcall_fuel(usize::MAX);
    store
}

/// Limit the CPU time of `start` functions, which run during instantiation.
fn limit_start(arguments: &ChildArguments) -> Result<CpuTimeLimit, PreinitError> {
    let limit = CpuTimeLimit::begin(Duration::from_secs(arguments.start_seconds), |time| {
        let what = format!("{} s of CPU time for `start` functions", time.as_secs());
        // If this fails, the parent has exited.
        let _ = write_report(&Err(PreinitError::Limit(what)));
    });
    limit.map_err(|error| PreinitError::Host(format!("limits: {error}")))
}

/// Classify the error of an instantiation, in which `start` functions may fail like `init`.
fn instantiation_failure(store: &Store<HostState>, error: &wasmtime::Error) -> SnapshotFailure {
    if let Some(called) = error.downcast_ref::<NotInSnapshot>() {
        let called = shorten(&called.0);
        return SnapshotFailure::Impossible(format!("a `start` function calls `{called}`"));
    }
    match Fault::from_instantiation(error, store.data().memory_was_denied(), None) {
        Fault::OutOfMemory => PreinitError::OutOfMemory.into(),
        Fault::Host(_) => PreinitError::Component(one_line(error)).into(),
        _ => PreinitError::StartTrap(one_line(error)).into(),
    }
}

fn init(store: &mut Store<HostState>, instance: &Instance) -> Result<Signature, SnapshotFailure> {
    let guest = Model::new(&mut *store, instance).map_err(unusable)?;
    let declared = match guest.guesthouse_model_lifecycle().call_init(&mut *store) {
        Ok(Ok(signature)) => signature,
        Ok(Err(reason)) => return Err(PreinitError::Init(shorten(&reason)).into()),
        Err(error) => {
            if let Some(called) = error.downcast_ref::<NotInSnapshot>() {
                return Err(SnapshotFailure::Impossible(format!(
                    "init calls `{}`",
                    shorten(&called.0)
                )));
            }
            return Err(match Fault::from_call(&error, store.data().memory_was_denied(), None) {
                Fault::OutOfMemory => PreinitError::OutOfMemory.into(),
                _ => PreinitError::Trap(one_line(&error)).into(),
            });
        }
    };
    let signature = guest::signature_from_wit(declared);
    signature.check().map_err(|error| PreinitError::Component(error.to_string()))?;
    Ok(signature)
}

fn unusable(error: wasmtime::Error) -> PreinitError {
    PreinitError::Component(one_line(&error))
}

fn compile(
    component: &[u8],
    output: &Path,
    cache: &Arc<FunctionCache>,
    steps: &mut StepTimes,
) -> Result<String, PreinitError> {
    let engine = Engine::compiling(Arc::clone(cache) as _).map_err(host_error)?;
    let compiled = engine.wasmtime().precompile_component(component);
    let compiled = compiled.map_err(unusable)?;
    steps.done("compile");
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(output)?;
        file.write_all(&compiled)?;
        file.sync_all()
    };
    write().map_err(|error: std::io::Error| file_error("writing the compiled form", &error))?;
    steps.done("write");
    Ok(engine.fingerprint())
}

fn host_error(error: EngineError) -> PreinitError {
    PreinitError::Host(error.to_string())
}

fn file_error(what: &str, error: &std::io::Error) -> PreinitError {
    PreinitError::Host(format!("{what}: {error}"))
}

struct StepTimes {
    last: Instant,
    milliseconds: Vec<(String, u64)>,
}

impl StepTimes {
    fn done(&mut self, step: &str) {
        let taken = u64::try_from(self.last.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.push((step.to_owned(), taken));
        self.last = Instant::now();
    }
}

/// The chain of causes of an error in one line, without the backtrace.
fn one_line(error: &wasmtime::Error) -> String {
    let causes: Vec<_> = error
        .chain()
        .map(ToString::to_string)
        .filter(|cause| !cause.starts_with("error while executing at wasm backtrace"))
        .collect();
    shorten(&causes.join(": "))
}

/// Truncate and escape a text of the guest for logs and reports.
fn shorten(text: &str) -> String {
    let line: String = text.chars().take(500).collect();
    terminal::printable(&line.lines().map(str::trim).collect::<Vec<_>>().join(" "))
}

/// The peak memory according to the kernel; 0 if it is not known.
fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or(0) << 10
}
