//! The runtime as a library: open an artifact and predict, without a server.
//!
//! A [`Runtime`] owns what versions share: the engine, a state folder with compiled code, and the
//! threads that run guests. A [`LoadedModel`] is one loaded version. Both are handles that may be used from
//! several threads; rows that are submitted at the same time share calls of the guest. Which version
//! answers, who may ask, and what is recorded of it is left to the embedding program.
//!
//! An artifact that is loaded for the first time is compiled, which takes seconds. By default this
//! happens in the embedding process ([`Compiler::InProcess`]): nothing has to be installed, and the
//! sandbox is the same, but nothing limits the time and the memory that the compiler and the guest's
//! `init` take. A program that loads artifacts from untrusted sources should let the program
//! `guesthouse` compile them in child processes with limits ([`Compiler::Child`]), as the server does.

mod trial;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guesthouse_artifact::{Artifact, ArtifactError};
use guesthouse_model::record::{self, RecordError, TensorInputError, TooManyValues};
use guesthouse_model::{Signature, Tensor, VersionId};
use serde_json::{Map, Value};

pub use self::trial::{Trial, TrialCall, TrialError};
use crate::clock;
use crate::guest::{EngineError, EngineLimits, Engines, InstanceLimits};
use crate::inference::{InferenceLimits, InferenceThreads, PredictError, PredictJob, QueueOptions};
use crate::load::{self, SignatureMismatch, grants_arithmetic};
use crate::machine;
use crate::preinit::{
    self, ChildProgram, PreinitError, PreinitHooks, PreinitLimits, PreinitReport,
};
use crate::profile::Profile;
use crate::stages::StageTimer;
use crate::store::{CompiledVersion, Store, StoreError};
use crate::version::{
    BudgetExceeded, CallerId, ModelLimits, ProofError, ResourceBudget, ServableVersion,
};

/// The number of versions with room for all their instances, by default.
const DEFAULT_VERSIONS: u32 = 32;

/// The settings of a [`Runtime`]. The defaults suit a program that owns its machine.
#[derive(Debug, Clone)]
pub struct RuntimeOptions {
    /// The limits of each version.
    pub model: ModelLimits,
    /// The limits of pre-initialisation; in process, only those of the guest apply.
    pub preinit: PreinitLimits,
    /// Where artifacts are compiled.
    pub compiler: Compiler,
    /// The most instances of all versions together. By default, 32 versions have room.
    pub max_instances: u32,
    /// The most memory that the limits of all instances may add up to, in bytes. By default, that of the
    /// machine or of the process's control groups.
    pub memory_bytes: u64,
    /// The threads that run guests. By default, four times as many as cores, so that a version that does
    /// not return leaves threads to others.
    pub threads: usize,
    /// Whether a large operation of a guest is computed on several cores while there are cores on which
    /// no guest runs. Not by default: whoever embeds the runtime may use the cores for other work.
    pub use_idle_cores: bool,
}

/// Where artifacts are compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiler {
    /// In this process: for artifacts that are trusted not to exhaust its time and memory.
    InProcess,
    /// In child processes of the program `guesthouse` at this path, with all limits of
    /// [`PreinitLimits`].
    Child(PathBuf),
}

impl RuntimeOptions {
    /// The settings of a program that tries out one artifact, call by call: the memory that `init` may
    /// take for each instance, and child processes of the program `guesthouse` at this path to
    /// compile.
    pub fn for_one_artifact(program: PathBuf) -> Self {
        let preinit = PreinitLimits::default();
        let memory_bytes = preinit.guest_memory_bytes;
        let instance = InstanceLimits { memory_bytes, ..InstanceLimits::default() };
        Self {
            model: ModelLimits { instance, concurrency: 1, ..ModelLimits::default() },
            preinit,
            compiler: Compiler::Child(program),
            // A new instance may be created before the last one is gone.
            max_instances: 2,
            threads: 1,
            ..Self::default()
        }
    }
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        let model = ModelLimits::default();
        Self {
            model,
            preinit: PreinitLimits::default(),
            compiler: Compiler::InProcess,
            max_instances: DEFAULT_VERSIONS
                .saturating_mul(u32::try_from(model.concurrency).unwrap_or(u32::MAX)),
            memory_bytes: machine::memory_mib() << 20,
            threads: 4 * machine::cores(),
            use_idle_cores: false,
        }
    }
}

/// Loads and runs versions.
pub struct Runtime {
    engines: Engines,
    store: Store,
    budget: ResourceBudget,
    threads: Arc<InferenceThreads>,
    options: RuntimeOptions,
}

/// Why a runtime cannot be opened or a version cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is not a valid artifact.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The state folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine cannot be set up, or cannot map the compiled code.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The threads cannot be started.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
    /// The artifact cannot be compiled, or its `init` fails.
    #[error(transparent)]
    Preinit(#[from] PreinitError),
    /// The guest declares another signature than the artifact.
    #[error(transparent)]
    Signature(#[from] SignatureMismatch),
    /// The version needs more instances or memory than is left.
    #[error(transparent)]
    BudgetExceeded(#[from] BudgetExceeded),
    /// The version does not pass its golden examples.
    #[error(transparent)]
    Proof(#[from] ProofError),
}

/// Why a prediction failed.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// The rows do not match the signature.
    #[error(transparent)]
    Rows(#[from] RecordError),
    /// The tensors do not match the signature.
    #[error(transparent)]
    Tensors(#[from] TensorInputError),
    /// The rows are more than one call of the guest takes.
    #[error("there are {rows} rows, and one call takes {most}")]
    TooManyRows {
        /// The number of rows.
        rows: u64,
        /// The most rows of one call.
        most: u64,
    },
    /// The version returned no outputs.
    #[error(transparent)]
    Predict(#[from] PredictError),
    /// The outputs are too large for JSON.
    #[error(transparent)]
    TooManyValues(#[from] TooManyValues),
    /// The blocking call cannot wait.
    #[error("cannot wait for the outputs")]
    Wait(#[source] io::Error),
}

impl Runtime {
    /// Open a runtime that keeps compiled code in a state folder, which is created if it is absent. Only one
    /// runtime or server can use a state folder at a time.
    ///
    /// # Errors
    /// [`OpenError::Store`], [`OpenError::Engine`] or [`OpenError::Threads`].
    pub fn open(state_folder: &Path, options: RuntimeOptions) -> Result<Self, OpenError> {
        let instance = options.model.instance;
        let limits = EngineLimits {
            max_instances: options.max_instances,
            max_memory_bytes: instance.memory_bytes,
            use_idle_cores: options.use_idle_cores,
        };
        let engines = Engines::serving(limits, [instance.stack_bytes])?;
        let store = Store::open(state_folder, engines.fingerprint())?;
        let budget = ResourceBudget::new(options.max_instances, options.memory_bytes);
        let limits =
            InferenceLimits { threads: options.threads, queued_per_version: options.model.queued };
        let threads = InferenceThreads::start(limits, engines.thread_stack_bytes());
        let threads = Arc::new(threads.map_err(OpenError::Threads)?);
        Ok(Self { engines, store, budget, threads, options })
    }

    /// Measure where the time of calls goes, with so many rows of the artifact's first golden example
    /// in each call. Blocks for this time, and for seconds before if the artifact has to be compiled.
    ///
    /// # Errors
    /// [`TrialError`].
    pub fn profile(
        &self,
        artifact: &Path,
        rows: usize,
        time: Duration,
    ) -> Result<Profile, TrialError> {
        let artifact = Artifact::open(artifact).map_err(OpenError::from)?;
        check_rows(&artifact, rows)?;
        let example = artifact.golden().first().ok_or(TrialError::NoExample)?;
        let rows = vec![example.inputs.clone(); rows];
        self.map_for_trial(artifact)?.profile(&rows, time)
    }

    /// Predict for rows without running the artifact's golden examples: to make some.
    ///
    /// # Errors
    /// [`TrialError`].
    pub fn predict_unproved(
        &self,
        artifact: &Path,
        rows: &[Map<String, Value>],
    ) -> Result<Vec<Map<String, Value>>, TrialError> {
        let artifact = Artifact::open(artifact).map_err(OpenError::from)?;
        check_rows(&artifact, rows.len())?;
        Ok(self.map_for_trial(artifact)?.predict(rows)?.outputs)
    }

    /// Map an artifact without running its golden examples, for calls one at a time on instances of
    /// the runtime's isolation.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn try_out(&self, artifact: &Path) -> Result<Trial, OpenError> {
        self.map_for_trial(Artifact::open(artifact)?)
    }

    fn map_for_trial(&self, artifact: Artifact) -> Result<Trial, OpenError> {
        let compiled = self.compiled(&artifact)?;
        let instance = self.options.model.instance;
        let artifact = Arc::new(artifact);
        let component = load::map::<OpenError>(&self.engines, &artifact, &compiled, instance)?;
        Ok(Trial::new(component, compiled.report, self.options.model.isolation))
    }

    /// Load an artifact: compile it, unless the state folder has its compiled code, and run its golden
    /// examples. Blocks; the first time takes seconds.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn load(&self, artifact: &Path) -> Result<LoadedModel, OpenError> {
        let artifact = Artifact::open(artifact)?;
        let reservation = self.budget.reserve(&self.options.model)?;
        let compiled = self.compiled(&artifact)?;
        let limits = self.options.model;
        let version = load::activate::<OpenError>(
            &self.engines,
            &Arc::new(artifact),
            &compiled,
            limits,
            reservation,
        )?;
        Ok(LoadedModel { version: Arc::new(version), threads: Arc::clone(&self.threads) })
    }

    /// Run `init` of a draft, which is an artifact without a signature, and keep the code that it runs on,
    /// so that the artifact that is made of the draft loads faster.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn declare(&self, draft: &Path) -> Result<PreinitReport, OpenError> {
        let draft = Artifact::open_draft(draft)?;
        Ok(self.compile(&draft)?.report)
    }

    /// Remove compiled code that has not been used for a month, and that of all but the eight artifacts
    /// that were used last. Nothing may be loaded at the same time.
    pub fn remove_unused(&self) {
        self.store.collect(&BTreeSet::new(), &BTreeSet::new(), clock::now());
    }

    fn compiled(&self, artifact: &Artifact) -> Result<CompiledVersion, OpenError> {
        let arithmetic = grants_arithmetic(artifact, &self.options.model.instance);
        match self.store.find(artifact.digest(), arithmetic)? {
            Some(compiled) => Ok(compiled),
            None => self.compile(artifact),
        }
    }

    fn compile(&self, artifact: &Artifact) -> Result<CompiledVersion, OpenError> {
        let instance = self.options.model.instance;
        let limits = PreinitLimits {
            guest_memory_bytes: instance.memory_bytes,
            guest_stack_bytes: instance.stack_bytes,
            arithmetic: instance.arithmetic,
            ..self.options.preinit
        };
        load::compile(&self.store, &self.engines, artifact, |path, goal| {
            match &self.options.compiler {
                Compiler::InProcess => preinit::run_in_process(path, goal, &limits),
                Compiler::Child(program) => {
                    let hooks = PreinitHooks {
                        program: ChildProgram::At(program),
                        environment: &Vec::new,
                        is_serving: &|| false,
                        must_yield: &|| false,
                    };
                    preinit::run(path, goal, &limits, &hooks)
                }
            }
        })
    }
}

/// Check that one call takes so many rows, before anything is compiled or copied.
fn check_rows(artifact: &Artifact, rows: usize) -> Result<(), TrialError> {
    let most = artifact.signature().map_or(0, |signature| signature.max_batch_size as usize);
    if rows == 0 || rows > most { Err(TrialError::Rows { rows, most }) } else { Ok(()) }
}

/// A loaded version. It keeps its instances until the last clone is dropped.
#[derive(Clone)]
pub struct LoadedModel {
    version: Arc<ServableVersion>,
    threads: Arc<InferenceThreads>,
}

impl LoadedModel {
    /// The name of the model and the version.
    pub fn id(&self) -> &VersionId {
        self.version.id()
    }

    /// The inputs and the outputs.
    pub fn signature(&self) -> &Signature {
        self.version.signature()
    }

    /// Predict for rows in their JSON form, and return the outputs of each. Blocks the calling thread, which
    /// must not be one of an asynchronous runtime.
    ///
    /// # Errors
    /// [`RowsError`]; at the latest when the time of [`ModelLimits::predict_time`] has passed.
    pub fn predict(
        &self,
        rows: &[Map<String, Value>],
    ) -> Result<Vec<Map<String, Value>>, RowsError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.map_err(RowsError::Wait)?.block_on(self.predict_rows(rows))
    }

    /// Like [`LoadedModel::predict`], for asynchronous programs. Needs a tokio runtime with a timer.
    ///
    /// # Errors
    /// [`RowsError`], as for [`LoadedModel::predict`].
    pub async fn predict_rows(
        &self,
        rows: &[Map<String, Value>],
    ) -> Result<Vec<Map<String, Value>>, RowsError> {
        let inputs = record::decode(self.signature(), rows)?;
        let outputs = self.run(inputs).await?;
        Ok(record::encode(self.signature(), &outputs)?)
    }

    /// Predict for tensors whose first dimension is the batch. Inputs that have a default may be omitted.
    /// Needs a tokio runtime with a timer.
    ///
    /// # Errors
    /// [`RowsError`], as for [`LoadedModel::predict`].
    pub async fn predict_tensors(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, RowsError> {
        let inputs = record::validate_tensors(self.signature(), inputs)?;
        self.run(inputs).await
    }

    async fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, RowsError> {
        let (rows, most) =
            (inputs.first().map_or(0, Tensor::rows), self.version.max_batch_size() as u64);
        if rows > most {
            return Err(RowsError::TooManyRows { rows, most });
        }
        let job = PredictJob {
            version: Arc::clone(&self.version),
            // All callers of an embedding program are one to the breaker.
            caller: CallerId::new("", None),
            inputs: Arc::new(inputs),
            deadline: Instant::now() + self.version.limits().predict_time,
            timer: StageTimer::untraced(),
            queue_options: QueueOptions::default(),
        };
        Ok(self.threads.predict(job).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_folder_cannot_be_opened_twice() {
        let folder = tempfile::tempdir().unwrap();
        let options = RuntimeOptions { max_instances: 4, threads: 1, ..RuntimeOptions::default() };
        let first = Runtime::open(folder.path(), options.clone()).unwrap();
        let second = Runtime::open(folder.path(), options.clone());
        assert!(matches!(second, Err(OpenError::Store(_))));
        drop(first);
        let again = Runtime::open(folder.path(), options).unwrap();
        let absent = again.load(&folder.path().join("absent.wasm"));
        assert!(matches!(absent, Err(OpenError::Artifact(ArtifactError::Read(_)))));
    }
}
