//! What went wrong in a version, counted by class.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::guest::Fault;

/// A class of faults: [`Fault::kind`] and, for traps, [`Fault::trap`].
type FaultClass = (&'static str, Option<&'static str>);

/// Faults since the version was loaded, by class.
#[derive(Debug, Default)]
pub struct Faults(Mutex<BTreeMap<FaultClass, u64>>);

impl Faults {
    /// One more.
    pub fn count(&self, fault: &Fault) {
        // A count is never left half done.
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((fault.kind(), fault.trap())).or_default() += 1;
    }

    /// The counts of the classes of which there has been a fault.
    pub fn counts(&self) -> BTreeMap<FaultClass, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
