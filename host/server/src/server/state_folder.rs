//! Opening the state folder: the store, the engines whose code it keeps, and the ledger.

use std::sync::Arc;

use guesthouse_artifact::{ArtifactError, CONTRACT_VERSION};
use guesthouse_control::ledger::Ledger;
use guesthouse_control::registry::Loader;
use guesthouse_control::rollout::ModelState;
use guesthouse_control::shadow::ShadowLimits;
use guesthouse_runtime::guest::Engines;
use guesthouse_runtime::preinit::queue::CompileQueue;
use guesthouse_runtime::store::Store;
use guesthouse_runtime::version::ResourceBudget;

use super::error::ServeError;
use crate::config::Settings;
use crate::observe::logs;

/// Open the state folder. If the demo finds one whose versions this release cannot load, it leaves it alone and
/// uses another one beside it.
pub(super) fn open_state(settings: &mut Settings) -> Result<(Loader, Ledger), ServeError> {
    let on_loss = settings.start.on_ledger_loss;
    let open = |settings: &Settings| {
        let loader = loader(settings)?;
        let store = &loader.store;
        let ledger = Ledger::open(store.folder(), store.has_artifacts()?, on_loss)?;
        Ok::<_, ServeError>((loader, ledger))
    };
    let (loader, ledger) = open(settings)?;
    if !settings.start.is_demo {
        return Ok((loader, ledger));
    }
    let states = ledger.models()?;
    let mut digests = states.values().flat_map(ModelState::loaded).map(|(_, digest)| digest);
    let is_outdated =
        |digest| matches!(loader.store.artifact(digest), Err(ArtifactError::OtherContract { .. }));
    if !digests.any(is_outdated) {
        return Ok((loader, ledger));
    }
    drop((loader, ledger));
    let mut fresh = settings.state.clone().into_os_string();
    fresh.push(format!("-contract-{CONTRACT_VERSION}"));
    let old = std::mem::replace(&mut settings.state, fresh.into());
    tracing::warn!(
        old = %old.display(),
        state = %settings.state.display(),
        "the state folder is of a release with another contract: the demo leaves it unchanged and uses \
         another one; remove the old one if it is not needed"
    );
    open(settings)
}

fn loader(settings: &Settings) -> Result<Loader, ServeError> {
    let limits = std::iter::once(&settings.limits.model).chain(settings.models.values());
    let stacks = limits.map(|limits| limits.instance.stack_bytes);
    let mut engine = settings.limits.engine;
    // Shadows have instances in addition to those reserved for serving.
    let shadows = u32::try_from(ShadowLimits::default().threads).unwrap_or(u32::MAX);
    engine.max_instances = engine.max_instances.saturating_add(shadows);
    let engines = Engines::serving(engine, stacks)?;
    let store = Store::open(&settings.state, engines.fingerprint())?;
    Ok(Loader {
        engines,
        store,
        preinit_limits: settings.limits.preinit,
        default_limits: settings.limits.model,
        model_limits: settings.models.clone(),
        meters: Arc::default(),
        child_environment: logs::child_environment,
        traffic: Arc::default(),
        queue: CompileQueue::new(settings.limits.preinit.memory_bytes),
        budget: ResourceBudget::new(
            settings.limits.engine.max_instances,
            settings.limits.memory_bytes,
        ),
    })
}
