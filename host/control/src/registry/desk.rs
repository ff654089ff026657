//! What a snapshot is made from: what was decided about each model, and how far the host has come with
//! each version. Pure but for the versions that it holds, so that a test can go through every order of
//! events with versions that are only numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use semver::Version;

use super::Failure;
use crate::rollout::{ModelState, Stage};
use guesthouse_artifact::Digest;
use guesthouse_model::{ModelName, VersionId};

/// How far the host has come with a version.
#[derive(Debug, PartialEq, Eq)]
pub enum Slot<V> {
    /// On its way.
    Loading,
    /// Loaded and proved.
    Loaded(Arc<V>),
    /// Refused.
    Failed(Failure),
}

impl<V> Clone for Slot<V> {
    fn clone(&self) -> Self {
        match self {
            Self::Loading => Self::Loading,
            Self::Loaded(version) => Self::Loaded(Arc::clone(version)),
            Self::Failed(failure) => Self::Failed(failure.clone()),
        }
    }
}

/// What the snapshot is made from.
pub(crate) struct Desk<V> {
    pub(crate) states: BTreeMap<ModelName, ModelState>,
    pub(crate) slots: BTreeMap<VersionId, Slot<V>>,
    /// Not to be found any more, but perhaps still held by requests.
    pub(crate) draining: Vec<(VersionId, Arc<V>)>,
    /// Versions that have failed and are being loaded once more.
    retried: BTreeSet<VersionId>,
    pub(crate) loading: bool,
    /// Of the last snapshot.
    pub(crate) generation: u64,
}

impl<V> Clone for Desk<V> {
    fn clone(&self) -> Self {
        Self {
            states: self.states.clone(),
            slots: self.slots.clone(),
            draining: self.draining.clone(),
            retried: self.retried.clone(),
            loading: self.loading,
            generation: self.generation,
        }
    }
}

impl<V> Desk<V> {
    /// Nothing is loaded of these models yet.
    pub(crate) fn new(states: BTreeMap<ModelName, ModelState>) -> Self {
        let (slots, draining) = (BTreeMap::new(), Vec::new());
        Self { states, slots, draining, retried: BTreeSet::new(), loading: true, generation: 0 }
    }

    /// Note how far a version has come, unless it is loaded: whoever was slow to say so must not take
    /// away what somebody else has loaded.
    pub(crate) fn mark(&mut self, id: &VersionId, slot: Option<Slot<V>>) {
        if !self.is_loaded(id) {
            self.put(id.clone(), slot);
        }
    }

    /// A decision holds, together with the versions that were loaded for it. What is to be loaded no
    /// longer drains. Of the versions, those that nobody needs are given back.
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
                self.put(id, Some(Slot::Loaded(version)));
            } else {
                unused.push(version);
            }
        }
        self.forget_failed(model, before.as_ref());
        self.drain_unwanted(model);
        unused
    }

    /// Take a version that was loaded, if it is to be loaded with this content and is not.
    #[must_use]
    pub(crate) fn offer(
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
        self.put(id, Some(Slot::Loaded(version)));
        None
    }

    /// Versions that are to be loaded, and neither are nor have failed. Somebody may be loading one of
    /// them, but may not succeed.
    pub(crate) fn absent(&self) -> Vec<(VersionId, Digest)> {
        let wanted = self.states.iter().flat_map(|(name, state)| {
            state.loaded().map(|(version, digest)| {
                (VersionId { name: name.clone(), version: version.clone() }, digest)
            })
        });
        wanted.filter(|(id, _)| matches!(self.slots.get(id), None | Some(Slot::Loading))).collect()
    }

    /// Whether the stable version of some model is not loaded, but on its way. One that has failed is
    /// not, even while it is tried again: that may go on for ever.
    pub(crate) fn is_awaited(&self) -> bool {
        self.states.iter().any(|(name, state)| {
            let stable = state.routing.stable.as_ref();
            // A split of the configuration can name a version that never comes.
            let stable = stable.filter(|stable| state.versions.contains_key(*stable));
            stable.is_some_and(|stable| {
                let id = VersionId { name: name.clone(), version: stable.clone() };
                let is_on_its_way = matches!(self.slots.get(&id), None | Some(Slot::Loading));
                is_on_its_way && !self.retried.contains(&id)
            })
        })
    }

    /// The versions that splits name and that are not there, not even as failed.
    pub(crate) fn absent_of_splits(&self) -> Vec<VersionId> {
        let mut absent = Vec::new();
        for (name, state) in &self.states {
            for (version, _) in state.routing.shares() {
                let id = VersionId { name: name.clone(), version: version.clone() };
                if !state.versions.contains_key(version) && !self.slots.contains_key(&id) {
                    absent.push(id);
                }
            }
        }
        absent
    }

    pub(crate) fn is_loaded(&self, id: &VersionId) -> bool {
        matches!(self.slots.get(id), Some(Slot::Loaded(_)))
    }

    /// Whether a version is to be loaded.
    fn is_wanted(&self, id: &VersionId) -> bool {
        let deployed = self.states.get(&id.name).and_then(|state| state.versions.get(&id.version));
        deployed.is_some_and(|deployed| !matches!(deployed.stage, Stage::Retired(_)))
    }

    fn put(&mut self, id: VersionId, slot: Option<Slot<V>>) {
        match (&slot, self.slots.get(&id)) {
            (Some(Slot::Loading), Some(Slot::Failed(_))) => {
                self.retried.insert(id.clone());
            }
            (Some(Slot::Loading), _) => {}
            _ => {
                self.retried.remove(&id);
            }
        }
        let before = match slot {
            Some(slot) => self.slots.insert(id.clone(), slot),
            None => self.slots.remove(&id),
        };
        if let Some(Slot::Loaded(version)) = before {
            self.draining.push((id, version));
        }
    }

    /// Versions that are not to be loaded any more have not failed either.
    fn forget_failed(&mut self, model: &ModelName, before: Option<&ModelState>) {
        let Some(state) = self.states.get(model) else { return };
        let was_deployed =
            |version: &Version| before.is_some_and(|state| state.versions.contains_key(version));
        let is_wanted = |version: &Version| {
            let deployed = state.versions.get(version);
            deployed.is_some_and(|deployed| !matches!(deployed.stage, Stage::Retired(_)))
        };
        self.slots.retain(|id, slot| {
            let is_over = was_deployed(&id.version) && !is_wanted(&id.version);
            id.name != *model || !matches!(slot, Slot::Failed(_)) || !is_over
        });
    }

    fn drain_unwanted(&mut self, model: &ModelName) {
        let loaded = self.slots.iter().filter(|(id, slot)| {
            id.name == *model && matches!(slot, Slot::Loaded(_)) && !self.is_wanted(id)
        });
        let unwanted: Vec<_> = loaded.map(|(id, _)| id.clone()).collect();
        unwanted.into_iter().for_each(|id| self.put(id, None));
    }
}
