//! Runs the cases of the performance benchmark in guests.
//!
//! A variant is `reuse`, where all calls use one instance, or `fresh`, where each call has a new
//! instance, whose creation is measured with the call. Options follow after `+`: the name of a backend
//! executes the guest's arithmetic, by default the fastest one; `none` grants no arithmetic, so that
//! the guest computes by itself; `tract` takes the artifact that leaves the graph to tract; `free`
//! compiles the guest so that it cannot be interrupted; and `cores` lets large operations use idle
//! cores.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cases::{Caller, Case, Cases, Datatype};
use guesthouse_artifact::Artifact;
use guesthouse_model::Tensor;
use guesthouse_runtime::guest::{
    Backend, CompiledCode, EngineLimits, Engines, Instance, InstanceLimits, LoadedComponent,
    StopSignal,
};
use guesthouse_runtime::load::{self, grants_arithmetic};
use guesthouse_runtime::machine;
use guesthouse_runtime::preinit::{self, InstanceStart, PreinitLimits};
use guesthouse_runtime::store::{CompiledVersion, Store};

/// The time limit of a call.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// The memory of an instance. The largest model has 90 MB of weights, and `init` holds them twice.
const MEMORY_BYTES: usize = 1 << 30;

/// The instances of an engine: one for each case and variant.
const MAX_INSTANCES: u32 = 200;

/// Answers requests until the standard input ends.
pub(crate) fn answer(models: &Path, artifacts: &Path, state: &Path) -> Result<()> {
    let cases = Cases::open(models)?;
    let guests = Guests::new(artifacts, state)?;
    let open = |case: &Case, variant: &str| {
        let variant = Variant::parse(variant)?;
        let component = guests.load(&case.model, &variant)?;
        let (inputs, fresh) = (inputs(&cases, case)?, variant.fresh);
        let caller = Guest { component, inputs, fresh, instance: None, outputs: Vec::new() };
        Ok(Box::new(caller) as Box<dyn Caller>)
    };
    cases::answer(&cases, io::stdin().lock(), io::stdout().lock(), open)
}

/// How a guest runs.
#[derive(Debug, PartialEq, Eq)]
struct Variant {
    /// Whether each call has a new instance.
    fresh: bool,
    /// What executes the guest's arithmetic, if the host does.
    arithmetic: Option<Backend>,
    /// Whether the graph is left to tract.
    tract: bool,
    /// Whether a call can be interrupted.
    interruptible: bool,
    /// Whether large operations use idle cores.
    uses_idle_cores: bool,
}

impl Variant {
    fn parse(text: &str) -> Result<Self> {
        let (isolation, options) = text.split_once('+').unwrap_or((text, ""));
        let fresh = match isolation {
            "fresh" => true,
            "reuse" => false,
            _ => bail!("there is no variant {text:?}"),
        };
        let mut variant = Self {
            fresh,
            arithmetic: Some(Backend::fastest()),
            tract: false,
            interruptible: true,
            uses_idle_cores: false,
        };
        for option in options.split('+').filter(|option| !option.is_empty()) {
            match option {
                "none" => variant.arithmetic = None,
                "tract" => variant.tract = true,
                "free" => variant.interruptible = false,
                "cores" => variant.uses_idle_cores = true,
                _ => {
                    let backend = Backend::available().find(|it| it.name() == option);
                    let backend = backend.with_context(|| format!("no backend {option:?} here"))?;
                    variant.arithmetic = Some(backend);
                }
            }
        }
        Ok(variant)
    }

    /// The name of a state folder for compiled code of this kind.
    fn state(&self) -> String {
        let grant = if self.arithmetic.is_some() { "granted" } else { "refused" };
        let suffix = if self.interruptible { "" } else { "-free" };
        format!("{grant}{suffix}")
    }
}

/// Where artifacts and their compiled code are, and what runs it.
struct Guests {
    artifacts: PathBuf,
    state: PathBuf,
    limits: InstanceLimits,
    serving: Engines,
    /// Lets large operations use idle cores.
    on_idle_cores: Engines,
    free: Engines,
}

impl Guests {
    fn new(artifacts: &Path, state: &Path) -> Result<Self> {
        let limits = InstanceLimits { memory_bytes: MEMORY_BYTES, ..InstanceLimits::default() };
        let pool = EngineLimits {
            max_instances: MAX_INSTANCES,
            max_memory_bytes: limits.memory_bytes,
            use_idle_cores: false,
        };
        let serving = Engines::serving(pool, [limits.stack_bytes])?;
        let on_idle_cores = EngineLimits { use_idle_cores: true, ..pool };
        let on_idle_cores = Engines::serving(on_idle_cores, [limits.stack_bytes])?;
        let free = Engines::uninterruptible(pool, [limits.stack_bytes])?;
        let (artifacts, state) = (artifacts.to_owned(), state.to_owned());
        Ok(Self { artifacts, state, limits, serving, on_idle_cores, free })
    }

    /// Compiles a model unless it is compiled already, and maps its code.
    fn load(&self, model: &str, variant: &Variant) -> Result<LoadedComponent> {
        let suffix = if variant.tract { "-tract" } else { "" };
        let artifact = self.artifacts.join(format!("{model}{suffix}-1.0.0.wasm"));
        let artifact = Artifact::open(&artifact).context("failed to read the artifact")?;
        let limits = InstanceLimits { arithmetic: variant.arithmetic, ..self.limits };
        let engines = match variant {
            Variant { interruptible: false, .. } => &self.free,
            Variant { uses_idle_cores: true, .. } => &self.on_idle_cores,
            _ => &self.serving,
        };
        let store = Store::open(&self.state.join(variant.state()), engines.fingerprint())?;
        let compiled = match store.find(artifact.digest(), grants_arithmetic(&artifact, &limits))? {
            Some(compiled) => compiled,
            None => compile(&store, engines, &artifact, &limits, variant.interruptible)?,
        };
        ensure!(compiled.report.start == InstanceStart::Snapshot, "there is no snapshot");
        let (id, signature) = (artifact.id().clone(), compiled.report.signature.clone());
        let path = compiled.path();
        let code = CompiledCode { component: &path, modules: compiled.modules() };
        // SAFETY: the store has just checked the file against its MAC or has just written it, and the
        // path is that of the same file. The store never changes a file in place, and only this
        // process uses the folder.
        #[expect(unsafe_code, reason = "mapping native code that only the MAC vouches for")]
        let component = unsafe {
            let engine = engines.with_stack(limits.stack_bytes);
            LoadedComponent::map(engine, code, id, signature, limits)
        }?;
        Ok(component.with_share(machine::cores()))
    }
}

fn compile(
    store: &Store,
    engines: &Engines,
    artifact: &Artifact,
    limits: &InstanceLimits,
    interruptible: bool,
) -> Result<CompiledVersion> {
    let limits = PreinitLimits {
        guest_memory_bytes: limits.memory_bytes,
        guest_stack_bytes: limits.stack_bytes,
        arithmetic: limits.arithmetic,
        interruptible,
        ..PreinitLimits::default()
    };
    let compiled = load::compile::<anyhow::Error>(store, engines, artifact, |path, goal| {
        preinit::run_in_process(path, goal, &limits)
    });
    compiled.context("failed to compile the artifact")
}

/// The inputs of a case under the names of the signature.
fn inputs(cases: &Cases, case: &Case) -> Result<Vec<Tensor>> {
    let inputs = case.inputs.iter().map(|input| {
        let datatype = match input.datatype {
            Datatype::Fp32 => guesthouse_model::Datatype::Fp32,
            Datatype::Int64 => guesthouse_model::Datatype::Int64,
            Datatype::Bytes => guesthouse_model::Datatype::Bytes,
        };
        let shape = input.shape.iter().map(|size| *size as u64).collect();
        Ok(Tensor { name: input.name.clone(), datatype, shape, data: cases.bytes(input)?.into() })
    });
    inputs.collect()
}

struct Guest {
    component: LoadedComponent,
    inputs: Vec<Tensor>,
    fresh: bool,
    instance: Option<Instance>,
    outputs: Vec<Tensor>,
}

impl Caller for Guest {
    fn prepare(&mut self) -> Result<()> {
        if self.fresh {
            self.instance = None;
        }
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let stop = StopSignal::at_deadline(Instant::now() + CALL_LIMIT);
        let instance = match &mut self.instance {
            Some(instance) => instance,
            none => none.insert(self.component.instantiate(&stop).context("no instance")?),
        };
        self.outputs = instance.predict(&self.inputs, &stop).context("failed to predict")?;
        Ok(())
    }

    fn outputs(&self) -> Result<Vec<Vec<f32>>> {
        let numbers = |output: &&Tensor| output.datatype == guesthouse_model::Datatype::Fp32;
        let outputs = self.outputs.iter().filter(numbers);
        Ok(outputs.map(|output| cases::numbers(&output.data)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_have_an_isolation_and_options() {
        let reuse = Variant::parse("reuse").unwrap();
        assert_eq!((reuse.fresh, reuse.arithmetic), (false, Some(Backend::fastest())));
        assert_eq!(reuse.state(), "granted");
        let other = Variant::parse("fresh+none+free").unwrap();
        let wanted = Variant {
            fresh: true,
            arithmetic: None,
            tract: false,
            interruptible: false,
            uses_idle_cores: false,
        };
        assert_eq!(other, wanted);
        assert_eq!(other.state(), "refused-free");
        let scalar = Variant::parse("reuse+scalar").unwrap();
        assert_eq!(scalar.arithmetic, Some(Backend::Scalar));
        for text in ["", "again", "reuse+soon"] {
            assert!(Variant::parse(text).is_err(), "{text}");
        }
    }
}
