//! Runs the cases of the performance benchmark in guests.
//!
//! The variants are `reuse`, where all calls use one instance, and `fresh`, where each call has a new
//! instance, whose creation is measured with the call.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cases::{Caller, Case, Cases, Datatype};
use guesthouse_artifact::Artifact;
use guesthouse_model::Tensor;
use guesthouse_runtime::embed::{Runtime, RuntimeOptions};
use guesthouse_runtime::guest::{
    Engine, EngineLimits, Instance, InstanceLimits, LoadedComponent, StopSignal,
};
use guesthouse_runtime::load::grants_arithmetic;
use guesthouse_runtime::store::Store;

/// The time limit of a call.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// The memory of an instance. The largest model has 90 MB of weights, and `init` holds them twice.
const MEMORY_BYTES: usize = 1 << 30;

/// Answers requests until the standard input ends.
pub(crate) fn answer(models: &Path, artifacts: &Path, state: &Path) -> Result<()> {
    let cases = Cases::open(models)?;
    let guests = Guests { artifacts: artifacts.to_owned(), state: state.to_owned() };
    let open = |case: &Case, variant: &str| {
        let fresh = match variant {
            "fresh" => true,
            "reuse" => false,
            _ => bail!("there is no variant {variant:?}"),
        };
        let component = guests.load(&case.model)?;
        let inputs = inputs(&cases, case)?;
        let caller = Guest { component, inputs, fresh, instance: None, outputs: Vec::new() };
        Ok(Box::new(caller) as Box<dyn Caller>)
    };
    cases::answer(&cases, io::stdin().lock(), io::stdout().lock(), open)
}

/// Where artifacts and their compiled code are.
struct Guests {
    artifacts: PathBuf,
    state: PathBuf,
}

impl Guests {
    /// Compiles a model unless it is compiled already, proves it with its golden example, and maps its
    /// code.
    fn load(&self, model: &str) -> Result<LoadedComponent> {
        let artifact = self.artifacts.join(format!("{model}-1.0.0.wasm"));
        let mut options = RuntimeOptions::default();
        options.model.instance.memory_bytes = MEMORY_BYTES;
        options.model.concurrency = 1;
        options.preinit.guest_memory_bytes = MEMORY_BYTES;
        let limits = options.model.instance;
        let runtime = Runtime::open(&self.state, options).context("failed to open a runtime")?;
        drop(runtime.load(&artifact).context("failed to load the artifact")?);
        drop(runtime);
        self.map(&artifact, limits)
    }

    fn map(&self, artifact: &Path, limits: InstanceLimits) -> Result<LoadedComponent> {
        let pool = EngineLimits {
            max_instances: 2,
            max_memory_bytes: limits.memory_bytes,
            use_idle_cores: false,
        };
        let engine = Engine::serving(pool, limits.stack_bytes)?;
        let store = Store::open(&self.state, engine.fingerprint())?;
        let artifact = Artifact::open(artifact).context("failed to read the artifact")?;
        let compiled = store.find(artifact.digest(), grants_arithmetic(&artifact, &limits))?;
        let compiled = compiled.context("the state folder has no compiled form of the artifact")?;
        let (id, signature) = (artifact.id().clone(), compiled.report.signature.clone());
        // SAFETY: the store has just checked the file against its MAC, and the path is that of the
        // same file. The store never changes a file in place, and this process opened the state
        // folder a moment ago.
        #[expect(unsafe_code, reason = "mapping native code that only the MAC vouches for")]
        let component =
            unsafe { LoadedComponent::map(&engine, &compiled.path(), id, signature, limits) }?;
        ensure!(!component.runs_init(), "the artifact has no snapshot");
        Ok(component)
    }
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
