//! From an artifact to a version that can serve: compiles it if necessary, maps the compiled code, and runs
//! the golden examples. How the compiler runs, what is reserved for a version, and what happens to errors is
//! left to the caller.

use std::path::Path;
use std::sync::Arc;

use guesthouse_artifact::{Artifact, ArtifactError};

use crate::guest::{CompiledCode, EngineError, Engines, InstanceLimits, LoadedComponent};
use crate::preinit::{InstanceStart, PreinitError, PreinitGoal, PreinitReport};
use crate::store::{CompiledVersion, Store, StoreError};
use crate::version::{ModelLimits, ProofError, Reservation, ServableVersion};

/// The signature that `init` returned is not the one in the artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("init declares another signature than the one in the artifact")]
pub struct SignatureMismatch;

/// Whether the guest of an artifact imports arithmetic and is granted it.
pub fn grants_arithmetic(artifact: &Artifact, limits: &InstanceLimits) -> bool {
    artifact.imports_arithmetic() && limits.arithmetic.is_some()
}

/// Compile an artifact for these engines and store the result. `run` pre-initialises the artifact at a path.
///
/// # Errors
/// The error of `run`, or those of the artifact and the state folder.
pub fn compile<E>(
    store: &Store,
    engines: &Engines,
    artifact: &Artifact,
    run: impl FnOnce(&Path, PreinitGoal<'_>) -> Result<PreinitReport, PreinitError>,
) -> Result<CompiledVersion, E>
where
    E: From<ArtifactError> + From<PreinitError> + From<StoreError>,
{
    store.keep(artifact.digest(), |files| {
        // A copy, because the artifact's own file may be replaced in the meantime.
        let folder = files.compiled.parent().unwrap_or(&files.compiled);
        let copy = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
            artifact.copy_to(file.as_file_mut())?;
            Ok(file)
        });
        let copy = copy.map_err(|error| PreinitError::Host(error.to_string()))?;
        let report = run(copy.path(), PreinitGoal::Compiled(files))?;
        if report.fingerprint.as_deref() != Some(&engines.fingerprint()) {
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

/// Map the compiled code of an artifact, create instances, and run the golden examples.
///
/// # Errors
/// The code cannot be mapped, the signatures differ, or a golden example fails.
pub fn activate<E>(
    engines: &Engines,
    artifact: &Arc<Artifact>,
    compiled: &CompiledVersion,
    limits: ModelLimits,
    reservation: Reservation,
) -> Result<ServableVersion, E>
where
    E: From<EngineError> + From<ProofError> + From<SignatureMismatch>,
{
    let component = map::<E>(engines, artifact, compiled, limits.instance)?;
    Ok(ServableVersion::prove(artifact, &compiled.report, component, limits, reservation)?)
}

/// Map the compiled code of an artifact.
///
/// # Errors
/// The code cannot be mapped, or the signatures differ.
pub(crate) fn map<E>(
    engines: &Engines,
    artifact: &Arc<Artifact>,
    compiled: &CompiledVersion,
    limits: InstanceLimits,
) -> Result<LoadedComponent, E>
where
    E: From<EngineError> + From<SignatureMismatch>,
{
    let report = &compiled.report;
    if artifact.signature() != Some(&report.signature) {
        return Err(SignatureMismatch.into());
    }
    let (id, path) = (artifact.id().clone(), compiled.path());
    let code = CompiledCode { component: &path, modules: compiled.modules() };
    // SAFETY: the store has just checked the file against its MAC or has just written it, and the path is
    // that of this very file; the store never changes a file in place, and its folder is this host's alone.
    #[expect(unsafe_code, reason = "mapping native code that only the MAC vouches for")]
    let mut component = unsafe {
        LoadedComponent::map(
            engines.with_stack(limits.stack_bytes),
            code,
            id,
            report.signature.clone(),
            limits,
        )
    }?;
    if let InstanceStart::Init(reason) = &report.start {
        let (model, version) = (&artifact.id().name, &artifact.id().version);
        tracing::warn!(%model, %version, reason, "no snapshot: init runs in each instance");
        component = component.with_init_per_instance(Arc::clone(artifact));
    }
    Ok(component)
}
