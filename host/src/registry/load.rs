//! From the files of a repository folder to published versions.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::budget::{Budget, DoesNotFit};
use super::{Registry, VersionState};
use crate::artifact::{Artifact, ArtifactError, Digest};
use crate::guest::{Engine, EngineError, LoadedComponent};
use crate::model::{ModelName, Signature, VersionId};
use crate::preinit::{self, Goal, PreinitError, PreinitLimits};
use crate::store::{CompiledVersion, Store, StoreError};
use crate::terminal;
use crate::version::{ModelLimits, ProofError, ServableVersion};

/// A version cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is not an artifact.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Another file has brought the same version with other bytes.
    #[error("another file has brought this version with other content ({0})")]
    Conflict(Digest),
    /// The host has not got what the version may come to use.
    #[error(transparent)]
    DoesNotFit(#[from] DoesNotFit),
    /// Pre-initialising failed.
    #[error(transparent)]
    Preinit(#[from] PreinitError),
    /// The guest declares another signature than the artifact says.
    #[error("init declares another signature than the one in the artifact")]
    Signature,
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

impl LoadError {
    /// The step that refused the version, as a word for people who are not to see the reason.
    pub fn step(&self) -> &'static str {
        match self {
            Self::Artifact(_) => "artifact",
            Self::Conflict(_) => "conflict",
            Self::DoesNotFit(_) => "admission",
            Self::Preinit(_) => "preinit",
            Self::Signature => "signature",
            Self::Store(_) => "store",
            Self::Engine(_) => "engine",
            Self::Proof(_) => "golden",
        }
    }
}

/// What loading needs and shares.
pub struct Loader {
    /// Where versions run.
    pub engine: Engine,
    /// Where compiled versions are kept.
    pub store: Store,
    /// What the child process may use.
    pub limits: PreinitLimits,
    /// What versions may use, unless their model says otherwise.
    pub general: ModelLimits,
    /// What versions of some models may use.
    pub models: BTreeMap<ModelName, ModelLimits>,
    /// What is left for further versions.
    pub budget: Budget,
}

impl Loader {
    /// Load every `*.wasm` file of the folder. What is in the store is loaded first and side by
    /// side; the rest is compiled one after the other, each of them with all cores.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn load_folder(&self, registry: &Registry, folder: &Path) -> io::Result<()> {
        let paths = Mutex::new(artifact_paths(folder)?);
        let seen = Mutex::new(BTreeMap::new());
        let cold = Mutex::new(Vec::new());
        let next = |paths: &Mutex<Vec<PathBuf>>| {
            paths.lock().unwrap_or_else(PoisonError::into_inner).pop()
        };
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some(path) = next(&paths) {
                        let missing = self.load_from_store(registry, &path, &seen);
                        cold.lock().unwrap_or_else(PoisonError::into_inner).extend(missing);
                    }
                });
            }
        });
        let mut cold = cold.into_inner().unwrap_or_else(PoisonError::into_inner);
        cold.sort_by(|one: &Artifact, other| one.id().cmp(other.id()));
        for artifact in cold {
            self.load_cold(registry, &artifact);
        }
        registry.finish_loading();
        Ok(())
    }

    /// Read the file and load it if its compiled form is in the store; else give it back.
    fn load_from_store(
        &self,
        registry: &Registry,
        path: &Path,
        seen: &Mutex<BTreeMap<VersionId, Digest>>,
    ) -> Option<Artifact> {
        let started = Instant::now();
        let artifact = match Artifact::open(path) {
            Ok(artifact) => artifact,
            Err(error) => {
                report_unreadable(path, &error.into());
                return None;
            }
        };
        let (id, digest) = (artifact.id().clone(), artifact.digest());
        let before = {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            *seen.entry(id.clone()).or_insert(digest)
        };
        if before != digest {
            report_unreadable(path, &LoadError::Conflict(before));
            return None;
        }
        registry.publish(&id, VersionState::Loading);
        match self.store.find(digest) {
            Ok(None) => Some(artifact),
            Ok(Some(compiled)) => {
                let outcome = self.activate(&artifact, compiled);
                publish_outcome(registry, &id, outcome, "store", started);
                None
            }
            Err(error) => {
                publish_outcome(registry, &id, Err(error.into()), "store", started);
                None
            }
        }
    }

    fn load_cold(&self, registry: &Registry, artifact: &Artifact) {
        let started = Instant::now();
        let (model, version) = (&artifact.id().name, &artifact.id().version);
        tracing::info!(%model, %version, "compiling, which takes some seconds");
        let outcome = self.compile(artifact).and_then(|compiled| self.activate(artifact, compiled));
        publish_outcome(registry, artifact.id(), outcome, "compiled", started);
    }

    fn compile(&self, artifact: &Artifact) -> Result<CompiledVersion, LoadError> {
        self.store.keep(artifact.digest(), |files| {
            // The child reads these very bytes, whatever becomes of the file in the meantime.
            let bytes =
                tempfile::NamedTempFile::new_in(files.compiled.parent().unwrap_or(&files.compiled));
            let bytes = bytes.and_then(|file| {
                std::fs::write(file.path(), artifact.bytes())?;
                Ok(file)
            });
            let bytes = bytes.map_err(|error| PreinitError::Host(error.to_string()))?;
            let guest_memory_bytes = self.limits_of(&artifact.id().name).instance.memory_bytes;
            let limits = PreinitLimits { guest_memory_bytes, ..self.limits };
            let report = preinit::run(bytes.path(), Goal::Compiled(files), &limits)?;
            if report.fingerprint.as_deref() != Some(&self.engine.fingerprint()) {
                let what = "the child's engine is not this host's".to_owned();
                return Err(PreinitError::Host(what).into());
            }
            Ok(report)
        })
    }

    fn activate(
        &self,
        artifact: &Artifact,
        compiled: CompiledVersion,
    ) -> Result<ServableVersion, LoadError> {
        let signature = compiled.report.signature.clone();
        if artifact.signature() != Some(&signature) {
            return Err(LoadError::Signature);
        }
        let limits = self.limits_of(&artifact.id().name);
        self.budget.reserve(limits)?;
        let outcome = self.prove(artifact, compiled, signature, limits);
        if outcome.is_err() {
            self.budget.release(limits);
        }
        outcome
    }

    fn prove(
        &self,
        artifact: &Artifact,
        compiled: CompiledVersion,
        signature: Signature,
        limits: &ModelLimits,
    ) -> Result<ServableVersion, LoadError> {
        let id = artifact.id().clone();
        // SAFETY: the store has just checked the file against its MAC or has just written it, and the
        // path is that very file's; it never changes a file in place, and its folder is this host's
        // alone.
        #[expect(unsafe_code, reason = "mapping native code that only the MAC vouches for")]
        let component = unsafe {
            LoadedComponent::map(
                &self.engine,
                &compiled.path(),
                id,
                signature.clone(),
                limits.instance,
            )
        }?;
        Ok(ServableVersion::prove(artifact, signature, component, *limits)?)
    }

    fn limits_of(&self, model: &ModelName) -> &ModelLimits {
        self.models.get(model).unwrap_or(&self.general)
    }
}

/// The regular `*.wasm` files directly in the folder, or where links of that name point.
fn artifact_paths(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|extension| extension == "wasm") && !hidden {
            paths.push(path);
        }
    }
    // Popped from the end: the first by name is loaded first.
    paths.sort_by(|one, other| other.cmp(one));
    Ok(paths)
}

fn report_unreadable(path: &Path, error: &LoadError) {
    let file = terminal::printable(&path.file_name().unwrap_or_default().to_string_lossy());
    let (step, reason) = (error.step(), chain(error));
    tracing::error!(%file, step, reason, "failed to load an artifact");
}

fn publish_outcome(
    registry: &Registry,
    id: &VersionId,
    outcome: Result<ServableVersion, LoadError>,
    from: &'static str,
    started: Instant,
) {
    let (model, version) = (&id.name, &id.version);
    let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    match outcome {
        Ok(servable) => {
            registry.publish(id, VersionState::Ready(std::sync::Arc::new(servable)));
            tracing::info!(%model, %version, from, milliseconds, "version ready");
        }
        Err(error) => {
            let (step, reason) = (error.step(), chain(&error));
            registry.publish(id, VersionState::Failed(step));
            tracing::error!(%model, %version, step, reason, "failed to load a version");
        }
    }
}

/// An error with its causes in one line; what it quotes may be of strangers.
fn chain(error: &dyn std::error::Error) -> String {
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
