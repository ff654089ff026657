//! From the files of a repository folder to published versions.

use std::collections::BTreeMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Instant, SystemTime};

use super::budget::{Budget, DoesNotFit};
use super::{Registry, VersionState};
use crate::artifact::{Artifact, ArtifactError, Digest};
use crate::guest::{EngineError, Engines, LoadedComponent};
use crate::model::{ModelName, VersionId};
use crate::observe::traffic::Traffic;
use crate::preinit::{self, Goal, PreinitError, PreinitLimits, Start};
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
    /// The file is not the one that was read a moment ago.
    #[error("the file has changed while it waited to be compiled")]
    Changed,
    /// A bug of the host.
    #[error("the host panicked: {0}")]
    Panicked(String),
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
            Self::Artifact(_) | Self::Changed => "artifact",
            Self::Panicked(_) => "host",
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
    pub engines: Engines,
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
    /// Whom compiling might disturb.
    pub traffic: Arc<Traffic>,
}

impl Loader {
    /// Load every `*.wasm` file of the folder. What is in the store is loaded first and side by
    /// side; the rest is compiled one after the other.
    ///
    /// # Errors
    /// The folder cannot be read, or the machine gives no more threads.
    pub fn load_folder(&self, registry: &Registry, folder: &Path) -> io::Result<()> {
        let paths = Mutex::new(artifact_paths(folder)?);
        let seen = Mutex::new(Seen::default());
        let cold = Mutex::new(Vec::new());
        let next = |paths: &Mutex<Vec<PathBuf>>| {
            paths.lock().unwrap_or_else(PoisonError::into_inner).pop()
        };
        // Golden examples run on these threads: a guest may use all of its call stack there, too.
        let thread = || thread::Builder::new().stack_size(self.engines.thread_stack_bytes());
        thread::scope(|scope| -> io::Result<()> {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                thread().spawn_scoped(scope, || {
                    while let Some(path) = next(&paths) {
                        let missing = self.load_from_store(registry, path, &seen);
                        cold.lock().unwrap_or_else(PoisonError::into_inner).extend(missing);
                    }
                })?;
            }
            Ok(())
        })?;
        let mut cold = cold.into_inner().unwrap_or_else(PoisonError::into_inner);
        cold.sort_by(|one: &Cold, other| one.id.cmp(&other.id));
        let load_cold = || cold.iter().for_each(|cold| self.load_cold(registry, cold));
        thread::scope(|scope| thread().spawn_scoped(scope, load_cold).map(drop))?;
        registry.finish_loading();
        let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !seen.incomplete {
            self.store.collect(&seen.versions.into_values().collect(), SystemTime::now());
        }
        Ok(())
    }

    /// Read the file and load it if its compiled form is in the store; else say what to compile.
    fn load_from_store(
        &self,
        registry: &Registry,
        path: PathBuf,
        seen: &Mutex<Seen>,
    ) -> Option<Cold> {
        let started = Instant::now();
        let artifact = match guarded(|| Ok(Artifact::open(&path)?)) {
            Ok(artifact) => artifact,
            Err(error) => {
                report_unreadable(&path, &error);
                let unread = matches!(
                    error,
                    LoadError::Artifact(ArtifactError::Read(_)) | LoadError::Panicked(_)
                );
                seen.lock().unwrap_or_else(PoisonError::into_inner).incomplete |= unread;
                return None;
            }
        };
        let (id, digest) = (artifact.id().clone(), artifact.digest());
        let before = seen.lock().unwrap_or_else(PoisonError::into_inner).add(&id, digest);
        match before {
            None => {}
            Some(before) if before == digest => {
                let (file, model, version) = (file_name(&path), &id.name, &id.version);
                tracing::info!(%file, %model, %version, "skipped: the same artifact under another name");
                return None;
            }
            Some(before) => {
                report_unreadable(&path, &LoadError::Conflict(before));
                return None;
            }
        }
        registry.publish(&id, VersionState::Loading);
        let outcome = guarded(|| match self.store.find(digest)? {
            None => Ok(None),
            Some(compiled) => {
                self.admitted(&id, |limits| self.activate(artifact, &compiled, limits)).map(Some)
            }
        });
        match outcome.transpose() {
            None => Some(Cold { path, id, digest }),
            Some(outcome) => {
                publish_outcome(registry, &id, outcome, "store", started);
                None
            }
        }
    }

    fn load_cold(&self, registry: &Registry, cold: &Cold) {
        let started = Instant::now();
        let (model, version) = (&cold.id.name, &cold.id.version);
        tracing::info!(%model, %version, "compiling, which takes some seconds");
        let load = |limits: &ModelLimits| {
            let artifact = cold.read()?;
            let compiled = self.compile(&artifact, limits)?;
            self.activate(artifact, &compiled, limits)
        };
        let outcome = guarded(|| self.admitted(&cold.id, load));
        publish_outcome(registry, &cold.id, outcome, "compiled", started);
    }

    /// Load a version within what is set aside for it, which is given back if it fails.
    fn admitted<T>(
        &self,
        id: &VersionId,
        load: impl FnOnce(&ModelLimits) -> Result<T, LoadError>,
    ) -> Result<T, LoadError> {
        let limits = self.models.get(&id.name).unwrap_or(&self.general);
        self.budget.reserve(limits)?;
        let outcome = load(limits);
        if outcome.is_err() {
            self.budget.release(limits);
        }
        outcome
    }

    fn compile(
        &self,
        artifact: &Artifact,
        limits: &ModelLimits,
    ) -> Result<CompiledVersion, LoadError> {
        let component = Digest::of(&artifact.component());
        self.store.keep(artifact.digest(), component, |files| {
            // The child reads these very bytes, whatever becomes of the file in the meantime.
            let bytes =
                tempfile::NamedTempFile::new_in(files.compiled.parent().unwrap_or(&files.compiled));
            let bytes = bytes.and_then(|file| {
                std::fs::write(file.path(), artifact.bytes())?;
                Ok(file)
            });
            let bytes = bytes.map_err(|error| PreinitError::Host(error.to_string()))?;
            let limits = PreinitLimits {
                guest_memory_bytes: limits.instance.memory_bytes,
                guest_stack_bytes: limits.instance.stack_bytes,
                ..self.limits
            };
            let is_serving = || self.traffic.is_flowing();
            let report = preinit::run(bytes.path(), Goal::Compiled(files), &limits, &is_serving)?;
            if report.fingerprint.as_deref() != Some(&self.engines.fingerprint()) {
                let what = "the child's engine is not this host's".to_owned();
                return Err(PreinitError::Host(what).into());
            }
            let (model, version) = (&artifact.id().name, &artifact.id().version);
            let steps = report.steps_ms.iter().map(|(step, time)| format!("{step} {time} ms"));
            let steps = steps.collect::<Vec<_>>().join(", ");
            let peak_memory_mib = report.peak_memory_bytes >> 20;
            tracing::info!(%model, %version, steps, peak_memory_mib, "compiled");
            Ok(report)
        })
    }

    fn activate(
        &self,
        artifact: Artifact,
        compiled: &CompiledVersion,
        limits: &ModelLimits,
    ) -> Result<ServableVersion, LoadError> {
        let report = &compiled.report;
        if artifact.signature() != Some(&report.signature) {
            return Err(LoadError::Signature);
        }
        let id = artifact.id().clone();
        // SAFETY: the store has just checked the file against its MAC or has just written it, and the
        // path is that very file's; it never changes a file in place, and its folder is this host's
        // alone.
        #[expect(unsafe_code, reason = "mapping native code that only the MAC vouches for")]
        let mut component = unsafe {
            LoadedComponent::map(
                self.engines.with_stack(limits.instance.stack_bytes),
                &compiled.path(),
                id,
                report.signature.clone(),
                limits.instance,
            )
        }?;
        let artifact = Arc::new(artifact);
        if let Start::Init(reason) = &report.start {
            let (model, version) = (&artifact.id().name, &artifact.id().version);
            tracing::warn!(%model, %version, reason, "no snapshot: init runs in each instance");
            component = component.running_init(Arc::clone(&artifact));
        }
        Ok(ServableVersion::prove(&artifact, report, component, *limits)?)
    }
}

/// What the files of a folder have brought.
#[derive(Default)]
struct Seen {
    versions: BTreeMap<VersionId, Digest>,
    /// Whether there is a file that could not be read: what it needs is not known.
    incomplete: bool,
}

impl Seen {
    /// Add a version; which one was there before.
    fn add(&mut self, id: &VersionId, digest: Digest) -> Option<Digest> {
        let before = self.versions.get(id).copied();
        self.versions.entry(id.clone()).or_insert(digest);
        before
    }
}

/// An artifact that is not in the store. Its bytes are read again when its turn comes: a repository
/// that nobody has compiled yet need not fit into memory.
struct Cold {
    path: PathBuf,
    id: VersionId,
    digest: Digest,
}

impl Cold {
    fn read(&self) -> Result<Artifact, LoadError> {
        let artifact = Artifact::open(&self.path)?;
        if artifact.digest() == self.digest { Ok(artifact) } else { Err(LoadError::Changed) }
    }
}

/// Let a bug of the host that one file brings to light cost that file and nothing else. What the
/// work shares with others is immutable, or behind locks that are free of half-made changes.
fn guarded<T>(work: impl FnOnce() -> Result<T, LoadError>) -> Result<T, LoadError> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(LoadError::Panicked(text.unwrap_or("it does not say why").to_owned()))
    })
}

/// What is called `*.wasm` directly in the folder; whether it can be read is seen later.
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

fn file_name(path: &Path) -> String {
    terminal::printable(&path.file_name().unwrap_or_default().to_string_lossy())
}

fn report_unreadable(path: &Path, error: &LoadError) {
    let file = file_name(path);
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
            registry.publish(id, VersionState::Ready(Arc::new(servable)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_that_one_file_brings_to_light_is_that_files_failure() {
        assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
        let index = 1;
        let error = guarded(|| Ok([0][index..].len() / usize::from(index == 0))).unwrap_err();
        assert_eq!((error.step(), matches!(error, LoadError::Panicked(_))), ("host", true));
    }

    /// An artifact that can be read, but not run.
    fn hollow(provenance: &str) -> Vec<u8> {
        let mut exports = wasm_encoder::ComponentExportSection::new();
        for name in ["guesthouse:model/lifecycle@0.1.0", "guesthouse:model/predict@0.1.0"] {
            exports.export(name, wasm_encoder::ComponentExportKind::Instance, 0, None);
        }
        let field =
            r#"[{"name":"x","description":"","datatype":"FP32","row_shape":[],"constraints":[]}]"#;
        let signature = format!(r#"{{"inputs":{field},"outputs":{field},"max_batch_size":1}}"#);
        let descriptor = format!(
            r#"{{"format":1,"provenance":"{provenance}","parameters":{{}},"assets":{{}},"tolerances":{{}}}}"#
        );
        let mut component = wasm_encoder::Component::new();
        component.section(&exports);
        for (name, data) in [
            ("component-name", "\0\x02\x01x"),
            ("version", "1.0.0"),
            ("guesthouse:descriptor", &descriptor),
            ("guesthouse:signature", &signature),
            ("guesthouse:golden", r#"{"inputs":{"x":1},"outputs":{"x":1}}"#),
        ] {
            let data = data.as_bytes().into();
            component.section(&wasm_encoder::CustomSection { name: name.into(), data });
        }
        component.finish()
    }

    #[test]
    fn a_file_that_changes_before_its_turn_is_not_loaded() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), hollow("one")).unwrap();
        let artifact = Artifact::open(file.path()).unwrap();
        let (path, id) = (file.path().to_owned(), artifact.id().clone());
        let cold = Cold { path, id, digest: artifact.digest() };
        assert_eq!(cold.read().unwrap().digest(), cold.digest);
        std::fs::write(file.path(), hollow("two")).unwrap();
        assert!(matches!(cold.read(), Err(LoadError::Changed)));
    }
}
