//! The immutable snapshot that requests are routed by.

use std::collections::BTreeMap;
use std::sync::Arc;

use guesthouse_model::ModelName;
use guesthouse_runtime::version::ServableVersion;
use semver::Version;

use super::failure::Failure;
use super::state::{LoadState, RegistryState};
use crate::rollout::{Routing, Stage};

/// All models and versions at one moment.
#[derive(Default, Clone)]
pub struct Snapshot {
    /// The models by name.
    pub models: BTreeMap<ModelName, ModelVersions>,
    /// Whether the server is starting: versions may yet come that are not there.
    pub loading: bool,
    /// Grows with each snapshot of a registry, so that a rendered page can be compared with the current
    /// snapshot without holding versions.
    pub generation: u64,
    /// Whether the stable version of some model is still being loaded.
    pub is_stable_pending: bool,
}

/// The versions of one model.
#[derive(Default, Clone)]
pub struct ModelVersions {
    /// The versions, ascending by semver.
    pub versions: BTreeMap<Version, VersionState>,
    /// The routing of the model's traffic.
    pub routing: Routing,
}

/// The state of a version, as it is shown.
#[derive(Clone)]
pub enum VersionState {
    /// It is being loaded.
    Loading,
    /// It serves.
    Ready(Arc<ServableVersion>),
    /// It was replaced and stays loaded: it answers requests that name it, and a rollback is quick.
    Parked(Arc<ServableVersion>),
    /// It is unloaded when its last request ends.
    Draining,
    /// It was replaced longer ago and is not loaded; a rollback loads it again.
    Retired,
    /// It could not be loaded.
    Failed(Failure),
}

impl VersionState {
    /// The name of the state.
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
    /// All versions that can serve.
    pub fn servables(&self) -> impl Iterator<Item = &Arc<ServableVersion>> {
        self.models
            .values()
            .flat_map(|model| model.versions.values())
            .filter_map(VersionState::servable)
    }

    /// Whether the server is ready for requests: the start is over, some version serves, and no stable version
    /// is still being loaded. A stable version that failed does not make the server unready, so that a single
    /// broken model does not take the others out of service.
    pub fn is_ready(&self) -> bool {
        !self.loading && !self.is_stable_pending && self.servables().next().is_some()
    }
}

impl RegistryState<ServableVersion> {
    /// Make the next snapshot.
    pub(super) fn snapshot(&mut self) -> Snapshot {
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
                let shown = match deployed.stage {
                    Stage::Retired(_) => VersionState::Retired,
                    Stage::Deployed | Stage::Parked(_) => VersionState::Loading,
                };
                let is_draining =
                    matches!(model.versions.get(version), Some(VersionState::Draining));
                if !(is_draining && matches!(shown, VersionState::Retired)) {
                    model.versions.insert(version.clone(), shown);
                }
            }
        }
        for (id, load_state) in &self.load_states {
            let deployed =
                self.states.get(&id.name).and_then(|state| state.versions.get(&id.version));
            let is_parked =
                deployed.is_some_and(|deployed| !matches!(deployed.stage, Stage::Deployed));
            let state = match load_state {
                LoadState::Loading => VersionState::Loading,
                LoadState::Loaded(version) if is_parked => {
                    VersionState::Parked(Arc::clone(version))
                }
                LoadState::Loaded(version) => VersionState::Ready(Arc::clone(version)),
                LoadState::Failed(failure) => VersionState::Failed(failure.clone()),
            };
            models.entry(id.name.clone()).or_default().versions.insert(id.version.clone(), state);
        }
        // A model of which there is nothing but a split of the configuration is unknown.
        models.retain(|_, model| self.loading || !model.versions.is_empty());
        Snapshot {
            models,
            loading: self.loading,
            generation: self.generation,
            is_stable_pending: self.is_stable_pending(),
        }
    }
}
