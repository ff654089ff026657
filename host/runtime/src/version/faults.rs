//! Counters of a version's faults by class.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::guest::Fault;

/// A class of faults: [`Fault::kind`] and, for traps, [`Fault::trap`].
type FaultClass = (&'static str, Option<&'static str>);

/// Faults since the version was loaded, by class.
#[derive(Debug, Default)]
pub struct FaultCounts(Mutex<BTreeMap<FaultClass, u64>>);

impl FaultCounts {
    /// Count a fault.
    pub fn count(&self, fault: &Fault) {
        // The map is consistent at any time.
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((fault.kind(), fault.trap())).or_default() += 1;
    }

    /// The counts of all classes that have occurred.
    pub fn counts(&self) -> BTreeMap<FaultClass, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
