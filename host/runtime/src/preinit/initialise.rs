//! The work of pre-initialisation: runs `init`, takes the snapshot and compiles it. The child process does
//! this within its limits; an embedding program may do it in its own process.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guesthouse_artifact::Artifact;
use guesthouse_model::{Signature, terminal};
use wasmtime::Store;
use wasmtime::component::{Component, Instance};
use wasmtime_wizer::{WasmtimeWizerComponent, Wizer};

use super::cpu_time_limit::CpuTimeLimit;
use super::function_cache::FunctionCache;
use super::init_cache::InitCode;
use super::{CompileFiles, InstanceStart, PreinitError, PreinitReport};
use crate::guest::{
    self, Backend, Engine, EngineError, Fault, HostState, InstanceLimits, Model, NotInSnapshot,
    Phase,
};

/// A pre-initialisation.
pub(super) struct Preinitialisation<'a> {
    /// The artifact, which may be a draft.
    pub(super) artifact: &'a Path,
    /// The files to read and write; `None` if only the signature is needed.
    pub(super) files: Option<&'a CompileFiles>,
    /// The limit of the guest's linear memory, in bytes.
    pub(super) guest_memory_bytes: usize,
    /// The limit of the guest's call stack, in bytes.
    pub(super) guest_stack_bytes: usize,
    /// The instructions of the arithmetic that the guest is granted.
    pub(super) arithmetic: Option<Backend>,
    /// Whether calls of the compiled code can be interrupted.
    pub(super) interruptible: bool,
    /// The limit of `start` functions; it ends the process, so only a child has one.
    pub(super) start_limit: Option<StartLimit>,
}

/// The limit of the CPU time of `start` functions.
#[derive(Clone, Copy)]
pub(super) struct StartLimit {
    pub(super) time: Duration,
    /// Called before the process exits because the limit is exceeded.
    pub(super) report: fn(PreinitError),
}

/// Pre-initialise an artifact.
pub(super) fn run(task: &Preinitialisation<'_>) -> Result<PreinitReport, PreinitError> {
    let mut steps = StepTimes { last: Instant::now(), milliseconds: Vec::new() };
    let artifact = Artifact::open_draft(task.artifact);
    let artifact = artifact.map_err(|error| PreinitError::Component(error.to_string()))?;
    let imports_arithmetic = artifact.imports_arithmetic();
    steps.done("read");
    let (initialised, cache) = std::thread::scope(|scope| {
        // In parallel with `init`.
        let cache = scope.spawn(|| read_functions(task));
        let initialised = initialise(&Arc::new(artifact), task, &mut steps);
        (initialised, Arc::new(cache.join().unwrap_or_default()))
    });
    let Initialised { signature, component, start } = initialised?;
    let mut fingerprint = None;
    if let Some(files) = task.files {
        fingerprint =
            Some(compile(&component, &files.compiled, task.interruptible, &cache, &mut steps)?);
    }
    if let Some(files) = task.files
        && cache.is_worth_writing()
    {
        write_functions(&cache, &files.functions_output);
        steps.done("keep functions");
    }
    let arithmetic = task.arithmetic.is_some() && imports_arithmetic;
    let (steps_ms, peak_memory_bytes) = (steps.milliseconds, peak_memory_bytes());
    Ok(PreinitReport { signature, start, arithmetic, fingerprint, steps_ms, peak_memory_bytes })
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
    task: &Preinitialisation<'_>,
    steps: &mut StepTimes,
) -> Result<Initialised, PreinitError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| PreinitError::Host(error.to_string()))?;
    match runtime.block_on(snapshot(artifact, task, steps)) {
        Ok((signature, component)) => {
            Ok(Initialised { signature, component, start: InstanceStart::Snapshot })
        }
        Err(SnapshotFailure::Artifact(error)) => Err(error),
        Err(SnapshotFailure::Impossible(reason)) => {
            // Outside of the runtime, because the linked imports start one of their own.
            let signature = init_without_snapshot(artifact, task, steps)?;
            let (component, start) = (component_bytes(artifact)?, InstanceStart::Init(reason));
            Ok(Initialised { signature, component, start })
        }
    }
}

/// Read the cached functions. A cache that cannot be read only costs time.
fn read_functions(task: &Preinitialisation<'_>) -> FunctionCache {
    let Some(files) = task.files else { return FunctionCache::default() };
    FunctionCache::read(&files.functions).unwrap_or_else(|error| {
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
    task: &Preinitialisation<'_>,
    steps: &mut StepTimes,
) -> Result<(Signature, Vec<u8>), SnapshotFailure> {
    let none = |error: wasmtime::Error| SnapshotFailure::Impossible(one_line(&error));
    let engine = Engine::snapshotting(task.guest_stack_bytes).map_err(host_error)?;
    let mut wizer = Wizer::new();
    // Rust guests reference `init` in a table, so it cannot be removed.
    wizer.keep_init_func(true);
    let bare = component_bytes(artifact)?;
    let (context, instrumented) = wizer.instrument_component(&bare).map_err(none)?;
    steps.done("instrument");
    let code = InitCode {
        cached: task.files.map(|files| &*files.init_code),
        output: task.files.map(|files| &*files.init_code_output),
    };
    let component = code.load(&engine, &instrumented).map_err(unusable)?;
    drop(instrumented);
    steps.done("compile for init");
    let linker = guest::linker(&engine, &component, Phase::Snapshot).map_err(unusable)?;
    let mut store = init_store(&engine, artifact, task);
    let limit = limit_start(task)?;
    let instance = linker.instantiate_async(&mut store, &component).await;
    limit.into_iter().for_each(CpuTimeLimit::end);
    let instance = instance.map_err(|error| instantiation_failure(&store, &error))?;
    let signature = init(&mut store, &instance)?;
    steps.done("init");
    if task.files.is_none() {
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
    task: &Preinitialisation<'_>,
    steps: &mut StepTimes,
) -> Result<Signature, PreinitError> {
    let engine = Engine::snapshotting(task.guest_stack_bytes).map_err(host_error)?;
    let component =
        Component::new(engine.wasmtime(), component_bytes(artifact)?).map_err(unusable)?;
    steps.done("compile for init alone");
    let linker = guest::linker(&engine, &component, Phase::Serve).map_err(unusable)?;
    let mut store = init_store(&engine, artifact, task);
    let limit = limit_start(task)?;
    let instance = linker.instantiate(&mut store, &component);
    limit.into_iter().for_each(CpuTimeLimit::end);
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
    task: &Preinitialisation<'_>,
) -> Store<HostState> {
    let version = Arc::new(artifact.id().clone());
    let (memory_bytes, arithmetic) = (task.guest_memory_bytes, task.arithmetic);
    let limits = InstanceLimits { memory_bytes, arithmetic, ..InstanceLimits::default() };
    let state = HostState::new(version, &limits, Some(Arc::clone(artifact)), Arc::default());
    let mut store = Store::new(engine.wasmtime(), state);
    store.limiter(HostState::limiter);
    // Taking a snapshot transfers whole memories as lists.
    store.set_hostcall_fuel(usize::MAX);
    store
}

/// Limit the CPU time of `start` functions, which run during instantiation.
fn limit_start(task: &Preinitialisation<'_>) -> Result<Option<CpuTimeLimit>, PreinitError> {
    let Some(StartLimit { time, report }) = task.start_limit else { return Ok(None) };
    let limit = CpuTimeLimit::begin(time, move |time| {
        let what = format!("{} s of CPU time for `start` functions", time.as_secs());
        report(PreinitError::Limit(what));
    });
    limit.map(Some).map_err(|error| PreinitError::Host(format!("limits: {error}")))
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
    interruptible: bool,
    cache: &Arc<FunctionCache>,
    steps: &mut StepTimes,
) -> Result<String, PreinitError> {
    let engine = Engine::compiling(Arc::clone(cache) as _, interruptible).map_err(host_error)?;
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
