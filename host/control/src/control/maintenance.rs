//! Work that recurs on a thread of its own, however long deployments take: forget versions that have
//! drained, load what should be loaded and is not, and remove files that nothing needs.

use std::sync::TryLockError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::state::Control;
use crate::rollout::ModelState;
use guesthouse_runtime::clock;

/// How often draining versions are looked at, while there are any; a fourth as often otherwise.
const SWEEP_INTERVAL: Duration = Duration::from_millis(50);

/// Do the maintenance, without end.
pub fn run_maintenance(control: &Control) -> ! {
    loop {
        let draining = control.registry.sweep();
        let pause = if draining > 0 { SWEEP_INTERVAL } else { SWEEP_INTERVAL * 4 };
        thread::sleep(pause);
        if control.is_load_due.swap(false, Ordering::Relaxed)
            && let Err(error) = control.load_absent()
        {
            tracing::error!(%error, "cannot load what the ledger says");
        }
        control.collect_if_due();
    }
}

impl Control {
    /// Remove files that nothing needs as soon as nothing is being loaded. `is_known` says whether it is
    /// known what is needed; otherwise nothing is removed.
    pub(super) fn collect_soon(&self, is_known: bool) {
        self.is_collection_due.store(is_known, Ordering::Relaxed);
    }

    /// Remove them now, unless something is being loaded.
    pub(super) fn collect_if_due(&self) {
        if !self.is_collection_due.load(Ordering::Relaxed) {
            return;
        }
        // A writer that waited for this lock would block every new reader behind it, so it never waits.
        let _alone = match self.files.try_write() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        self.is_collection_due.store(false, Ordering::Relaxed);
        self.collect();
    }

    /// Remove files that nothing needs. The caller holds the lock of the files alone.
    fn collect(&self) {
        let states = self.registry.states();
        let loaded =
            states.values().flat_map(ModelState::loaded).map(|(_, digest)| digest).collect();
        let deployed = states.values().flat_map(|state| state.versions.values());
        // Of a model that was unloaded, the version that a load by name brings back.
        let unloaded = states.values().filter(|state| state.versions.is_empty());
        let unloaded = unloaded.filter_map(|state| state.withdrawn.last().copied());
        let deployed = deployed.map(|deployed| deployed.digest).chain(unloaded).collect();
        self.loader.store.collect(&loaded, &deployed, clock::now());
    }
}
