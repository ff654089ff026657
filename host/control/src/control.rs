//! Changing what is served: one change at a time, durable before it holds, written down whoever makes
//! it.
//!
//! Deciding is quick and waits only for the disk. Loading takes up to minutes and is done before, under
//! a lock of its version alone, so that going back never waits for a deployment. Whether a change can
//! hold is decided under the lock of the changes: if it would bring a version into use that is not
//! loaded, that one is loaded and the change is decided again. A change that fails leaves everything as
//! it was.

mod adoption;
mod ask;
mod commit;
mod deploy;
mod folder;
mod keys;
mod many;
#[cfg(test)]
mod orders;
mod repository;
mod retry;
mod turns;
mod upkeep;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::{self, ScopedJoinHandle};

pub use ask::{Answer, Ask, Changed, ControlError, DeployReport};
pub use folder::keep;
pub use keys::{KeyAnswer, KeyChanged, KeyRefusal, NewKey};
pub use upkeep::keep_up;

use arc_swap::ArcSwap;

use self::commit::{Loaded, Proposal};
use self::folder::KnownFolder;
use self::many::Item;
use self::retry::Retries;
use self::turns::Turns;
use crate::keys::Keys;
use crate::ledger::{Before, Ledger, LedgerError};
use crate::registry::{LoadError, Loader, Registry, Slot};
use crate::rollout::{ModelState, Operation, Rules};
use guesthouse_model::{ModelName, VersionId};
use guesthouse_runtime::preinit::queue::CompilePriority;
use guesthouse_runtime::version::ServableVersion;

/// How many replaced versions of a model stay loaded: the one before, and the one before that. Each
/// costs its address space and idle instances; more are loaded again in a tenth of a second.
pub const DEFAULT_PARKED: usize = 2;

/// The steps of a deployment, in order; the compiled form is found or compiled.
pub const DEPLOY_STEPS: [&str; 8] =
    ["store", "verify", "contract", "find", "compile", "prove", "replay", "publish"];

/// Everything that changes what is served goes through this.
pub struct Control {
    loader: Loader,
    registry: Arc<Registry>,
    ledger: Ledger,
    keys: Arc<Keys>,
    /// By model, where it is not the default.
    max_parked: BTreeMap<ModelName, usize>,
    /// Held while a change is made.
    head: Mutex<Head>,
    /// Whether something is to be loaded that is not.
    is_missing: AtomicBool,
    /// For who only wants to know; waits for nobody.
    shown_head: ArcSwap<(u64, String)>,
    /// Shared by all who load, so that files that they need are not removed.
    loading: RwLock<()>,
    /// Whether files that nothing needs should be looked for.
    is_collection_due: AtomicBool,
    turns: Turns,
    /// Versions that failed by accident.
    retries: Retries,
    /// What is known of the repository folder.
    folder: KnownFolder,
}

/// Where the ledger is.
struct Head {
    /// The last revision.
    revision: u64,
    /// Whether the disk failed at the last change, so that nobody knows whether it is in the ledger.
    is_unsure: bool,
}

impl Control {
    /// Take over what the ledger says.
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
        keys.refuse(ledger.revoked_keys());
        keys.replace_stored(ledger.keys()?);
        let (revision, audit_head) = ledger.head()?;
        tracing::info!(revision, %audit_head, "ledger opened");
        let shown_head = ArcSwap::from_pointee((revision, audit_head));
        let head = Mutex::new(Head { revision, is_unsure: false });
        let is_missing = AtomicBool::new(false);
        Ok(Self {
            loader,
            registry,
            ledger,
            keys,
            max_parked,
            head,
            is_missing,
            shown_head,
            loading: RwLock::default(),
            is_collection_due: AtomicBool::new(false),
            turns: Turns::default(),
            retries: Retries::default(),
            folder: KnownFolder::default(),
        })
    }

    /// The last revision, and the hash of the last entry of the log; needs no disk.
    pub fn head(&self) -> Arc<(u64, String)> {
        self.shown_head.load_full()
    }

    fn show_head(&self, revision: u64, hash: String) {
        self.shown_head.store(Arc::new((revision, hash)));
    }

    /// What is loaded, for those who serve.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Who may ask for what, for those who serve.
    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// The record of changes.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The loading of versions.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// Put the splits of the configuration file into force, if they are not those of the last time.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn configure(
        &self,
        splits: BTreeMap<ModelName, BTreeMap<semver::Version, u32>>,
    ) -> Result<(), ControlError> {
        let known = self.registry.states().into_iter();
        let silent =
            known.filter(|(name, state)| state.configured.is_some() && !splits.contains_key(name));
        let silent: Vec<_> = silent.map(|(name, _)| (name, None)).collect();
        let said = splits.into_iter().map(|(name, split)| (name, Some(split)));
        for (model, split) in said.chain(silent) {
            self.configure_model(&model, &Operation::Configure { split })?;
        }
        Ok(())
    }

    /// What the split points to is loaded first, unless everything is yet to be loaded. A version that
    /// cannot be loaded is left to the rules of routing: its share goes to others.
    fn configure_model(
        &self,
        model: &ModelName,
        operation: &Operation,
    ) -> Result<(), ControlError> {
        let ask = Ask::of_host("configuration");
        if !self.registry.snapshot().loading {
            match self.commit(model, operation, &ask, None) {
                Err(ControlError::Load(error)) => {
                    let reason = error.failure().reason;
                    tracing::error!(%model, %reason, "a split points to a version that cannot be loaded");
                }
                outcome => return outcome.map(drop),
            }
        }
        let proposal = Proposal { model, operation, ask: &ask, may_lack: true };
        self.try_commit(&proposal, &mut Loaded::default())?;
        self.is_missing.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Make a change. What it points to is loaded first, if it is not.
    ///
    /// # Errors
    /// [`ControlError`]; then nothing has changed.
    pub fn change(
        &self,
        model: &ModelName,
        operation: &Operation,
        ask: &Ask,
    ) -> Result<Answer, ControlError> {
        if let Some(answer) = self.answered(ask)? {
            return Ok(answer);
        }
        if self.registry.state(model).versions.is_empty() {
            return Err(ControlError::UnknownModel);
        }
        self.commit(model, operation, ask, None)
    }

    /// The answer that was given to the same request before. What it says to have been made holds.
    fn answered(&self, ask: &Ask) -> Result<Option<Answer>, ControlError> {
        if ask.request.is_some() {
            self.make_sure(&mut self.lock_head())?;
        }
        self.answer_of(ask)
    }

    fn answer_of(&self, ask: &Ask) -> Result<Option<Answer>, ControlError> {
        let Some(request) = &ask.request else { return Ok(None) };
        match self.ledger.asked_before(request)? {
            Before::Unknown => Ok(None),
            Before::Answered(answer) => Ok(Some(Answer::Before(answer))),
            Before::Mismatch => Err(ControlError::KeyMismatch),
        }
    }

    fn rules<'a>(
        &self,
        model: &ModelName,
        state: &ModelState,
        is_ready: &'a dyn Fn(&semver::Version) -> bool,
    ) -> Rules<'a> {
        let max_parked = self.max_parked.get(model).copied().unwrap_or(DEFAULT_PARKED);
        Rules { is_ready, max_parked, revision: state.revision + 1 }
    }

    /// Load a version that is to be loaded and is not.
    fn load_if_needed(&self, id: &VersionId) -> Result<(), ControlError> {
        let _loading = self.begin_loading();
        let _turn = self.turns.take(id);
        if let Some(version) = self.load_deployed(id)? {
            self.registry.offer(version);
        }
        Ok(())
    }

    /// Load a version that is deployed; none if it is loaded already or not deployed any more. The
    /// caller has its turn.
    fn load_deployed(&self, id: &VersionId) -> Result<Option<ServableVersion>, ControlError> {
        let state = self.registry.state(&id.name);
        let deployed = state.versions.get(&id.version).filter(|_| !self.is_loaded(id));
        let Some(deployed) = deployed else { return Ok(None) };
        let item = Item { id: id.clone(), digest: deployed.digest, is_stable: true };
        // Golden examples run there: a guest may use all of its call stack.
        let stack = self.loader.engines.thread_stack_bytes();
        let thread = thread::Builder::new().name("load".to_owned()).stack_size(stack);
        let version = thread::scope(|scope| {
            let loading =
                thread.spawn_scoped(scope, || self.load_item(&item, CompilePriority::Operator));
            let panicked = || LoadError::Panicked("it does not say why".to_owned());
            match loading.map(ScopedJoinHandle::join) {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_panic)) => Err(panicked()),
                Err(error) => Err(LoadError::Panicked(format!("no thread: {error}"))),
            }
        })?;
        Ok(Some(version))
    }

    fn is_loaded(&self, id: &VersionId) -> bool {
        matches!(self.registry.slot(id), Some(Slot::Loaded(_)))
    }

    /// After a failure of the disk, what the ledger says is what holds.
    fn make_sure(&self, head: &mut Head) -> Result<(), LedgerError> {
        if !head.is_unsure {
            return Ok(());
        }
        // From here on, what the ledger says is acknowledged.
        self.ledger.settle()?;
        let states = self.ledger.models()?;
        let (revision, hash) = self.ledger.head()?;
        self.keys.replace_stored(self.ledger.keys()?);
        head.revision = revision;
        self.show_head(revision, hash);
        for (model, state) in states {
            if state != self.registry.state(&model) {
                let revision = state.revision;
                tracing::warn!(%model, revision, "a change that seemed to fail is in the ledger, and holds");
                self.registry.decide(&model, state, Vec::new());
                // What it points to may not be loaded.
                self.is_missing.store(true, Ordering::Relaxed);
            }
        }
        head.is_unsure = false;
        Ok(())
    }

    fn lock_head(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by all who load, together. Files are only removed while nobody does.
    fn begin_loading(&self) -> RwLockReadGuard<'_, ()> {
        self.loading.read().unwrap_or_else(PoisonError::into_inner)
    }
}
