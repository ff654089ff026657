//! What has to be done now and then, whatever else takes long: let go of versions that have drained,
//! load what is missing, remove files that nothing needs.

use std::sync::TryLockError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::Control;

/// How often versions that drain are looked at, while there are any.
const SWEEP_INTERVAL: Duration = Duration::from_millis(50);

/// Do it for ever.
pub fn keep_up(control: &Control) -> ! {
    loop {
        let draining = control.registry.sweep();
        let pause = if draining > 0 { SWEEP_INTERVAL } else { SWEEP_INTERVAL * 4 };
        thread::sleep(pause);
        if control.is_missing.swap(false, Ordering::Relaxed)
            && let Err(error) = control.load_absent()
        {
            tracing::error!(%error, "cannot load what the ledger says");
        }
        control.collect_if_due();
    }
}

impl Control {
    /// Look for files that nothing needs, as soon as nothing is being loaded; or not, as long as it is not
    /// known what is needed.
    pub(super) fn collect_soon(&self, is_known: bool) {
        self.is_collection_due.store(is_known, Ordering::Relaxed);
    }

    /// Look for them now, unless something is being loaded.
    pub(super) fn collect_if_due(&self) {
        if !self.is_collection_due.load(Ordering::Relaxed) {
            return;
        }
        // Who would wait for this lock would hold up everybody who comes to load. So nobody does.
        let _alone = match self.loading.try_write() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        self.is_collection_due.store(false, Ordering::Relaxed);
        self.collect();
    }
}
