//! Instances of one version: taken for a batch, given back, and replaced when they are used up.
//!
//! An instance serves at most [`MAX_BATCHES`] batches and never one after a fault. The pool keeps
//! as many idle instances as there are inference threads; how many may exist at all is the
//! engine's limit.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::guest::{Fault, Instance, LoadedComponent};
use crate::model::Tensor;

/// Batches until an instance is replaced, so that a guest that grows a little with every call does
/// not grow for ever. Replacing costs tens of microseconds.
const MAX_BATCHES: u32 = 1000;

/// The instances of one version.
pub struct Pool {
    component: LoadedComponent,
    idle: Mutex<Vec<Pooled>>,
    max_idle: usize,
}

struct Pooled {
    instance: Instance,
    batches: u32,
}

impl Pool {
    /// A pool without instances, which keeps at most `max_idle` of them.
    pub fn new(component: LoadedComponent, max_idle: usize) -> Self {
        Self { component, idle: Mutex::new(Vec::new()), max_idle }
    }

    /// Make an idle instance more, and let it serve a batch, so that the first request need not
    /// wait for pages to be mapped.
    ///
    /// # Errors
    /// The batch's own fault.
    pub fn warm(&self, inputs: &[Tensor], deadline: Instant) -> Result<(), Fault> {
        let mut instance = self.component.instantiate()?;
        instance.predict(inputs, deadline)?;
        self.give_back(Pooled { instance, batches: 1 });
        Ok(())
    }

    /// Outputs for a batch that has been validated against the signature.
    ///
    /// # Errors
    /// [`Fault`], after which this pool is as good as before.
    pub fn predict(&self, inputs: &[Tensor], deadline: Instant) -> Result<Vec<Tensor>, Fault> {
        let mut pooled = match self.take() {
            Some(pooled) => pooled,
            None => Pooled { instance: self.component.instantiate()?, batches: 0 },
        };
        let outcome = pooled.instance.predict(inputs, deadline);
        pooled.batches += 1;
        let good = outcome.as_ref().err().is_none_or(Fault::spares_instance);
        if good && pooled.batches < MAX_BATCHES {
            self.give_back(pooled);
        }
        outcome
    }

    fn take(&self) -> Option<Pooled> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give_back(&self, pooled: Pooled) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.max_idle {
            idle.push(pooled);
        } else {
            // Dropping unmaps memory: not under the lock.
            drop(idle);
            drop(pooled);
        }
    }
}
