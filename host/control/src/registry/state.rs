//! The state from which snapshots are made: what operators decided about each model, and how far each
//! version is loaded. It is generic over versions, so that a test can go through every order of events with
//! versions that are mere numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use semver::Version;

use super::failure::Failure;
use crate::rollout::{ModelState, Stage};
use guesthouse_artifact::Digest;
use guesthouse_model::{ModelName, VersionId};

/// How far a version is loaded.
#[derive(Debug, PartialEq, Eq)]
pub enum LoadState<V> {
    /// It is being loaded.
    Loading,
    /// It is loaded and proved.
    Loaded(Arc<V>),
    /// It could not be loaded.
    Failed(Failure),
}

impl<V> Clone for LoadState<V> {
    fn clone(&self) -> Self {
        match self {
            Self::Loading => Self::Loading,
            Self::Loaded(version) => Self::Loaded(Arc::clone(version)),
            Self::Failed(failure) => Self::Failed(failure.clone()),
        }
    }
}

/// What operators decided, and what is loaded.
pub(crate) struct RegistryState<V> {
    pub(crate) states: BTreeMap<ModelName, ModelState>,
    pub(crate) load_states: BTreeMap<VersionId, LoadState<V>>,
    /// Versions that no new request finds, and that running requests may still hold.
    pub(crate) draining: Vec<(VersionId, Arc<V>)>,
    /// Versions that have failed and are being tried again.
    retried: BTreeSet<VersionId>,
    pub(crate) loading: bool,
    /// The generation of the last snapshot.
    pub(crate) generation: u64,
}

impl<V> Clone for RegistryState<V> {
    fn clone(&self) -> Self {
        Self {
            states: self.states.clone(),
            load_states: self.load_states.clone(),
            draining: self.draining.clone(),
            retried: self.retried.clone(),
            loading: self.loading,
            generation: self.generation,
        }
    }
}

impl<V> RegistryState<V> {
    /// The state of a start: nothing is loaded of these models.
    pub(crate) fn new(states: BTreeMap<ModelName, ModelState>) -> Self {
        let (load_states, draining) = (BTreeMap::new(), Vec::new());
        Self {
            states,
            load_states,
            draining,
            retried: BTreeSet::new(),
            loading: true,
            generation: 0,
        }
    }

    /// Set how far a version is loaded, unless it is loaded: a slow thread must not overwrite what another
    /// one has loaded.
    pub(crate) fn set_load_state(&mut self, id: &VersionId, load_state: Option<LoadState<V>>) {
        if !self.is_loaded(id) {
            self.put(id.clone(), load_state);
        }
    }

    /// Apply a decision together with the versions that were loaded for it. Versions that should not be
    /// loaded any longer start to drain. Returns those of the given versions that are not needed.
    #[must_use]
    pub(crate) fn decide(
        &mut self,
        model: &ModelName,
        state: ModelState,
        loaded: Vec<(VersionId, Arc<V>)>,
    ) -> Vec<Arc<V>> {
        let before = self.states.insert(model.clone(), state);
        let mut unused = Vec::new();
        for (id, version) in loaded {
            if self.is_wanted(&id) && !self.is_loaded(&id) {
                self.put(id, Some(LoadState::Loaded(version)));
            } else {
                unused.push(version);
            }
        }
        self.forget_failed(model, before.as_ref());
        self.drain_unwanted(model);
        unused
    }

    /// Insert a loaded version, if it should be loaded with this artifact and is not. Returns it otherwise.
    #[must_use]
    pub(crate) fn insert_loaded(
        &mut self,
        id: VersionId,
        digest: Digest,
        version: Arc<V>,
    ) -> Option<Arc<V>> {
        let deployed = self.states.get(&id.name).and_then(|state| state.versions.get(&id.version));
        let is_same = deployed.is_some_and(|deployed| deployed.digest == digest);
        if !is_same || !self.is_wanted(&id) || self.is_loaded(&id) {
            return Some(version);
        }
        self.put(id, Some(LoadState::Loaded(version)));
        None
    }

    /// Versions that should be loaded, and neither are nor have failed. Another thread may be loading one of
    /// them, but may not succeed.
    pub(crate) fn missing(&self) -> Vec<(VersionId, Digest)> {
        let wanted = self.states.iter().flat_map(|(name, state)| {
            state.loaded().map(|(version, digest)| {
                (VersionId { name: name.clone(), version: version.clone() }, digest)
            })
        });
        wanted
            .filter(|(id, _)| matches!(self.load_states.get(id), None | Some(LoadState::Loading)))
            .collect()
    }

    /// Whether the stable version of some model is still being loaded. A version that has failed does not
    /// count, not even while it is tried again, because that may go on for ever.
    pub(crate) fn is_stable_pending(&self) -> bool {
        self.states.iter().any(|(name, state)| {
            let stable = state.routing.stable.as_ref();
            // A split of the configuration can name a version that is never deployed.
            let stable = stable.filter(|stable| state.versions.contains_key(*stable));
            stable.is_some_and(|stable| {
                let id = VersionId { name: name.clone(), version: stable.clone() };
                let is_pending =
                    matches!(self.load_states.get(&id), None | Some(LoadState::Loading));
                is_pending && !self.retried.contains(&id)
            })
        })
    }

    /// The versions that splits name and that are neither deployed nor failed.
    pub(crate) fn missing_in_splits(&self) -> Vec<VersionId> {
        let mut missing = Vec::new();
        for (name, state) in &self.states {
            for (version, _) in state.routing.shares() {
                let id = VersionId { name: name.clone(), version: version.clone() };
                if !state.versions.contains_key(version) && !self.load_states.contains_key(&id) {
                    missing.push(id);
                }
            }
        }
        missing
    }

    pub(crate) fn is_loaded(&self, id: &VersionId) -> bool {
        matches!(self.load_states.get(id), Some(LoadState::Loaded(_)))
    }

    /// Whether a version should be loaded.
    fn is_wanted(&self, id: &VersionId) -> bool {
        let deployed = self.states.get(&id.name).and_then(|state| state.versions.get(&id.version));
        deployed.is_some_and(|deployed| !matches!(deployed.stage, Stage::Retired(_)))
    }

    fn put(&mut self, id: VersionId, load_state: Option<LoadState<V>>) {
        match (&load_state, self.load_states.get(&id)) {
            (Some(LoadState::Loading), Some(LoadState::Failed(_))) => {
                self.retried.insert(id.clone());
            }
            (Some(LoadState::Loading), _) => {}
            _ => {
                self.retried.remove(&id);
            }
        }
        let before = match load_state {
            Some(load_state) => self.load_states.insert(id.clone(), load_state),
            None => self.load_states.remove(&id),
        };
        if let Some(LoadState::Loaded(version)) = before {
            self.draining.push((id, version));
        }
    }

    /// Forget failures of versions that should not be loaded any more.
    fn forget_failed(&mut self, model: &ModelName, before: Option<&ModelState>) {
        let Some(state) = self.states.get(model) else { return };
        let was_deployed =
            |version: &Version| before.is_some_and(|state| state.versions.contains_key(version));
        let is_wanted = |version: &Version| {
            let deployed = state.versions.get(version);
            deployed.is_some_and(|deployed| !matches!(deployed.stage, Stage::Retired(_)))
        };
        self.load_states.retain(|id, load_state| {
            let is_over = was_deployed(&id.version) && !is_wanted(&id.version);
            id.name != *model || !matches!(load_state, LoadState::Failed(_)) || !is_over
        });
    }

    fn drain_unwanted(&mut self, model: &ModelName) {
        let loaded = self.load_states.iter().filter(|(id, load_state)| {
            id.name == *model && matches!(load_state, LoadState::Loaded(_)) && !self.is_wanted(id)
        });
        let unwanted: Vec<_> = loaded.map(|(id, _)| id.clone()).collect();
        unwanted.into_iter().for_each(|id| self.put(id, None));
    }
}
