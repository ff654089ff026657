//! What is loaded and what goes to it: one writer, and readers that take one look at an immutable
//! snapshot.
//!
//! Every snapshot is made anew from what operators decided ([`ModelState`]) and from how far each
//! version has come ([`Slot`]). A version that is to be loaded no longer drains: nobody new finds it,
//! and it goes when the last request that holds it is over.

mod desk;
mod load;
pub mod metrics;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use semver::Version;

#[cfg(test)]
pub(crate) use desk::{Desk as TestDesk, Slot as TestSlot};
pub use load::{Cause, LoadError, Loader};
pub use load::{chain, guarded};

use self::desk::Desk;
use crate::rollout::{ModelState, Routing, Stage};
use guesthouse_artifact::Digest;
use guesthouse_model::{ModelName, VersionId};
use guesthouse_runtime::version::ServableVersion;

/// Everything that can be routed to, at one moment.
#[derive(Default, Clone)]
pub struct Snapshot {
    /// The models by name.
    pub models: BTreeMap<ModelName, ModelVersions>,
    /// Whether the first loading is still going on.
    pub loading: bool,
    /// Grows with each snapshot of a registry, so that what was rendered from one can be told from what
    /// the next one says without keeping versions loaded.
    pub generation: u64,
    /// Whether the stable version of some model is not loaded, but is on its way.
    pub is_awaited: bool,
}

/// The versions of one model.
#[derive(Default, Clone)]
pub struct ModelVersions {
    /// By semver, ascending.
    pub versions: BTreeMap<Version, VersionState>,
    /// What goes to them.
    pub routing: Routing,
}

/// How far a version has come.
#[derive(Clone)]
pub enum VersionState {
    /// It is being pre-initialised, proved or warmed.
    Loading,
    /// It serves.
    Ready(Arc<ServableVersion>),
    /// It was replaced and stays loaded: it serves who asks for it, and is there to go back to.
    Parked(Arc<ServableVersion>),
    /// It ends with the last request that it has.
    Draining,
    /// It was replaced longer ago and is not loaded, but can be.
    Retired,
    /// It cannot serve.
    Failed(Failure),
}

/// Why a version cannot serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The step that refused it, a word for everybody.
    pub step: &'static str,
    /// The reason, for operators.
    pub reason: Arc<str>,
    /// What kind of failure it is.
    pub cause: Cause,
    /// When the version is tried again, if nobody asks for it before.
    pub retry_at: Option<Instant>,
}

impl VersionState {
    /// The word for people.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready(_) => "ready",
            Self::Parked(_) => "parked",
            Self::Draining => "draining",
            Self::Retired => "retired",
            Self::Failed(_) => "failed",
        }
    }

    /// The version, if it can serve.
    pub fn servable(&self) -> Option<&Arc<ServableVersion>> {
        match self {
            Self::Ready(version) | Self::Parked(version) => Some(version),
            Self::Loading | Self::Draining | Self::Retired | Self::Failed(_) => None,
        }
    }
}

impl Snapshot {
    /// Every version that is loaded.
    pub fn servables(&self) -> impl Iterator<Item = &Arc<ServableVersion>> {
        self.models
            .values()
            .flat_map(|model| model.versions.values())
            .filter_map(VersionState::servable)
    }

    /// Whether the server can be sent requests: everything has been tried, something serves, and no
    /// stable version is on its way. One that failed to load is not on its way, so that a single
    /// broken model does not take a server with others out of service.
    pub fn is_ready(&self) -> bool {
        !self.loading && !self.is_awaited && self.servables().next().is_some()
    }
}

/// How far the host has come with a version.
pub type Slot = desk::Slot<ServableVersion>;

/// The one writer of the snapshot.
pub struct Registry {
    snapshot: ArcSwap<Snapshot>,
    desk: Mutex<Desk<ServableVersion>>,
}

impl Registry {
    /// A registry that is loading, with nothing loaded of these models yet.
    pub fn new(states: BTreeMap<ModelName, ModelState>) -> Self {
        let mut desk = Desk::new(states);
        let snapshot = ArcSwap::from_pointee(desk.snapshot());
        Self { snapshot, desk: Mutex::new(desk) }
    }

    /// What is loaded now. Whoever holds a version of it keeps that version alive.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// What was decided about a model; the state before the first decision, if it is not known.
    pub fn state(&self, model: &ModelName) -> ModelState {
        self.lock().states.get(model).cloned().unwrap_or_default()
    }

    /// What was decided about every model.
    pub fn states(&self) -> BTreeMap<ModelName, ModelState> {
        self.lock().states.clone()
    }

    /// How far the host has come with a version.
    pub fn slot(&self, id: &VersionId) -> Option<Slot> {
        self.lock().slots.get(id).cloned()
    }

    /// The host has come so far with a version. What is loaded already stays loaded.
    pub fn set_slot(&self, id: &VersionId, slot: Slot) {
        self.change(|desk| desk.mark(id, Some(slot)));
    }

    /// An attempt to load a version came to nothing: it is as it was before. What was loaded in the
    /// meantime stays loaded.
    pub fn reset_slot(&self, id: &VersionId, before: Option<Slot>) {
        self.change(|desk| desk.mark(id, before));
    }

    /// A decision holds from now on, together with the versions that were loaded for it.
    pub fn decide(&self, model: &ModelName, state: ModelState, loaded: Vec<ServableVersion>) {
        let loaded = loaded.into_iter().map(|version| (version.id().clone(), Arc::new(version)));
        let unused = self.change(|desk| desk.decide(model, state, loaded.collect()));
        // Freeing a version takes time, which nobody should wait for.
        drop(unused);
    }

    /// Serve a version that was loaded, if it is still wanted and nobody else has loaded it.
    pub fn offer(&self, version: ServableVersion) {
        let (id, digest) = (version.id().clone(), version.digest());
        let unused = self.change(|desk| desk.offer(id, digest, Arc::new(version)));
        drop(unused);
    }

    /// Versions that are to be loaded, and neither are nor have failed.
    pub fn absent(&self) -> Vec<(VersionId, Digest)> {
        self.lock().absent()
    }

    /// From now on, what is not there is not known, rather than perhaps coming.
    pub fn finish_loading(&self) {
        self.change(|desk| desk.loading = false);
    }

    /// Say which versions have a share and are not there, not even as failed.
    pub fn warn_of_absent(&self) {
        let absent = self.lock().absent_of_splits();
        for VersionId { name: model, version } in absent {
            tracing::warn!(%model, %version, "a split names a version that no artifact has brought");
        }
    }

    /// Let go of versions whose last request is over; how many still drain.
    pub fn sweep(&self) -> usize {
        let (over, left) = {
            let mut desk = self.lock();
            if desk.draining.is_empty() {
                return 0;
            }
            let draining = std::mem::take(&mut desk.draining);
            // Nobody can take hold of what only this list holds.
            let (over, left) = draining
                .into_iter()
                .partition::<Vec<_>, _>(|(_, version)| Arc::strong_count(version) == 1);
            desk.draining = left;
            self.snapshot.store(Arc::new(desk.snapshot()));
            (over, desk.draining.len())
        };
        for (id, _version) in over {
            let (model, version) = (&id.name, &id.version);
            tracing::info!(%model, %version, "unloaded");
        }
        left
    }

    fn change<T>(&self, change: impl FnOnce(&mut Desk<ServableVersion>) -> T) -> T {
        let mut desk = self.lock();
        let changed = change(&mut desk);
        self.snapshot.store(Arc::new(desk.snapshot()));
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Desk<ServableVersion>> {
        // A panic half-way through a change leaves what the next snapshot shows as it is.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk<ServableVersion> {
    fn snapshot(&mut self) -> Snapshot {
        self.generation += 1;
        let mut models = BTreeMap::<ModelName, ModelVersions>::new();
        for (id, _) in &self.draining {
            let model = models.entry(id.name.clone()).or_default();
            model.versions.insert(id.version.clone(), VersionState::Draining);
        }
        for (name, state) in &self.states {
            let model = models.entry(name.clone()).or_default();
            model.routing = state.routing.clone();
            for (version, deployed) in &state.versions {
                let word = match deployed.stage {
                    Stage::Retired(_) => VersionState::Retired,
                    Stage::Deployed | Stage::Parked(_) => VersionState::Loading,
                };
                let is_draining =
                    matches!(model.versions.get(version), Some(VersionState::Draining));
                if !(is_draining && matches!(word, VersionState::Retired)) {
                    model.versions.insert(version.clone(), word);
                }
            }
        }
        for (id, slot) in &self.slots {
            let deployed =
                self.states.get(&id.name).and_then(|state| state.versions.get(&id.version));
            let is_parked =
                deployed.is_some_and(|deployed| !matches!(deployed.stage, Stage::Deployed));
            let state = match slot {
                Slot::Loading => VersionState::Loading,
                Slot::Loaded(version) if is_parked => VersionState::Parked(Arc::clone(version)),
                Slot::Loaded(version) => VersionState::Ready(Arc::clone(version)),
                Slot::Failed(failure) => VersionState::Failed(failure.clone()),
            };
            models.entry(id.name.clone()).or_default().versions.insert(id.version.clone(), state);
        }
        // Nobody can ask anything of a model of which there is nothing but a split.
        models.retain(|_, model| self.loading || !model.versions.is_empty());
        Snapshot {
            models,
            loading: self.loading,
            generation: self.generation,
            is_awaited: self.is_awaited(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::Deployed;

    fn id(version: &str) -> VersionId {
        VersionId { name: "real".parse().unwrap(), version: version.parse().unwrap() }
    }

    fn words(registry: &Registry) -> Vec<(String, &'static str)> {
        let snapshot = registry.snapshot();
        let versions = snapshot.models.values().flat_map(|model| &model.versions);
        versions.map(|(version, state)| (version.to_string(), state.as_str())).collect()
    }

    #[test]
    fn a_snapshot_shows_routing_and_load_states() {
        let digest = Digest::from_content(b"artifact");
        let deployed = |stage| Deployed { digest, stage };
        let mut state = ModelState::default();
        state.versions.insert(id("1.0.0").version, deployed(Stage::Retired(1)));
        state.versions.insert(id("2.0.0").version, deployed(Stage::Deployed));
        state.routing.stable = Some(id("2.0.0").version);
        let typo = (("typo".parse().unwrap()), ModelState::default());
        let registry = Registry::new(BTreeMap::from([(id("1.0.0").name, state), typo]));
        let (cause, reason) = (Cause::Artifact, "because".into());
        let failure = Failure { step: "test", reason, cause, retry_at: None };
        registry.set_slot(&id("3.0.0"), Slot::Failed(failure));
        let word = |version: &str, state| (version.to_owned(), state);
        let shown = [word("1.0.0", "retired"), word("2.0.0", "loading"), word("3.0.0", "failed")];
        assert_eq!(words(&registry), shown);
        assert_eq!(registry.snapshot().models.len(), 2);
        registry.finish_loading();
        assert_eq!(registry.snapshot().models.keys().collect::<Vec<_>>(), [&id("1.0.0").name]);
        registry.reset_slot(&id("3.0.0"), None);
        assert_eq!(words(&registry), shown[..2]);
        assert!(!registry.snapshot().is_ready());
    }
}
