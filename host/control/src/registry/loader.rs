//! Loading a version: find the compiled form of its artifact or make it, map it, and prove it by its golden
//! examples.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use super::failure::{Failure, FailureCause};
use super::metrics::DeploymentMetrics;
use crate::traffic::Traffic;
use guesthouse_artifact::{Artifact, ArtifactError};
use guesthouse_model::ModelName;
use guesthouse_model::terminal;
use guesthouse_runtime::guest::{EngineError, Engines, Fault};
use guesthouse_runtime::load::{self, SignatureMismatch};
use guesthouse_runtime::preinit::queue::{CompileJob, CompilePriority, CompileQueue};
use guesthouse_runtime::preinit::{self, ChildProgram, PreinitError, PreinitHooks, PreinitLimits};
use guesthouse_runtime::store::{CompiledVersion, Store, StoreError};
use guesthouse_runtime::version::{
    BudgetExceeded, ModelLimits, ProofError, ResourceBudget, ServableVersion,
};

/// Why a version cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is not an artifact.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The host has not enough memory or instances left for the version's limits.
    #[error(transparent)]
    BudgetExceeded(#[from] BudgetExceeded),
    /// A bug of the host.
    #[error("the host panicked: {0}")]
    Panicked(String),
    /// Pre-initialising failed.
    #[error(transparent)]
    Preinit(#[from] PreinitError),
    /// The guest declares another signature than its artifact.
    #[error(transparent)]
    Signature(#[from] SignatureMismatch),
    /// The state folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The compiled form cannot be mapped.
    #[error("failed to {0}")]
    Engine(#[from] EngineError),
    /// The version fails its golden examples, or no instance can be made.
    #[error(transparent)]
    Proof(#[from] ProofError),
}

/// What kind of failure keeps an artifact from being pre-initialised.
fn preinit_cause(error: &PreinitError) -> FailureCause {
    match error {
        PreinitError::Init(_)
        | PreinitError::StartTrap(_)
        | PreinitError::Trap(_)
        | PreinitError::OutOfMemory
        | PreinitError::Component(_)
        | PreinitError::Limit(_) => FailureCause::Artifact,
        PreinitError::Killed(_) | PreinitError::Host(_) | PreinitError::Yielded => {
            FailureCause::Transient
        }
        PreinitError::WallTime(_) | PreinitError::Crashed(_) => FailureCause::Unknown,
    }
}

impl LoadError {
    /// Where the failure comes from.
    pub fn cause(&self) -> FailureCause {
        match self {
            Self::Artifact(ArtifactError::Read(_)) | Self::Store(_) => FailureCause::Transient,
            // It fits when other versions are unloaded.
            Self::BudgetExceeded(_) => FailureCause::Transient,
            Self::Artifact(_) | Self::Signature(_) => FailureCause::Artifact,
            Self::Panicked(_) | Self::Engine(_) => FailureCause::Unknown,
            Self::Preinit(error) => preinit_cause(error),
            Self::Proof(ProofError::Fault { fault: Fault::Host(_), .. }) => FailureCause::Transient,
            Self::Proof(ProofError::Fault {
                fault: Fault::Deadline | Fault::Cancelled, ..
            }) => FailureCause::Unknown,
            Self::Proof(_) => FailureCause::Artifact,
        }
    }

    /// The name of the step that failed, for readers that must not see the reason.
    pub fn step(&self) -> &'static str {
        match self {
            Self::Artifact(_) => "artifact",
            Self::Panicked(_) => "host",
            Self::BudgetExceeded(_) => "admission",
            Self::Preinit(_) => "preinit",
            Self::Signature(_) => "signature",
            Self::Store(_) => "store",
            Self::Engine(_) => "engine",
            Self::Proof(ProofError::Instance(_)) => "instance",
            Self::Proof(_) => "golden",
        }
    }

    /// Whether compiling failed because the artifact was treated as a small one: it was slow while others
    /// waited, or it needed more than a small one may use. As a large one it may succeed.
    pub fn is_not_small(&self, job: CompileJob) -> bool {
        use PreinitError::{Crashed, Limit, Yielded};
        job.is_small() && matches!(self, Self::Preinit(Yielded | Limit(_) | Crashed(_)))
    }

    /// The failure as it is shown.
    pub fn failure(&self) -> Failure {
        let (step, reason, cause) = (self.step(), error_chain(self).into(), self.cause());
        Failure { step, reason, cause, retry_at: None }
    }
}

/// Loads versions.
pub struct Loader {
    /// The engines in which versions run.
    pub engines: Engines,
    /// Artifacts and compiled versions.
    pub store: Store,
    /// The limits of the child process that compiles.
    pub preinit_limits: PreinitLimits,
    /// The limits of versions whose model has none of its own.
    pub default_limits: ModelLimits,
    /// The limits of versions by model.
    pub model_limits: BTreeMap<ModelName, ModelLimits>,
    /// The queue of the compiler.
    pub queue: CompileQueue,
    /// What is left for further versions of all memory and instances.
    pub budget: ResourceBudget,
    /// The metrics of deployments.
    pub meters: Arc<DeploymentMetrics>,
    /// The environment of the child processes, which makes them log like this one.
    pub child_environment: fn() -> Vec<(&'static str, String)>,
    /// The traffic that compiling should not disturb.
    pub traffic: Arc<Traffic>,
}

impl Loader {
    /// The limits of versions of a model.
    fn limits_of(&self, model: &ModelName) -> &ModelLimits {
        self.model_limits.get(model).unwrap_or(&self.default_limits)
    }

    /// The compiled form of an artifact, if it is there.
    ///
    /// # Errors
    /// The state folder cannot be read.
    pub fn find(&self, artifact: &Artifact) -> Result<Option<CompiledVersion>, LoadError> {
        let arithmetic =
            load::grants_arithmetic(artifact, &self.limits_of(&artifact.id().name).instance);
        let find = || Ok(self.store.find(artifact.digest(), arithmetic)?);
        self.meters.time_step("find", || catch_panic(find))
    }

    /// The job of compiling an artifact of that size.
    ///
    /// # Errors
    /// The version will not fit, so it need not wait for the compiler.
    pub fn job(
        &self,
        model: &ModelName,
        artifact_bytes: u64,
        urgency: CompilePriority,
    ) -> Result<CompileJob, LoadError> {
        let limits = self.limits_of(model);
        drop(self.budget.reserve(limits)?);
        let guest_bytes = limits.instance.memory_bytes as u64;
        Ok(CompileJob::new(urgency, artifact_bytes, guest_bytes, self.preinit_limits.memory_bytes))
    }

    /// The same job as one of a large artifact.
    pub fn as_large(&self, job: CompileJob) -> CompileJob {
        job.as_large(self.preinit_limits.memory_bytes)
    }

    /// Make the compiled form of an artifact, which takes seconds, after waiting for a turn. `read` is
    /// called when the turn comes: an artifact that waits need not be in memory.
    ///
    /// # Errors
    /// [`LoadError`]; see [`LoadError::is_not_small`].
    pub fn compile(
        &self,
        read: impl FnOnce() -> Result<Arc<Artifact>, LoadError>,
        job: CompileJob,
    ) -> Result<(CompiledVersion, Arc<Artifact>), LoadError> {
        let permit = self.queue.acquire(job);
        let artifact = read()?;
        let id = artifact.id();
        let limits = self.limits_of(&id.name);
        drop(self.budget.reserve(limits)?);
        let (model, version, is_small) = (&id.name, &id.version, job.is_small());
        tracing::info!(%model, %version, is_small, "compiling, which takes some seconds");
        let limits = PreinitLimits {
            memory_bytes: job.memory_bytes(),
            guest_memory_bytes: limits.instance.memory_bytes,
            guest_stack_bytes: limits.instance.stack_bytes,
            arithmetic: limits.instance.arithmetic,
            ..self.preinit_limits
        };
        let watch = PreinitHooks {
            program: ChildProgram::Current,
            is_serving: &|| self.traffic.is_active(),
            must_yield: &|| permit.must_yield(),
            environment: &self.child_environment,
        };
        let compile = || catch_panic(|| self.run_compiler(&artifact, &limits, &watch));
        let compiled = self.meters.time_step("compile", compile)?;
        Ok((compiled, artifact))
    }

    /// Map a compiled version and prove it.
    ///
    /// # Errors
    /// [`LoadError`]; the memory reserved for it is released.
    pub fn activate(
        &self,
        artifact: &Arc<Artifact>,
        compiled: &CompiledVersion,
    ) -> Result<ServableVersion, LoadError> {
        self.meters.time_step("prove", || catch_panic(|| self.map_and_prove(artifact, compiled)))
    }

    fn run_compiler(
        &self,
        artifact: &Artifact,
        limits: &PreinitLimits,
        watch: &PreinitHooks<'_>,
    ) -> Result<CompiledVersion, LoadError> {
        load::compile(&self.store, &self.engines, artifact, |path, goal| {
            preinit::run(path, goal, limits, watch)
        })
    }

    fn map_and_prove(
        &self,
        artifact: &Arc<Artifact>,
        compiled: &CompiledVersion,
    ) -> Result<ServableVersion, LoadError> {
        let limits = self.limits_of(&artifact.id().name);
        let reservation = self.budget.reserve(limits)?;
        load::activate(&self.engines, artifact, compiled, *limits, reservation)
    }
}

/// Turn a panic, which is a bug of the host, into a failure of the artifact that caused it. What the work
/// shares with others is immutable, or behind locks under which no change is left half-made.
pub fn catch_panic<T>(work: impl FnOnce() -> Result<T, LoadError>) -> Result<T, LoadError> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(LoadError::Panicked(text.unwrap_or("it does not say why").to_owned()))
    })
}

/// An error with its sources in one line, made safe for terminals.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    terminal::reason(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_failure_of_the_artifact() {
        assert_eq!(catch_panic(|| Ok(1)).unwrap(), 1);
        let index = 1;
        let error = catch_panic(|| Ok([0][index..].len() / usize::from(index == 0))).unwrap_err();
        assert_eq!((error.step(), matches!(error, LoadError::Panicked(_))), ("host", true));
    }
}
