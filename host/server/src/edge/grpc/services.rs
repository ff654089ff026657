//! The services of what is loaded: made when that has changed and somebody asks, and kept until it
//! changes again.
//!
//! There is one for each class of versions of a model that has a release loaded, and none for anything
//! else: so they are as many as versions at most.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;

use crate::typed::{CompatibleRange, ModelService};
use guesthouse_control::registry::{Snapshot, VersionState};
use guesthouse_model::ModelName;
use guesthouse_runtime::version::ServableVersion;

/// The services of what is loaded.
#[derive(Default)]
pub struct Services {
    known: ArcSwap<Known>,
    /// Held by whoever makes them anew.
    desk: Mutex<()>,
}

/// The services of one snapshot.
#[derive(Default)]
pub(in crate::edge) struct Known {
    /// Whose they are. It is not kept alive, because that would keep versions loaded.
    snapshot: Weak<Snapshot>,
    by_name: BTreeMap<String, Arc<Offered>>,
    /// Names that several models would have.
    ambiguous: BTreeSet<String>,
}

/// A service, and what it stands for.
pub(in crate::edge) struct Offered {
    pub(in crate::edge) model: ModelName,
    pub(in crate::edge) class: CompatibleRange,
    pub(in crate::edge) service: ModelService,
    /// The version from whose signature it is made.
    made_of: u64,
}

impl Services {
    /// The service of that name, if what is loaded has it.
    pub(in crate::edge) fn find(
        &self,
        snapshot: &Arc<Snapshot>,
        name: &str,
    ) -> Option<Arc<Offered>> {
        self.known(snapshot).by_name.get(name).map(Arc::clone)
    }

    /// The services of what is loaded.
    pub(in crate::edge) fn known(&self, snapshot: &Arc<Snapshot>) -> Arc<Known> {
        let known = self.known.load();
        if known.is_of(snapshot) {
            return Arc::clone(&known);
        }
        let _desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.known.load();
        if before.is_of(snapshot) {
            return Arc::clone(&before);
        }
        let now = Arc::new(Known::new(snapshot, &before));
        self.known.store(Arc::clone(&now));
        now
    }
}

impl Known {
    fn new(snapshot: &Arc<Snapshot>, before: &Self) -> Self {
        let mut known = Self { snapshot: Arc::downgrade(snapshot), ..Self::default() };
        let made = before.by_name.values().map(|offered| (offered.made_of, offered));
        let made: BTreeMap<u64, &Arc<Offered>> = made.collect();
        for (model, versions) in &snapshot.models {
            let releases = versions.versions.iter().filter(|(version, _)| version.pre.is_empty());
            let servable = releases.filter_map(|(_, state)| VersionState::servable(state));
            // In ascending order: the newest of each class stays.
            let newest: BTreeMap<CompatibleRange, &Arc<ServableVersion>> = servable
                .map(|version| (CompatibleRange::from_version(&version.id().version), version))
                .collect();
            for (class, version) in newest {
                known.add(model, class, version, &made);
            }
        }
        for name in known.ambiguous.difference(&before.ambiguous) {
            tracing::warn!(service = name, "several models would have this service: none has it");
        }
        known
    }

    /// Where two models' names differ in nothing but `-` and `_`, who asked for one must not be answered
    /// by the other, whichever came first.
    fn add(
        &mut self,
        model: &ModelName,
        class: CompatibleRange,
        version: &ServableVersion,
        made: &BTreeMap<u64, &Arc<Offered>>,
    ) {
        let offered = match made.get(&version.key()) {
            Some(offered) if offered.model == *model && offered.class == class => {
                Arc::clone(offered)
            }
            _ => {
                let service = ModelService::new(model, class, version.signature());
                let (model, made_of) = (model.clone(), version.key());
                Arc::new(Offered { model, class, service, made_of })
            }
        };
        let name = offered.service.full_name();
        if self.ambiguous.contains(&name) || self.by_name.contains_key(&name) {
            self.by_name.remove(&name);
            self.ambiguous.insert(name);
        } else {
            self.by_name.insert(name, offered);
        }
    }

    fn is_of(&self, snapshot: &Arc<Snapshot>) -> bool {
        std::ptr::eq(self.snapshot.as_ptr(), Arc::as_ptr(snapshot))
    }

    /// All of them, by their names.
    pub(in crate::edge) fn all(&self) -> impl Iterator<Item = &Arc<Offered>> {
        self.by_name.values()
    }
}
