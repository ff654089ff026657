//! The registry of loaded versions and their routing: one writer, and readers that load an immutable
//! snapshot once per request.
//!
//! Every snapshot is rebuilt from what operators decided ([`ModelState`]) and from how far each version is
//! loaded ([`LoadState`]). A version that should not be loaded any longer drains: no new request finds it,
//! and its memory is freed when the last request that holds it ends.

mod failure;
mod loader;
pub mod metrics;
mod snapshot;
mod state;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};
use guesthouse_artifact::Digest;
use guesthouse_model::{ModelName, VersionId};
use guesthouse_runtime::version::ServableVersion;

pub use failure::{Failure, FailureCause};
pub use loader::{LoadError, Loader, catch_panic, error_chain};
pub use snapshot::{ModelVersions, Snapshot, VersionState};
#[cfg(test)]
pub(crate) use state::{LoadState as TestLoadState, RegistryState as TestRegistryState};

use self::state::RegistryState;
use crate::rollout::ModelState;

/// How far a version is loaded.
pub type LoadState = state::LoadState<ServableVersion>;

/// The loaded versions, and the current snapshot of them.
pub struct Registry {
    snapshot: ArcSwap<Snapshot>,
    state: Mutex<RegistryState<ServableVersion>>,
}

impl Registry {
    /// The registry of a start: nothing is loaded of these models.
    pub fn new(states: BTreeMap<ModelName, ModelState>) -> Self {
        let mut state = RegistryState::new(states);
        let snapshot = ArcSwap::from_pointee(state.snapshot());
        Self { snapshot, state: Mutex::new(state) }
    }

    /// The current snapshot. A version stays alive while something holds it.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// What operators decided about a model; the default state if nothing was.
    pub fn state(&self, model: &ModelName) -> ModelState {
        self.lock().states.get(model).cloned().unwrap_or_default()
    }

    /// What operators decided about all models.
    pub fn states(&self) -> BTreeMap<ModelName, ModelState> {
        self.lock().states.clone()
    }

    /// How far a version is loaded.
    pub fn load_state(&self, id: &VersionId) -> Option<LoadState> {
        self.lock().load_states.get(id).cloned()
    }

    /// Set how far a version is loaded. A loaded version stays loaded.
    pub fn set_load_state(&self, id: &VersionId, load_state: LoadState) {
        self.change(|state| state.set_load_state(id, Some(load_state)));
    }

    /// Undo an attempt to load a version that has failed. A version that another thread has loaded meanwhile
    /// stays loaded.
    pub fn reset_load_state(&self, id: &VersionId, before: Option<LoadState>) {
        self.change(|state| state.set_load_state(id, before));
    }

    /// Apply a decision, together with the versions that were loaded for it.
    pub fn decide(&self, model: &ModelName, decided: ModelState, loaded: Vec<ServableVersion>) {
        let loaded = loaded.into_iter().map(|version| (version.id().clone(), Arc::new(version)));
        let unused = self.change(|state| state.decide(model, decided, loaded.collect()));
        // Freeing a version takes time, so it happens outside of the lock.
        drop(unused);
    }

    /// Serve a loaded version, if it should be loaded and nobody else has loaded it.
    pub fn insert_loaded(&self, version: ServableVersion) {
        let (id, digest) = (version.id().clone(), version.digest());
        let unused = self.change(|state| state.insert_loaded(id, digest, Arc::new(version)));
        drop(unused);
    }

    /// Versions that should be loaded, and neither are nor have failed.
    pub fn missing(&self) -> Vec<(VersionId, Digest)> {
        self.lock().missing()
    }

    /// End the start: from now on, a version that is not there is unknown instead of not ready.
    pub fn finish_loading(&self) {
        self.change(|state| state.loading = false);
    }

    /// Log a warning for each version that a split names and that is neither deployed nor failed.
    pub fn warn_about_missing(&self) {
        let missing = self.lock().missing_in_splits();
        for VersionId { name: model, version } in missing {
            tracing::warn!(%model, %version, "a split names a version that is not deployed");
        }
    }

    /// Drop drained versions, whose last request has ended. Returns how many still drain.
    pub fn sweep(&self) -> usize {
        let (drained, left) = {
            let mut state = self.lock();
            if state.draining.is_empty() {
                return 0;
            }
            let draining = std::mem::take(&mut state.draining);
            // Nothing else can reach a version that only this list holds.
            let (drained, left) = draining
                .into_iter()
                .partition::<Vec<_>, _>(|(_, version)| Arc::strong_count(version) == 1);
            state.draining = left;
            self.snapshot.store(Arc::new(state.snapshot()));
            (drained, state.draining.len())
        };
        for (id, _version) in drained {
            let (model, version) = (&id.name, &id.version);
            tracing::info!(%model, %version, "unloaded");
        }
        left
    }

    fn change<T>(&self, change: impl FnOnce(&mut RegistryState<ServableVersion>) -> T) -> T {
        let mut state = self.lock();
        let changed = change(&mut state);
        self.snapshot.store(Arc::new(state.snapshot()));
        changed
    }

    fn lock(&self) -> MutexGuard<'_, RegistryState<ServableVersion>> {
        // A panic in the middle of a change leaves a state from which a snapshot can be made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{Deployed, Stage};

    fn id(version: &str) -> VersionId {
        VersionId { name: "real".parse().unwrap(), version: version.parse().unwrap() }
    }

    fn shown_states(registry: &Registry) -> Vec<(String, &'static str)> {
        let snapshot = registry.snapshot();
        let versions = snapshot.models.values().flat_map(|model| &model.versions);
        versions.map(|(version, state)| (version.to_string(), state.as_str())).collect()
    }

    #[test]
    fn a_snapshot_shows_decisions_and_load_states() {
        let digest = Digest::from_content(b"artifact");
        let deployed = |stage| Deployed { digest, stage };
        let mut state = ModelState::default();
        state.versions.insert(id("1.0.0").version, deployed(Stage::Retired(1)));
        state.versions.insert(id("2.0.0").version, deployed(Stage::Deployed));
        state.routing.stable = Some(id("2.0.0").version);
        let typo = (("typo".parse().unwrap()), ModelState::default());
        let registry = Registry::new(BTreeMap::from([(id("1.0.0").name, state), typo]));
        let (cause, reason) = (FailureCause::Artifact, "because".into());
        let failure = Failure { step: "test", reason, cause, retry_at: None };
        registry.set_load_state(&id("3.0.0"), LoadState::Failed(failure));
        let word = |version: &str, state| (version.to_owned(), state);
        let shown = [word("1.0.0", "retired"), word("2.0.0", "loading"), word("3.0.0", "failed")];
        assert_eq!(shown_states(&registry), shown);
        assert_eq!(registry.snapshot().models.len(), 2);
        registry.finish_loading();
        assert_eq!(registry.snapshot().models.keys().collect::<Vec<_>>(), [&id("1.0.0").name]);
        registry.reset_load_state(&id("3.0.0"), None);
        assert_eq!(shown_states(&registry), shown[..2]);
        assert!(!registry.snapshot().is_ready());
    }
}
