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

    fn finish_loading(&self) {
        self.change(|snapshot| snapshot.loading = false);
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&self.snapshot.load());
        change(&mut next);
        self.snapshot.store(Arc::new(next));
    }
}
