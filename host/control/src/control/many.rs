//! Loading many versions at once: what is compiled side by side, the rest as [`queue`] allows.
//!
//! [`queue`]: guesthouse_runtime::preinit::queue

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::Control;
use super::turns::Turn;
use crate::registry::{Failure, LoadError, Slot};
use guesthouse_artifact::Digest;
use guesthouse_model::VersionId;
use guesthouse_runtime::preinit::queue::{CompileJob, CompilePriority};
use guesthouse_runtime::version::ServableVersion;

/// A version to load, whose artifact is in the store. Its bytes are read when its turn comes: a
/// repository that nobody has compiled yet need not fit into memory.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) id: VersionId,
    pub(super) digest: Digest,
    /// Whether the model is not served without it.
    pub(super) is_stable: bool,
}

/// A version that was tried.
pub(super) struct Tried<'a> {
    pub(super) version: Result<ServableVersion, LoadError>,
    /// Whether it was in the store or had to be compiled.
    pub(super) from: &'static str,
    pub(super) started: Instant,
    /// Held until it is known what becomes of the version.
    pub(super) turn: Turn<'a>,
}

/// Small artifacts that are compiled at once, of those found together: two, so that one that is slow
/// does not hold up the others until it has turned out not to be small.
const SMALL_WORKERS: usize = 2;

/// Whom to tell what has become of a version.
type Done<'a> = &'a (dyn Fn(&Item, Tried<'_>) + Sync);

/// What has to be compiled, the first ones first.
struct Cold {
    small: VecDeque<Item>,
    large: VecDeque<Item>,
    /// Small ones under way: each may yet turn out to be large.
    small_running: usize,
}

impl Control {
    /// Load what was served when the ledger was written last. If anything was, that is what this host
    /// is there for, and the repository folder is for later.
    ///
    /// # Errors
    /// The machine gives no more threads.
    pub fn restore(&self) -> io::Result<()> {
        self.load_absent()?;
        if self.registry.snapshot().servables().next().is_some() {
            self.registry.finish_loading();
        }
        Ok(())
    }

    /// A version that is deployed already was loaded, or could not be.
    pub(super) fn publish_loaded(&self, item: &Item, tried: Tried<'_>) {
        let Tried { version, from, started, turn: _turn } = tried;
        match version {
            Ok(version) => {
                // It may have been undeployed in the meantime.
                self.registry.offer(version);
                log_ready(&item.id, from, started);
            }
            Err(error) => self.refuse(&item.id, error.failure()),
        }
    }

    /// Load what is to be loaded, and neither is nor has failed.
    pub(super) fn load_absent(&self) -> io::Result<()> {
        let _loading = self.begin_loading();
        let item = |(id, digest): (VersionId, Digest)| {
            let state = self.registry.state(&id.name);
            let is_stable = state.routing.stable.as_ref() == Some(&id.version);
            Item { id, digest, is_stable }
        };
        let items = self.registry.absent().into_iter().map(item).collect();
        self.load_many(items, CompilePriority::Restore, &|item, tried| {
            self.publish_loaded(item, tried)
        })
    }

    /// Load versions, and let `done` know what has become of each, on the thread that has loaded it.
    /// What is compiled is loaded first; of the rest, small ones and large ones beside each other.
    /// Versions that somebody else has loaded or withdrawn meanwhile are left out.
    pub(super) fn load_many(
        &self,
        mut items: Vec<Item>,
        urgency: CompilePriority,
        done: Done<'_>,
    ) -> io::Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        // The highest version of a model first: it is the one that is asked for.
        items.sort_by_key(|item| {
            let VersionId { name, version } = item.id.clone();
            (!item.is_stable, name, Reverse(version))
        });
        let cold = Mutex::new(Vec::new());
        let find = |item: Item| {
            let started = Instant::now();
            let Some(turn) = self.turn_of(&item, urgency) else { return };
            let version = match self.load_found(&item) {
                Ok(None) => {
                    cold.lock().unwrap_or_else(PoisonError::into_inner).push(item);
                    return;
                }
                Ok(Some(version)) => Ok(version),
                Err(error) => Err(error),
            };
            done(&item, Tried { version, from: "store", started, turn });
        };
        // Golden examples run on these threads: a guest may use all of its call stack there, too.
        let stack = self.loader.engines.thread_stack_bytes();
        side_by_side(items, stack, &find)?;
        let mut cold = cold.into_inner().unwrap_or_else(PoisonError::into_inner);
        cold.sort_by_key(|item| {
            let VersionId { name, version } = item.id.clone();
            (!item.is_stable, name, Reverse(version))
        });
        self.compile_many(cold, urgency, done)
    }

    /// The turn of a version, unless there is nothing to load any more: somebody else has loaded it,
    /// tried to, or withdrawn it.
    fn turn_of(&self, item: &Item, urgency: CompilePriority) -> Option<Turn<'_>> {
        let turn = self.turns.take(&item.id);
        let is_over = match self.registry.slot(&item.id) {
            Some(Slot::Loaded(_)) => true,
            // The folder's versions have failed before if they are tried again.
            Some(Slot::Failed(_)) => urgency == CompilePriority::Restore,
            Some(Slot::Loading) | None => false,
        };
        let is_withdrawn = self.registry.state(&item.id.name).withdrawn.contains(&item.digest);
        (!is_over && !is_withdrawn).then_some(turn)
    }

    fn compile_many(
        &self,
        cold: Vec<Item>,
        urgency: CompilePriority,
        done: Done<'_>,
    ) -> io::Result<()> {
        if cold.is_empty() {
            return Ok(());
        }
        let is_small = |item: &Item| self.job(item, urgency).is_small();
        let (small, large): (Vec<_>, Vec<_>) = cold.into_iter().partition(is_small);
        let cold = Cold { small: small.into(), large: large.into(), small_running: 0 };
        let (cold, changed) = (Mutex::new(cold), Condvar::new());
        let lock = || cold.lock().unwrap_or_else(PoisonError::into_inner);
        let compile_small = || {
            loop {
                let mut all = lock();
                let Some(item) = all.small.pop_front() else { break };
                all.small_running += 1;
                drop(all);
                let is_large = self.compile_small(&item, urgency, done);
                let mut all = lock();
                all.small_running -= 1;
                all.large.extend(is_large.then_some(item));
                changed.notify_all();
            }
        };
        let compile_large = || {
            loop {
                let may_come = |all: &mut Cold| {
                    all.large.is_empty() && (all.small_running > 0 || !all.small.is_empty())
                };
                let waited = changed.wait_while(lock(), may_come);
                let next = waited.unwrap_or_else(PoisonError::into_inner).large.pop_front();
                let Some(item) = next else { break };
                self.compile_large(&item, urgency, done);
            }
        };
        let thread = || {
            let stack = self.loader.engines.thread_stack_bytes();
            thread::Builder::new().name("load".to_owned()).stack_size(stack)
        };
        thread::scope(|scope| {
            for _ in 0..SMALL_WORKERS {
                thread().spawn_scoped(scope, compile_small)?;
            }
            thread().spawn_scoped(scope, compile_large).map(drop)
        })
    }

    /// Compile and load a small artifact; whether it has turned out not to be one.
    fn compile_small(&self, item: &Item, urgency: CompilePriority, done: Done<'_>) -> bool {
        let started = Instant::now();
        let Some(turn) = self.turn_of(item, urgency) else { return false };
        let job = self.job(item, urgency);
        let version = self.load_cold(item, job);
        if version.as_ref().is_err_and(|error| error.is_not_small(job)) {
            return true;
        }
        done(item, Tried { version, from: "compiled", started, turn });
        false
    }

    fn compile_large(&self, item: &Item, urgency: CompilePriority, done: Done<'_>) {
        let started = Instant::now();
        let Some(turn) = self.turn_of(item, urgency) else { return };
        let job = self.loader.as_large(self.job(item, urgency));
        let version = self.load_cold(item, job);
        done(item, Tried { version, from: "compiled", started, turn });
    }

    fn job(&self, item: &Item, urgency: CompilePriority) -> CompileJob {
        // What is not there fails at once, wherever it waits.
        let length = self.loader.store.artifact_length(item.digest).unwrap_or_default();
        self.loader.job(&item.id.name, length, urgency)
    }

    /// Load a version, whether it is compiled or not. The caller has its turn.
    pub(super) fn load_item(
        &self,
        item: &Item,
        urgency: CompilePriority,
    ) -> Result<ServableVersion, LoadError> {
        if let Some(version) = self.load_found(item)? {
            return Ok(version);
        }
        let job = self.job(item, urgency);
        match self.load_cold(item, job) {
            Err(error) if error.is_not_small(job) => {
                self.load_cold(item, self.loader.as_large(job))
            }
            outcome => outcome,
        }
    }

    fn load_found(&self, item: &Item) -> Result<Option<ServableVersion>, LoadError> {
        let artifact = self.loader.store.artifact(item.digest)?;
        match self.loader.find(&artifact)? {
            Some(compiled) => self.loader.activate(artifact, &compiled).map(Some),
            None => Ok(None),
        }
    }

    fn load_cold(&self, item: &Item, job: CompileJob) -> Result<ServableVersion, LoadError> {
        let read = || Ok(self.loader.store.artifact(item.digest)?);
        let (compiled, artifact) = self.loader.compile_once(read, job)?;
        self.loader.activate(artifact, &compiled)
    }

    /// Show a version that cannot serve, with the reason in the log. What is loaded stays loaded. After an
    /// accident, the version is tried again.
    pub(super) fn refuse(&self, id: &VersionId, failure: Failure) {
        let retry_at = self.retries.note(id, failure.cause, Instant::now());
        let failure = Failure { retry_at, ..failure };
        // Whoever reads the line finds the version as it says.
        self.registry.set_slot(id, Slot::Failed(failure.clone()));
        let (model, version) = (&id.name, &id.version);
        let (step, reason) = (failure.step, &*failure.reason);
        let wait =
            retry_at.map(|time| time.saturating_duration_since(Instant::now()).as_secs_f32());
        tracing::error!(%model, %version, step, reason, retry_in_seconds = wait, "failed to load a version");
    }
}

/// Work on each of these, the first ones first, on as many threads as there are cores.
pub(super) fn side_by_side<T: Send>(
    mut items: Vec<T>,
    stack: usize,
    work: &(dyn Fn(T) + Sync),
) -> io::Result<()> {
    // Taken from the end.
    items.reverse();
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).pop();
    thread::scope(|scope| {
        for _ in 0..guesthouse_runtime::machine::cores() {
            thread::Builder::new().stack_size(stack).spawn_scoped(scope, || {
                while let Some(item) = next() {
                    work(item);
                }
            })?;
        }
        Ok(())
    })
}

pub(super) fn log_ready(id: &VersionId, from: &'static str, started: Instant) {
    let (model, version) = (&id.name, &id.version);
    let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(%model, %version, from, milliseconds, "version ready");
}
