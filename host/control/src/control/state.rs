//! The state that all changes share, and the locks that order them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use arc_swap::ArcSwap;

use super::folder_index::FolderIndex;
use super::retry::Retries;
use super::version_locks::VersionLocks;
use crate::keys::Keys;
use crate::ledger::{Ledger, LedgerError};
use crate::registry::{LoadState, Loader, Registry};
use crate::rollout::{ModelState, Rules};
use guesthouse_model::{ModelName, VersionId};

/// How many replaced versions of a model stay loaded: the previous one, and the one before that. Each
/// costs its address space and idle instances; older ones load again in a tenth of a second.
pub const DEFAULT_PARKED: usize = 2;

/// The single writer of everything that is served.
pub struct Control {
    pub(super) loader: Loader,
    pub(super) registry: Arc<Registry>,
    pub(super) ledger: Ledger,
    pub(super) keys: Arc<Keys>,
    /// The number of parked versions of each model that has a number of its own.
    max_parked: BTreeMap<ModelName, usize>,
    /// Locked while a change is made.
    writer: Mutex<Writer>,
    /// The revision and the hash of the last entry, for readers that must not wait for a change.
    published_head: ArcSwap<(u64, String)>,
    /// Held for reading by everything that loads, so that the files in use are not removed.
    pub(super) files: RwLock<()>,
    /// Set when a version that should be loaded may not be. Maintenance clears it and loads.
    pub(super) is_load_due: AtomicBool,
    /// Set when files that nothing needs should be removed.
    pub(super) is_collection_due: AtomicBool,
    pub(super) locks: VersionLocks,
    pub(super) retries: Retries,
    pub(super) folder: FolderIndex,
}

/// What the holder of the change lock knows of the ledger.
pub(super) struct Writer {
    /// The last revision.
    pub(super) revision: u64,
    /// Whether the disk failed during the last change, so that it is unknown whether the ledger has it.
    pub(super) is_uncertain: bool,
}

impl Control {
    /// A control that serves what the ledger says. Nothing is loaded yet.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn new(
        loader: Loader,
        ledger: Ledger,
        max_parked: BTreeMap<ModelName, usize>,
    ) -> Result<Self, LedgerError> {
        let registry = Arc::new(Registry::new(ledger.models()?));
        let keys = Arc::new(Keys::default());
        keys.set_revoked(ledger.revoked_keys());
        keys.replace_stored(ledger.keys()?);
        let (revision, audit_head) = ledger.head()?;
        tracing::info!(revision, %audit_head, "ledger opened");
        Ok(Self {
            loader,
            registry,
            ledger,
            keys,
            max_parked,
            writer: Mutex::new(Writer { revision, is_uncertain: false }),
            published_head: ArcSwap::from_pointee((revision, audit_head)),
            files: RwLock::default(),
            is_load_due: AtomicBool::new(false),
            is_collection_due: AtomicBool::new(false),
            locks: VersionLocks::default(),
            retries: Retries::default(),
            folder: FolderIndex::default(),
        })
    }

    /// The last revision and the hash of the last entry of the audit log. Reads no disk.
    pub fn head(&self) -> Arc<(u64, String)> {
        self.published_head.load_full()
    }

    pub(super) fn publish_head(&self, revision: u64, hash: String) {
        self.published_head.store(Arc::new((revision, hash)));
    }

    /// The loaded versions and their routing.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The API keys.
    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// The durable record of changes.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What loads versions, with the store and the engines.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    pub(super) fn rules<'a>(
        &self,
        model: &ModelName,
        state: &ModelState,
        is_ready: &'a dyn Fn(&semver::Version) -> bool,
    ) -> Rules<'a> {
        let max_parked = self.max_parked.get(model).copied().unwrap_or(DEFAULT_PARKED);
        Rules { is_ready, max_parked, revision: state.revision + 1 }
    }

    pub(super) fn is_loaded(&self, id: &VersionId) -> bool {
        matches!(self.registry.load_state(id), Some(LoadState::Loaded(_)))
    }

    pub(super) fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a failure of the disk, read from the ledger what holds. Does nothing otherwise.
    pub(super) fn reconcile(&self, writer: &mut Writer) -> Result<(), LedgerError> {
        if !writer.is_uncertain {
            return Ok(());
        }
        // From here on, what the ledger says is acknowledged.
        self.ledger.reconcile_head()?;
        let states = self.ledger.models()?;
        let (revision, hash) = self.ledger.head()?;
        self.keys.replace_stored(self.ledger.keys()?);
        writer.revision = revision;
        self.publish_head(revision, hash);
        for (model, state) in states {
            if state != self.registry.state(&model) {
                let revision = state.revision;
                tracing::warn!(%model, revision, "the ledger has a change that was reported as failed; it is applied");
                self.registry.decide(&model, state, Vec::new());
                // The versions it routes to may not be loaded.
                self.is_load_due.store(true, Ordering::Relaxed);
            }
        }
        writer.is_uncertain = false;
        Ok(())
    }

    /// Keep the files of the state folder that are in use. Held by all who load, together; files are
    /// only removed while nobody holds it.
    pub(super) fn hold_files(&self) -> RwLockReadGuard<'_, ()> {
        self.files.read().unwrap_or_else(PoisonError::into_inner)
    }
}
