//! Changing what is served: one change at a time, durable before it holds, written down whoever makes
//! it.
//!
//! Deciding is quick and waits only for the disk. Loading takes up to minutes and is done before, under
//! a lock of its own, so that going back never waits for a deployment. A change that fails leaves
//! everything as it was.

mod ask;
mod deploy;
mod folder;
mod keys;
mod many;
mod repository;
mod retry;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ScopedJoinHandle};

pub use ask::{Answer, Ask, Changed, ControlError, DeployReport};
pub use folder::keep;
pub use keys::{KeyAnswer, KeyChanged, KeyRefusal, NewKey};

use arc_swap::ArcSwap;

use self::folder::KnownFolder;
use self::many::Item;
use self::retry::Retries;
use crate::keys::Keys;
use crate::ledger::{Author, Before, Change, Ledger, LedgerError};
use crate::model::{ModelName, VersionId};
use crate::registry::{LoadError, Loader, Registry, Slot};
use crate::rollout::{self, ModelState, Operation, Outcome, Rules};
use crate::version::ServableVersion;

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
    /// Held while versions are loaded.
    loading: Mutex<()>,
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
        let loading = Mutex::new(());
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
            loading,
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
            let ask = Ask::of_host("configuration");
            self.commit(&model, &Operation::Configure { split }, &ask, None)?;
        }
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
        let state = self.registry.state(model);
        if state.versions.is_empty() {
            return Err(ControlError::UnknownModel);
        }
        // What the rules refuse in any case need not be loaded first.
        let is_ready = |version: &semver::Version| state.versions.contains_key(version);
        rollout::apply(&state, operation, &self.rules(model, &state, &is_ready))?;
        let target = operation.version(&state).filter(|_| operation.needs_ready() && !ask.dry_run);
        if let Some(version) = target {
            self.load_if_needed(&VersionId { name: model.clone(), version })?;
        }
        let outcome = self.commit(model, operation, ask, None);
        if outcome.is_err() {
            self.registry.reconcile(model);
        }
        outcome
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

    /// Load a version that is deployed, but retired or failed.
    fn load_if_needed(&self, id: &VersionId) -> Result<(), ControlError> {
        let is_loaded = || matches!(self.registry.slot(id), Some(Slot::Loaded(_)));
        if is_loaded() {
            return Ok(());
        }
        let _loading = self.lock_loading();
        let state = self.registry.state(&id.name);
        let Some(deployed) = state.versions.get(&id.version).filter(|_| !is_loaded()) else {
            return Ok(());
        };
        let item = Item { id: id.clone(), digest: deployed.digest, is_stable: true };
        // Golden examples run there: a guest may use all of its call stack.
        let stack = self.loader.engines.thread_stack_bytes();
        let thread = thread::Builder::new().name("load".to_owned()).stack_size(stack);
        let version = thread::scope(|scope| {
            let loading = thread.spawn_scoped(scope, || self.load_item(&item));
            let panicked = || LoadError::Panicked("it does not say why".to_owned());
            match loading.map(ScopedJoinHandle::join) {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_panic)) => Err(panicked()),
                Err(error) => Err(LoadError::Panicked(format!("no thread: {error}"))),
            }
        })?;
        self.registry.set_slot(id, Slot::Loaded(Arc::new(version)));
        Ok(())
    }

    /// The one place where what is served changes. `loaded` is the version that the operation is
    /// about, if it has just been loaded.
    fn commit(
        &self,
        model: &ModelName,
        operation: &Operation,
        ask: &Ask,
        loaded: Option<Loaded>,
    ) -> Result<Answer, ControlError> {
        let mut head = self.lock_head();
        self.make_sure(&mut head)?;
        // Whoever asks twice at once has been answered by now.
        if let Some(answer) = self.answer_of(ask)? {
            return Ok(answer);
        }
        let state = self.registry.state(model);
        ask.check_revision(&state)?;
        let is_loaded = |version: &semver::Version| {
            let id = VersionId { name: model.clone(), version: version.clone() };
            let loads = ask.dry_run && state.versions.contains_key(version);
            loads || matches!(self.registry.slot(&id), Some(Slot::Loaded(_)))
        };
        let rules = Rules { revision: head.revision + 1, ..self.rules(model, &state, &is_loaded) };
        let outcome = rollout::apply(&state, operation, &rules)?;
        let (report, loaded) = loaded.map(|loaded| (loaded.report, loaded.version)).unzip();
        let is_changed = outcome.state != state;
        let changed = Changed {
            model: model.clone(),
            revision: if ask.dry_run { state.revision } else { outcome.state.revision },
            changed: is_changed,
            dry_run: ask.dry_run,
            status: outcome.status,
            before: state.routing.clone(),
            after: outcome.state.routing.clone(),
            deploy: report,
        };
        let answer = serde_json::to_string(&changed).expect("an answer is JSON");
        if !is_changed && let Some(request) = &ask.request {
            // Asked again later, when there is something to do, it is still the same request.
            self.ledger.remember(request, &answer)?;
        }
        if ask.dry_run || !is_changed {
            if let Some(version) = loaded.flatten() {
                // It was deployed before, but could not be loaded.
                let id = version.id().clone();
                self.registry.set_slot(&id, Slot::Loaded(Arc::new(version)));
            }
            return Ok(Answer::Now(Box::new(changed)));
        }
        let change = describe(model, operation, ask, &state, &outcome);
        let committed = self.ledger.commit(&change, &outcome.state, ask.request.as_ref(), &answer);
        let entry = match committed {
            Ok(entry) => entry,
            Err(error) => {
                // It may be in the ledger all the same; then it has to hold, version included.
                head.is_unsure = true;
                if self.ledger.models().is_ok_and(|held| held.get(model) == Some(&outcome.state)) {
                    self.registry.decide(model, outcome.state, loaded.flatten());
                }
                return Err(error.into());
            }
        };
        head.revision = entry.revision;
        self.show_head(entry.revision, entry.hash);
        self.registry.decide(model, outcome.state, loaded.flatten());
        self.log(&change, rules.revision);
        Ok(Answer::Now(Box::new(changed)))
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
                self.registry.decide(&model, state, None);
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

    fn log(&self, change: &Change, revision: u64) {
        let Change { author: Author { actor, .. }, operation, model, status, .. } = change;
        let version = change.version.as_ref().map(tracing::field::display);
        let actor = crate::terminal::printable(actor);
        tracing::info!(target: "change", revision, %actor, operation, %model, version, status, "changed");
    }

    fn lock_loading(&self) -> MutexGuard<'_, ()> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A change for the history.
fn describe(
    model: &ModelName,
    operation: &Operation,
    ask: &Ask,
    state: &ModelState,
    outcome: &Outcome,
) -> Change {
    let version = match operation {
        Operation::Adopt { .. } => outcome.state.routing.stable.clone(),
        _ => operation.version(state),
    };
    let digest = version.as_ref().and_then(|version| {
        let held = outcome.state.versions.get(version).or(state.versions.get(version));
        held.map(|deployed| deployed.digest)
    });
    Change {
        author: ask.author.clone(),
        operation: operation.as_str(),
        model: model.clone(),
        version,
        digest,
        status: Some(outcome.status.as_str()),
        error: None,
        before: state.routing.clone(),
        after: outcome.state.routing.clone(),
    }
}

/// A version that has just been loaded, for the change that brings it in.
struct Loaded {
    /// None for a trial that is not to change anything.
    version: Option<ServableVersion>,
    report: DeployReport,
}
