//! What is loaded: one writer, and readers that take one look at an immutable snapshot.
//!
//! Owns the way of a version from a file to the snapshot: read, pre-initialise or find in the
//! store, prove by the golden examples, warm, publish. What fails is published as failed, with the
//! reason in the log, and stops nothing else.

mod budget;
mod load;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use semver::Version;

pub use budget::{Budget, DoesNotFit};
pub use load::{LoadError, Loader};

use crate::model::{ModelName, VersionId};
use crate::router::Split;
use crate::version::ServableVersion;

/// Everything that can be routed to, at one moment.
#[derive(Default, Clone)]
pub struct Snapshot {
    /// The models by name.
    pub models: BTreeMap<ModelName, ModelVersions>,
    /// Whether the first loading is still going on.
    pub loading: bool,
}

/// The versions of one model.
#[derive(Default, Clone)]
pub struct ModelVersions {
    /// By semver, ascending.
    pub versions: BTreeMap<Version, VersionState>,
    /// How the traffic that asks for no version is divided.
    pub split: Option<Split>,
}

/// How far a version has come.
#[derive(Clone)]
pub enum VersionState {
    /// It is being pre-initialised, proved or warmed.
    Loading,
    /// It serves.
    Ready(Arc<ServableVersion>),
    /// It cannot serve; the word says which step refused it, the log says why.
    Failed(&'static str),
}

impl VersionState {
    /// The word for people.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready(_) => "ready",
            Self::Failed(_) => "failed",
        }
    }
}

impl Snapshot {
    /// The versions that splits name and that are not there, not even as failed.
    fn absent_of_splits(&self) -> Vec<(&ModelName, &Version)> {
        let mut absent = Vec::new();
        for (name, model) in &self.models {
            let named = model.split.iter().flat_map(|split| split.weights());
            let missing = named.filter(|(version, _)| !model.versions.contains_key(version));
            absent.extend(missing.map(|(version, _)| (name, version)));
        }
        absent
    }

    /// Whether the server can be sent requests: everything has been tried and something serves.
    pub fn is_ready(&self) -> bool {
        let ready = |state: &VersionState| matches!(state, VersionState::Ready(_));
        !self.loading && self.models.values().any(|model| model.versions.values().any(ready))
    }
}

/// The one writer of the snapshot.
pub struct Registry {
    snapshot: ArcSwap<Snapshot>,
    writing: Mutex<()>,
}

impl Registry {
    /// A registry that is loading, with nothing loaded; `splits` hold for models yet to come.
    pub fn new(splits: BTreeMap<ModelName, Split>) -> Self {
        let model =
            |(name, split)| (name, ModelVersions { versions: BTreeMap::new(), split: Some(split) });
        let models = splits.into_iter().map(model).collect();
        let snapshot = ArcSwap::from_pointee(Snapshot { models, loading: true });
        Self { snapshot, writing: Mutex::new(()) }
    }

    /// What is loaded now. Whoever holds a version of it keeps that version alive.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    fn publish(&self, id: &VersionId, state: VersionState) {
        self.change(|snapshot| {
            let model = snapshot.models.entry(id.name.clone()).or_default();
            model.versions.insert(id.version.clone(), state);
        });
    }

    /// From now on, what is not there is not coming: say which of the configured splits wait in vain,
    /// and forget the models of which there is nothing but a split.
    fn finish_loading(&self) {
        self.change(|snapshot| {
            for (model, version) in snapshot.absent_of_splits() {
                tracing::warn!(%model, %version, "a split names a version that no artifact has brought");
            }
            snapshot.models.retain(|_, model| !model.versions.is_empty());
            snapshot.loading = false;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&self.snapshot.load());
        change(&mut next);
        self.snapshot.store(Arc::new(next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_of_what_never_came_are_named_and_forgotten() {
        let (one, two) = (Version::new(1, 0, 0), Version::new(2, 0, 0));
        let split = || Split::new([(one.clone(), 900_000), (two.clone(), 100_000)]).unwrap();
        let name = |name: &str| name.parse::<ModelName>().unwrap();
        let registry =
            Registry::new(BTreeMap::from([(name("real"), split()), (name("typo"), split())]));
        let id = VersionId { name: name("real"), version: one.clone() };
        registry.publish(&id, VersionState::Failed("test"));
        let (real, typo) = (name("real"), name("typo"));
        let absent = vec![(&real, &two), (&typo, &two), (&typo, &one)];
        assert_eq!(registry.snapshot().absent_of_splits(), absent);
        registry.finish_loading();
        let snapshot = registry.snapshot();
        assert_eq!(snapshot.models.keys().collect::<Vec<_>>(), [&real]);
        assert!(snapshot.models[&real].split.is_some() && !snapshot.loading);
    }
}
