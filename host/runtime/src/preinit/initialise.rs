//! The work of pre-initialisation: runs `init`, takes the snapshot and compiles it. The child process does
//! this within its limits; an embedding program may do it in its own process.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guesthouse_artifact::Artifact;
use guesthouse_model::Signature;
use wasmtime::component::{Component, Instance, WasmList};
use wasmtime::{Module, Store};

use super::compiler::Compiler;
use super::cpu_time_limit::CpuTimeLimit;
use super::errors::{file_error, one_line, shorten, unusable};
use super::function_cache::FunctionCache;
use super::split::{SplitComponent, Unsplittable};
use super::{CompileFiles, InstanceStart, PreinitError, PreinitReport};
use crate::guest::{
    self, Backend, Engine, Fault, HostState, InstanceLimits, Model, NotInSnapshot, Phase,
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
    let artifact = Arc::new(artifact.map_err(|error| PreinitError::Component(error.to_string()))?);
    let component = artifact.component();
    let component = component.map_err(|error| file_error("reading the artifact", &error))?;
    steps.done("read");
    let (cache, split) = std::thread::scope(|scope| {
        let cache = scope.spawn(|| read_functions(task));
        let split = SplitComponent::new(&component);
        (Arc::new(cache.join().unwrap_or_default()), split)
    });
    steps.done("split");
    let (files, stack) = (task.files, task.guest_stack_bytes);
    let compiler = Compiler::new(files, &cache, task.interruptible, stack)?;
    let mut work = Work { task, artifact: &artifact, compiler, steps };
    let (signature, start, modules) = match &split {
        Ok(split) => {
            let (signature, start) = work.initialise(split)?;
            (signature, start, split.digests().to_vec())
        }
        Err(reason) => {
            let component = work.compiler.component(&component)?;
            work.steps.done("compile");
            let signature = work.init_in_each(&component, &[])?;
            (signature, InstanceStart::Init(reason.to_string()), Vec::new())
        }
    };
    let Work { compiler, mut steps, .. } = work;
    if let Some(files) = task.files
        && cache.is_worth_writing()
    {
        write_functions(&cache, &files.functions_output);
        steps.done("keep functions");
    }
    let arithmetic = task.arithmetic.is_some() && artifact.imports_arithmetic();
    Ok(PreinitReport {
        signature,
        start,
        arithmetic,
        modules,
        fingerprint: compiler.fingerprint(),
        steps_ms: steps.milliseconds,
        peak_memory_bytes: peak_memory_bytes(),
    })
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

impl From<Unsplittable> for SnapshotFailure {
    fn from(error: Unsplittable) -> Self {
        Self::Impossible(error.to_string())
    }
}

/// A pre-initialisation under way.
struct Work<'a> {
    task: &'a Preinitialisation<'a>,
    artifact: &'a Arc<Artifact>,
    compiler: Compiler<'a>,
    steps: StepTimes,
}

impl Work<'_> {
    /// Run `init` and keep what it leaves, or else what each instance has to run. Returns the signature.
    fn initialise(
        &mut self,
        split: &SplitComponent<'_>,
    ) -> Result<(Signature, InstanceStart), PreinitError> {
        let modules = self.compiler.modules(split)?;
        self.steps.done("compile");
        match self.snapshot(split, &modules) {
            Ok((signature, component)) => {
                self.compiler.keep(&component)?;
                self.steps.done("compile state");
                Ok((signature, InstanceStart::Snapshot))
            }
            Err(SnapshotFailure::Artifact(error)) => Err(error),
            Err(SnapshotFailure::Impossible(reason)) => {
                let component = split.before_init().map_err(|reason| unsplittable(&reason))?;
                let component = self.compiler.component(&component)?;
                Ok((self.init_in_each(&component, &modules)?, InstanceStart::Init(reason)))
            }
        }
    }

    /// Run `init` and read the state that it leaves. Returns the signature and the component with this
    /// state.
    fn snapshot(
        &mut self,
        split: &SplitComponent<'_>,
        modules: &[Module],
    ) -> Result<(Signature, Vec<u8>), SnapshotFailure> {
        let component = self.compiler.component(&split.readable()?)?;
        self.steps.done("compile for init");
        let (mut store, instance) = self.instantiate(&component, modules, Phase::Snapshot)?;
        let signature = init(&mut store, &instance)?;
        self.steps.done("init");
        if self.task.files.is_none() {
            return Ok((signature, Vec::new()));
        }
        let snapshot = split.snapshot(|reader, read| {
            let impossible = |error: wasmtime::Error| SnapshotFailure::Impossible(one_line(&error));
            let reader = instance.get_typed_func::<(), (WasmList<u8>,)>(&mut store, reader);
            let (bytes,) =
                reader.and_then(|reader| reader.call(&mut store, ())).map_err(impossible)?;
            read(bytes.as_le_slice(&store));
            Ok::<_, SnapshotFailure>(())
        })?;
        drop(store);
        let component = split.after_init(snapshot)?;
        self.steps.done("snapshot");
        Ok((signature, component))
    }

    /// Run `init` as each instance will run it, and keep the component. Returns the signature.
    fn init_in_each(
        &mut self,
        component: &Component,
        modules: &[Module],
    ) -> Result<Signature, PreinitError> {
        let outcome = self
            .instantiate(component, modules, Phase::Serve)
            .and_then(|(mut store, instance)| init(&mut store, &instance));
        self.steps.done("init alone");
        match outcome {
            Ok(signature) => {
                self.compiler.keep_compiled(component)?;
                self.steps.done("write");
                Ok(signature)
            }
            Err(SnapshotFailure::Artifact(error)) => Err(error),
            Err(SnapshotFailure::Impossible(reason)) => Err(PreinitError::Trap(reason)),
        }
    }

    fn instantiate(
        &self,
        component: &Component,
        modules: &[Module],
        phase: Phase,
    ) -> Result<(Store<HostState>, Instance), SnapshotFailure> {
        let engine = self.compiler.engine();
        let mut linker = guest::linker(engine, component, phase).map_err(unusable)?;
        guest::link_modules(&mut linker, modules).map_err(unusable)?;
        let mut store = init_store(engine, self.artifact, self.task);
        let limit = limit_start(self.task)?;
        let instance = linker.instantiate(&mut store, component);
        limit.into_iter().for_each(CpuTimeLimit::end);
        match instance {
            Ok(instance) => Ok((store, instance)),
            Err(error) => Err(instantiation_failure(&store, &error)),
        }
    }
}

fn unsplittable(reason: &Unsplittable) -> PreinitError {
    PreinitError::Component(reason.to_string())
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
    // The limits of the process end `init`.
    store.set_epoch_deadline(u64::MAX >> 1);
    // Reading the state transfers whole memories as lists.
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

/// The duration of the steps so far.
struct StepTimes {
    last: Instant,
    milliseconds: Vec<(String, u64)>,
}

impl StepTimes {
    /// End a step.
    fn done(&mut self, step: &str) {
        let taken = u64::try_from(self.last.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.push((step.to_owned(), taken));
        self.last = Instant::now();
    }
}

/// The peak memory according to the kernel; 0 if it is not known.
fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or(0) << 10
}
