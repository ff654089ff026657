//! A version as a server has it: mapped from the state folder, with golden examples as requests.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use guesthouse_artifact::Artifact;
use guesthouse_model::record;
use guesthouse_model::{Signature, Tensor};
use guesthouse_runtime::guest::{
    CompiledCode, Engine, EngineLimits, Instance, LoadedComponent, StopSignal,
};
use guesthouse_runtime::load::grants_arithmetic;
use guesthouse_runtime::store::Store;
use guesthouse_server::config::ConfigFile;
use serde_json::Value;

/// The time limit of a call.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// A version of which instances can be created.
pub(crate) struct Loaded {
    component: LoadedComponent,
    signature: Signature,
    /// The inputs of the golden examples.
    examples: Vec<Vec<Tensor>>,
    /// Holds the lock of the state folder: no server may use it meanwhile.
    _store: Store,
}

impl Loaded {
    /// Maps the compiled code of an artifact, with room for more instances than a server has.
    pub(crate) fn open(artifact: &Path, state: &Path, instances: u32) -> Result<Self> {
        let limits = ConfigFile::default().validate()?.limits;
        let max_instances = limits.engine.max_instances.max(instances.saturating_add(1));
        let of_engine = EngineLimits { max_instances, ..limits.engine };
        let engine = Engine::serving(of_engine, limits.model.instance.stack_bytes)?;
        let store = Store::open(state, engine.fingerprint())?;

        let artifact = Artifact::open(artifact).context("failed to read the artifact")?;
        let arithmetic = grants_arithmetic(&artifact, &limits.model.instance);
        let compiled = store.find(artifact.digest(), arithmetic)?;
        let compiled = compiled.context("the state folder has no compiled form of the artifact")?;
        let signature = compiled.report.signature.clone();
        let examples = artifact.golden().iter().map(|example| {
            record::decode(&signature, &[&example.inputs]).context("failed to use a golden example")
        });
        let examples = examples.collect::<Result<Vec<_>>>()?;
        ensure!(!examples.is_empty(), "the artifact has no golden examples");

        let of_version = signature.clone();
        let (id, instance) = (artifact.id().clone(), limits.model.instance);
        let path = compiled.path();
        let code = CompiledCode { component: &path, modules: compiled.modules() };
        // SAFETY: the store has just checked the file against its MAC, and the path is that of the
        // same file. The store never changes a file in place, and this process holds the folder's
        // lock.
        #[expect(unsafe_code, reason = "mapping native code that only the MAC vouches for")]
        let component = unsafe { LoadedComponent::map(&engine, code, id, signature, instance) }?;
        Ok(Self { component, signature: of_version, examples, _store: store })
    }

    /// Creates an instance.
    pub(crate) fn instantiate(&self) -> Result<Instance> {
        let stop = StopSignal::at_deadline(Instant::now() + CALL_LIMIT);
        self.component.instantiate(&stop).context("failed to make an instance")
    }

    /// The tensors of a row in JSON.
    pub(crate) fn decode(&self, row: &Value) -> Result<Vec<Tensor>> {
        let row = row.as_object().context("a row is an object")?;
        record::decode(&self.signature, &[row]).context("failed to decode a row")
    }

    /// Predicts with the golden example of this number, modulo their count.
    pub(crate) fn ask(&self, instance: &mut Instance, number: usize) -> Result<()> {
        let Some(inputs) = self.examples.get(number % self.examples.len()) else {
            bail!("there are no golden examples")
        };
        let outputs =
            instance.predict(inputs, &StopSignal::at_deadline(Instant::now() + CALL_LIMIT));
        let outputs = outputs.context("failed to predict")?;
        ensure!(!outputs.is_empty(), "a prediction has no outputs");
        Ok(())
    }
}
