//! Loading many versions at once: what is compiled side by side, the rest one after the other.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::Control;
use super::deploy::servable;
use crate::artifact::Digest;
use crate::model::VersionId;
use crate::registry::{Failure, LoadError, Slot};
use crate::version::ServableVersion;

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
pub(super) struct Tried {
    pub(super) version: Result<ServableVersion, LoadError>,
    /// Whether it was in the store or had to be compiled.
    pub(super) from: &'static str,
    pub(super) started: Instant,
}

impl Control {
    /// Load what was served when the ledger was written last. If anything was, that is what this host
    /// is there for, and the repository folder is for later.
    ///
    /// # Errors
    /// The machine gives no more threads.
    pub fn restore(&self) -> io::Result<()> {
        let _loading = self.lock_loading();
        let mut items = Vec::new();
        for (name, state) in self.registry.states() {
            items.extend(state.loaded().filter_map(|(version, digest)| {
                let id = VersionId { name: name.clone(), version: version.clone() };
                let is_stable = state.routing.stable.as_ref() == Some(version);
                self.registry.slot(&id).is_none().then_some(Item { id, digest, is_stable })
            }));
        }
        self.load_many(items, &|item, tried| self.publish_loaded(item, tried))?;
        if self.registry.snapshot().servables().next().is_some() {
            self.registry.finish_loading();
        }
        Ok(())
    }

    /// A version that is deployed already was loaded, or could not be.
    pub(super) fn publish_loaded(&self, item: &Item, tried: Tried) {
        let Tried { version, from, started } = tried;
        match version {
            Ok(version) => {
                self.registry.set_slot(&item.id, servable(version));
                // It may have been undeployed in the meantime.
                self.registry.reconcile(&item.id.name);
                log_ready(&item.id, from, started);
            }
            Err(error) => self.refuse(&item.id, error.failure()),
        }
    }

    /// Load versions, and let `done` know what has become of each, on the thread that has loaded it.
    pub(super) fn load_many(
        &self,
        items: Vec<Item>,
        done: &(dyn Fn(&Item, Tried) + Sync),
    ) -> io::Result<()> {
        let cold = Mutex::new(Vec::new());
        let find = |item: Item| {
            let started = Instant::now();
            match self.load_found(&item) {
                Ok(None) => cold.lock().unwrap_or_else(PoisonError::into_inner).push(item),
                Ok(Some(version)) => {
                    done(&item, Tried { version: Ok(version), from: "store", started })
                }
                Err(error) => done(&item, Tried { version: Err(error), from: "store", started }),
            }
        };
        // Golden examples run on these threads: a guest may use all of its call stack there, too.
        let stack = self.loader.engines.thread_stack_bytes();
        side_by_side(items, stack, &find)?;
        let mut cold = cold.into_inner().unwrap_or_else(PoisonError::into_inner);
        cold.sort_by_key(|item| (!item.is_stable, item.id.clone()));
        let compile = || {
            for item in &cold {
                let started = Instant::now();
                let version = self.load_cold(item);
                done(item, Tried { version, from: "compiled", started });
            }
        };
        let thread = thread::Builder::new().stack_size(stack);
        thread::scope(|scope| thread.spawn_scoped(scope, compile).map(drop))
    }

    /// Load a version, whether it is compiled or not.
    pub(super) fn load_item(&self, item: &Item) -> Result<ServableVersion, LoadError> {
        match self.load_found(item)? {
            Some(version) => Ok(version),
            None => self.load_cold(item),
        }
    }

    fn load_found(&self, item: &Item) -> Result<Option<ServableVersion>, LoadError> {
        let artifact = self.loader.store.artifact(item.digest)?;
        match self.loader.find(&artifact)? {
            Some(compiled) => self.loader.activate(artifact, &compiled).map(Some),
            None => Ok(None),
        }
    }

    fn load_cold(&self, item: &Item) -> Result<ServableVersion, LoadError> {
        let artifact = self.loader.store.artifact(item.digest)?;
        let compiled = self.loader.compile(&artifact)?;
        self.loader.activate(artifact, &compiled)
    }

    /// Show a version that cannot serve, with the reason in the log. After an accident, it is tried again.
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
        for _ in 0..crate::machine::cores() {
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
