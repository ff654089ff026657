//! The child process: limits itself, runs `init`, takes the snapshot, compiles, reports.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal};
use wasmtime::Store;
use wasmtime::component::{Component, Instance};
use wasmtime_wizer::{WasmtimeWizerComponent, Wizer};

use super::function_cache::FunctionCache;
use super::init_cache::InitCode;
use super::time_limit::TimeLimit;
use super::{PreinitError, PreinitReport, Priority, Start};
use crate::guest::{
    self, Engine, EngineError, Fault, HostState, InstanceLimits, Model, NotInSnapshot, Phase,
};
use crate::priority;
use guesthouse_artifact::Artifact;
use guesthouse_model::Signature;
use guesthouse_model::terminal;

/// The subcommand of the binary that is this child; not for people.
pub const SUBCOMMAND: &str = "preinit-child";

/// How much less urgent than serving the work of the child is, at low priority.
const NICENESS: i32 = 10;

/// The child's command line.
#[derive(Debug, clap::Args)]
pub struct ChildArguments {
    /// The artifact, which may be a draft.
    #[arg(long)]
    artifact: PathBuf,
    /// Where the compiled form goes; without it, nothing is compiled.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Functions that were compiled before; there need be no such file.
    #[arg(long)]
    functions: Option<PathBuf>,
    /// Where those and the new ones go.
    #[arg(long)]
    functions_output: Option<PathBuf>,
    /// The code for `init` that was compiled before; there need be no such file.
    #[arg(long)]
    init_code: Option<PathBuf>,
    /// Where it goes if there was none.
    #[arg(long)]
    init_code_output: Option<PathBuf>,
    /// Limit on CPU time.
    #[arg(long)]
    cpu_seconds: u64,
    /// Limit on the CPU time of `start` functions.
    #[arg(long)]
    start_seconds: u64,
    /// Limit on private writable memory.
    #[arg(long)]
    memory_bytes: u64,
    /// Limit on the guest's linear memory.
    #[arg(long)]
    guest_memory_bytes: usize,
    /// Limit on the guest's call stack.
    #[arg(long)]
    guest_stack_bytes: usize,
    /// Limit on the size of a file.
    #[arg(long)]
    file_bytes: u64,
    /// How urgent it is.
    #[arg(long)]
    priority: Priority,
}

/// Do the work and write the report to standard output.
///
/// # Errors
/// The report could not be written; what went wrong with the artifact is in the report.
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
    // SIGXCPU at the first, by which the parent knows what happened; SIGKILL at the second.
    between(Resource::Cpu, arguments.cpu_seconds, arguments.cpu_seconds.saturating_add(5))?;
    // Not the address space: wasmtime reserves far more of that than it ever touches.
    set(Resource::Data, arguments.memory_bytes)?;
    set(Resource::Fsize, arguments.file_bytes)?;
    set(Resource::Nofile, 64)?;
    if arguments.priority == Priority::Idle
        && let Err(error) = priority::give_way_to_all()
    {
        tracing::warn!(%error, "cannot have idle priority, going on with a low one");
    }
    // Counts where the policy of the kernel is not the idle one.
    rustix::process::nice(NICENESS)?;
    Ok(())
}

fn preinitialise(arguments: &ChildArguments) -> Result<PreinitReport, PreinitError> {
    let mut steps = Steps { last: Instant::now(), milliseconds: Vec::new() };
    let artifact = Artifact::open_draft(&arguments.artifact);
    let artifact = artifact.map_err(|error| PreinitError::Component(error.to_string()))?;
    steps.done("read");
    let (initialised, cache) = std::thread::scope(|scope| {
        // While `init` runs.
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
        keep_functions(&cache, output);
        steps.done("keep functions");
    }
    let (steps_ms, peak_memory_bytes) = (steps.milliseconds, peak_memory_bytes());
    Ok(PreinitReport { signature, start, fingerprint, steps_ms, peak_memory_bytes })
}

/// What `init` has made of an artifact.
struct Initialised {
    signature: Signature,
    /// To be compiled.
    component: Vec<u8>,
    start: Start,
}

fn initialise(
    artifact: &Arc<Artifact>,
    arguments: &ChildArguments,
    steps: &mut Steps,
) -> Result<Initialised, PreinitError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| PreinitError::Host(error.to_string()))?;
    match runtime.block_on(snapshot(artifact, arguments, steps)) {
        Ok((signature, component)) => {
            Ok(Initialised { signature, component, start: Start::Snapshot })
        }
        Err(Obstacle::Artifact(error)) => Err(error),
        Err(Obstacle::Snapshot(reason)) => {
            // Without the runtime: what it is linked to here starts one for itself.
            let signature = init_alone(artifact, arguments, steps)?;
            let (component, start) = (component_of(artifact)?, Start::Init(reason));
            Ok(Initialised { signature, component, start })
        }
    }
}

/// A cache that cannot be read costs time and nothing else.
fn read_functions(arguments: &ChildArguments) -> FunctionCache {
    let Some(path) = &arguments.functions else { return FunctionCache::default() };
    FunctionCache::read(path).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read compiled functions");
        FunctionCache::default()
    })
}

/// Nor does one that cannot be written.
fn keep_functions(cache: &FunctionCache, output: &Path) {
    if let Err(error) = cache.write(output) {
        tracing::warn!(%error, "cannot keep compiled functions");
        // Half a cache is none; and what cannot be removed is not taken by the parent either.
        let _ = std::fs::remove_file(output);
    }
}

/// Why there is no snapshot.
enum Obstacle {
    /// There can be none of this component, which may work all the same.
    Snapshot(String),
    /// The artifact cannot be used at all.
    Artifact(PreinitError),
}

impl From<PreinitError> for Obstacle {
    fn from(error: PreinitError) -> Self {
        Self::Artifact(error)
    }
}

/// Run `init`; the signature, and if asked for the component with the memory that `init` left.
async fn snapshot(
    artifact: &Arc<Artifact>,
    arguments: &ChildArguments,
    steps: &mut Steps,
) -> Result<(Signature, Vec<u8>), Obstacle> {
    let none = |error: wasmtime::Error| Obstacle::Snapshot(one_line(&error));
    let engine = Engine::snapshotting(arguments.guest_stack_bytes).map_err(host_error)?;
    let mut wizer = Wizer::new();
    // Rust guests keep `init` in a table, from which it cannot be removed.
    wizer.keep_init_func(true);
    let bare = component_of(artifact)?;
    let (context, instrumented) = wizer.instrument_component(&bare).map_err(none)?;
    steps.done("instrument");
    let code = InitCode {
        kept: arguments.init_code.as_deref(),
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
    let instance = instance.map_err(|error| not_instantiated(&store, &error))?;
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

/// Run `init` as each instance will: the signature.
fn init_alone(
    artifact: &Arc<Artifact>,
    arguments: &ChildArguments,
    steps: &mut Steps,
) -> Result<Signature, PreinitError> {
    let engine = Engine::snapshotting(arguments.guest_stack_bytes).map_err(host_error)?;
    let component = Component::new(engine.wasmtime(), component_of(artifact)?).map_err(unusable)?;
    steps.done("compile for init alone");
    let linker = guest::linker(&engine, &component, Phase::Serve).map_err(unusable)?;
    let mut store = init_store(&engine, artifact, arguments);
    let limit = limit_start(arguments)?;
    let instance = linker.instantiate(&mut store, &component);
    limit.end();
    let instance = instance.map_err(|error| not_instantiated(&store, &error));
    let outcome = instance.and_then(|instance| init(&mut store, &instance));
    steps.done("init alone");
    match outcome {
        Ok(signature) => Ok(signature),
        Err(Obstacle::Artifact(error)) => Err(error),
        Err(Obstacle::Snapshot(reason)) => Err(PreinitError::Trap(reason)),
    }
}

fn component_of(artifact: &Artifact) -> Result<Vec<u8>, PreinitError> {
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
    // A snapshot reads whole memories through lists.
    store.set_hostcall_fuel(usize::MAX);
    store
}

/// From here on, `start` functions run: before `init`, and perhaps for ever.
fn limit_start(arguments: &ChildArguments) -> Result<TimeLimit, PreinitError> {
    let limit = TimeLimit::begin(Duration::from_secs(arguments.start_seconds), |time| {
        let what = format!("{} s of CPU time for `start` functions", time.as_secs());
        // Nobody reads the report if the parent has gone.
        let _ = write_report(&Err(PreinitError::Limit(what)));
    });
    limit.map_err(|error| PreinitError::Host(format!("limits: {error}")))
}

/// Why there is no instance; `start` functions may have done what `init` can do.
fn not_instantiated(store: &Store<HostState>, error: &wasmtime::Error) -> Obstacle {
    if let Some(called) = error.downcast_ref::<NotInSnapshot>() {
        let called = shorten(&called.0);
        return Obstacle::Snapshot(format!("a `start` function calls `{called}`"));
    }
    match Fault::of_instantiation(error, store.data().memory_was_denied(), None) {
        Fault::OutOfMemory => PreinitError::OutOfMemory.into(),
        Fault::Host(_) => PreinitError::Component(one_line(error)).into(),
        _ => PreinitError::StartTrap(one_line(error)).into(),
    }
}

fn init(store: &mut Store<HostState>, instance: &Instance) -> Result<Signature, Obstacle> {
    let guest = Model::new(&mut *store, instance).map_err(unusable)?;
    let declared = match guest.guesthouse_model_lifecycle().call_init(&mut *store) {
        Ok(Ok(signature)) => signature,
        Ok(Err(reason)) => return Err(PreinitError::Init(shorten(&reason)).into()),
        Err(error) => {
            if let Some(called) = error.downcast_ref::<NotInSnapshot>() {
                return Err(Obstacle::Snapshot(format!("init calls `{}`", shorten(&called.0))));
            }
            return Err(match Fault::of_call(&error, store.data().memory_was_denied(), None) {
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
    steps: &mut Steps,
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

struct Steps {
    last: Instant,
    milliseconds: Vec<(String, u64)>,
}

impl Steps {
    fn done(&mut self, step: &str) {
        let taken = u64::try_from(self.last.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.push((step.to_owned(), taken));
        self.last = Instant::now();
    }
}

/// The causes of an error in one line, without the backtrace.
fn one_line(error: &wasmtime::Error) -> String {
    let causes: Vec<_> = error
        .chain()
        .map(ToString::to_string)
        .filter(|cause| !cause.starts_with("error while executing at wasm backtrace"))
        .collect();
    shorten(&causes.join(": "))
}

/// Guests' texts are cut: they end up in logs and reports.
fn shorten(text: &str) -> String {
    let line: String = text.chars().take(500).collect();
    terminal::printable(&line.lines().map(str::trim).collect::<Vec<_>>().join(" "))
}

/// The kernel's own account; 0 where there is none.
fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or(0) << 10
}
