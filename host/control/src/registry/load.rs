//! From an artifact to a version that can serve: find its compiled form or make it, map it, prove it.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use super::Failure;
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

/// A version cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is not an artifact.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The host has not got what the version may come to use.
    #[error(transparent)]
    BudgetExceeded(#[from] BudgetExceeded),
    /// A bug of the host.
    #[error("the host panicked: {0}")]
    Panicked(String),
    /// Pre-initialising failed.
    #[error(transparent)]
    Preinit(#[from] PreinitError),
    /// The guest declares another signature than the artifact.
    #[error(transparent)]
    Signature(#[from] SignatureMismatch),
    /// The compiled form cannot be kept or found.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The compiled form cannot be mapped.
    #[error("failed to {0}")]
    Engine(#[from] EngineError),
    /// The version does not do what its artifact promises.
    #[error(transparent)]
    Proof(#[from] ProofError),
}

/// What kind of failure keeps a version from being loaded, which decides whether trying again helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Something is wrong with the artifact: the same bytes fail again.
    Artifact,
    /// Something is wrong with the machine, or was: it may work the next time.
    Accident,
    /// It can be the one or the other: a few more attempts will tell.
    Unclear,
}

/// What kind of failure keeps an artifact from being pre-initialised.
fn preinit_cause(error: &PreinitError) -> Cause {
    match error {
        PreinitError::Init(_)
        | PreinitError::StartTrap(_)
        | PreinitError::Trap(_)
        | PreinitError::OutOfMemory
        | PreinitError::Component(_)
        | PreinitError::Limit(_) => Cause::Artifact,
        PreinitError::Killed(_) | PreinitError::Host(_) | PreinitError::Yielded => Cause::Accident,
        PreinitError::WallTime(_) | PreinitError::Crashed(_) => Cause::Unclear,
    }
}

impl LoadError {
    /// What kind of failure it is.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Artifact(ArtifactError::Read(_)) | Self::Store(_) => Cause::Accident,
            // Other versions may be unloaded.
            Self::BudgetExceeded(_) => Cause::Accident,
            Self::Artifact(_) | Self::Signature(_) => Cause::Artifact,
            Self::Panicked(_) | Self::Engine(_) => Cause::Unclear,
            Self::Preinit(error) => preinit_cause(error),
            Self::Proof(ProofError::Fault { fault: Fault::Host(_), .. }) => Cause::Accident,
            Self::Proof(ProofError::Fault {
                fault: Fault::Deadline | Fault::Cancelled, ..
            }) => Cause::Unclear,
            Self::Proof(_) => Cause::Artifact,
        }
    }

    /// The step that refused the version, as a word for people who are not to see the reason.
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

    /// Whether compiling failed because the artifact was taken for a small one: it was slow while others
    /// waited, or its child wanted more than those of small ones have. Among the large ones it may not
    /// fail.
    pub fn is_not_small(&self, job: CompileJob) -> bool {
        use PreinitError::{Crashed, Limit, Yielded};
        job.is_small() && matches!(self, Self::Preinit(Yielded | Limit(_) | Crashed(_)))
    }

    /// The step and the reason.
    pub fn failure(&self) -> Failure {
        let (step, reason, cause) = (self.step(), chain(self).into(), self.cause());
        Failure { step, reason, cause, retry_at: None }
    }
}

/// What loading needs and shares.
pub struct Loader {
    /// Where versions run.
    pub engines: Engines,
    /// Where artifacts and compiled versions are kept.
    pub store: Store,
    /// What the child process may use.
    pub limits: PreinitLimits,
    /// What versions may use, unless their model says otherwise.
    pub general: ModelLimits,
    /// What versions of some models may use.
    pub models: BTreeMap<ModelName, ModelLimits>,
    /// Whose turn it is to be compiled.
    pub queue: CompileQueue,
    /// What is left for further versions.
    pub budget: ResourceBudget,
    /// Where it is counted.
    pub meters: Arc<DeploymentMetrics>,
    /// The environment of the child processes, which makes them log like this one.
    pub child_environment: fn() -> Vec<(&'static str, String)>,
    /// Whom compiling might disturb.
    pub traffic: Arc<Traffic>,
}

impl Loader {
    /// What versions of a model may use.
    fn limits_of(&self, model: &ModelName) -> &ModelLimits {
        self.models.get(model).unwrap_or(&self.general)
    }

    /// The compiled form of an artifact, if it is there.
    ///
    /// # Errors
    /// The state folder cannot be read.
    pub fn find(&self, artifact: &Artifact) -> Result<Option<CompiledVersion>, LoadError> {
        self.meters.time_step("find", || guarded(|| Ok(self.store.find(artifact.digest())?)))
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
        Ok(CompileJob::new(urgency, artifact_bytes, guest_bytes, self.limits.memory_bytes))
    }

    /// The same, once it has turned out not to be a small one.
    pub fn as_large(&self, job: CompileJob) -> CompileJob {
        job.as_large(self.limits.memory_bytes)
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
            ..self.limits
        };
        let watch = PreinitHooks {
            program: ChildProgram::Current,
            is_serving: &|| self.traffic.is_active(),
            must_yield: &|| permit.must_yield(),
            environment: &self.child_environment,
        };
        let compile = || guarded(|| self.run_compiler(&artifact, &limits, &watch));
        let compiled = self.meters.time_step("compile", compile)?;
        Ok((compiled, artifact))
    }

    /// Load a compiled version and prove it.
    ///
    /// # Errors
    /// [`LoadError`]; what was set aside for it is given back.
    pub fn activate(
        &self,
        artifact: &Arc<Artifact>,
        compiled: &CompiledVersion,
    ) -> Result<ServableVersion, LoadError> {
        self.meters.time_step("prove", || guarded(|| self.map_and_prove(artifact, compiled)))
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

/// Let a bug of the host that one file brings to light cost that file and nothing else. What the
/// work shares with others is immutable, or behind locks that are free of half-made changes.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, LoadError>) -> Result<T, LoadError> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(LoadError::Panicked(text.unwrap_or("it does not say why").to_owned()))
    })
}

/// An error with its causes in one line; what it quotes may be of strangers.
pub fn chain(error: &dyn std::error::Error) -> String {
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
    fn a_panic_while_loading_fails_only_that_version() {
        assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
        let index = 1;
        let error = guarded(|| Ok([0][index..].len() / usize::from(index == 0))).unwrap_err();
        assert_eq!((error.step(), matches!(error, LoadError::Panicked(_))), ("host", true));
    }
}
