//! The index of the gRPC services made from the signatures of the loaded models.
//!
//! It is made again when it is needed and the registry's snapshot has changed. There is one service for each
//! class of versions of a model of which a release is loaded, so that there are at most as many services as
//! versions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use guesthouse_control::registry::{Snapshot, VersionState};
use guesthouse_model::ModelName;
use guesthouse_runtime::version::ServableVersion;

use crate::typed::{CompatibleRange, ModelService};

/// The services of the loaded models.
#[derive(Default)]
pub struct Services {
    index: ArcSwap<ServiceIndex>,
    /// Held while the index is made again.
    rebuild: Mutex<()>,
}

/// The services of one snapshot.
#[derive(Default)]
pub(in crate::edge) struct ServiceIndex {
    /// Weak, because a strong reference would keep the versions of the snapshot loaded.
    snapshot: Weak<Snapshot>,
    by_name: BTreeMap<String, Arc<RoutedService>>,
    /// Names that several models would have.
    ambiguous: BTreeSet<String>,
}

/// A service, and the class of versions that its requests are routed to.
pub(in crate::edge) struct RoutedService {
    pub(in crate::edge) model: ModelName,
    pub(in crate::edge) class: CompatibleRange,
    pub(in crate::edge) service: ModelService,
    /// The key of the version whose signature the service is made from.
    source: u64,
}

impl Services {
    /// The service of this name, if the snapshot has it.
    pub(in crate::edge) fn find(
        &self,
        snapshot: &Arc<Snapshot>,
        name: &str,
    ) -> Option<Arc<RoutedService>> {
        self.index(snapshot).by_name.get(name).map(Arc::clone)
    }

    /// The services of the snapshot.
    pub(in crate::edge) fn index(&self, snapshot: &Arc<Snapshot>) -> Arc<ServiceIndex> {
        let index = self.index.load();
        if index.is_of(snapshot) {
            return Arc::clone(&index);
        }
        let _rebuild = self.rebuild.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.index.load();
        if old.is_of(snapshot) {
            return Arc::clone(&old);
        }
        let new = Arc::new(ServiceIndex::new(snapshot, &old));
        self.index.store(Arc::clone(&new));
        new
    }
}

impl ServiceIndex {
    /// The services of a snapshot. Those that have not changed are shared with the old index.
    fn new(snapshot: &Arc<Snapshot>, old: &Self) -> Self {
        let mut index = Self { snapshot: Arc::downgrade(snapshot), ..Self::default() };
        let by_source = old.by_name.values().map(|service| (service.source, service));
        let by_source: BTreeMap<u64, &Arc<RoutedService>> = by_source.collect();
        for (model, versions) in &snapshot.models {
            let releases = versions.versions.iter().filter(|(version, _)| version.pre.is_empty());
            let servable = releases.filter_map(|(_, state)| VersionState::servable(state));
            // Versions are in ascending order, so the newest of each class remains.
            let newest: BTreeMap<CompatibleRange, &Arc<ServableVersion>> = servable
                .map(|version| (CompatibleRange::from_version(&version.id().version), version))
                .collect();
            for (class, version) in newest {
                index.add(model, class, version, &by_source);
            }
        }
        for name in index.ambiguous.difference(&old.ambiguous) {
            tracing::warn!(service = name, "several models would have this service: none has it");
        }
        index
    }

    /// Add a service. If the names of two models differ only in `-` and `_`, they would have the same
    /// service, and neither gets it: otherwise a request could reach the wrong model.
    fn add(
        &mut self,
        model: &ModelName,
        class: CompatibleRange,
        version: &ServableVersion,
        by_source: &BTreeMap<u64, &Arc<RoutedService>>,
    ) {
        let service = match by_source.get(&version.key()) {
            Some(service) if service.model == *model && service.class == class => {
                Arc::clone(service)
            }
            _ => {
                let service = ModelService::new(model, class, version.signature());
                let (model, source) = (model.clone(), version.key());
                Arc::new(RoutedService { model, class, service, source })
            }
        };
        let name = service.service.full_name();
        if self.ambiguous.contains(&name) || self.by_name.contains_key(&name) {
            self.by_name.remove(&name);
            self.ambiguous.insert(name);
        } else {
            self.by_name.insert(name, service);
        }
    }

    fn is_of(&self, snapshot: &Arc<Snapshot>) -> bool {
        std::ptr::eq(self.snapshot.as_ptr(), Arc::as_ptr(snapshot))
    }

    /// All services, ordered by their names.
    pub(in crate::edge) fn all(&self) -> impl Iterator<Item = &Arc<RoutedService>> {
        self.by_name.values()
    }
}
