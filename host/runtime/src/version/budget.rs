//! What loaded versions may come to use, added up from their limits, against what the host has.
//!
//! A version is refused before it costs anything, rather than a request later. Weights are shared
//! between instances and idle memory is given back, so that real use stays below what is counted.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::ModelLimits;

/// What is left for further versions.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Mutex<Left>>);

/// What is set aside for a version; given back when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    reserved: Left,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut left = self.budget.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.instances += self.reserved.instances;
        left.memory_bytes += self.reserved.memory_bytes;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    instances: u64,
    memory_bytes: u64,
}

/// A version would not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoesNotFit {
    needed: Left,
    left: Left,
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed, left } = self;
        write!(
            formatter,
            "it does not fit: it may come to use {} instances and {} MiB, but {} instances and {} \
             MiB are left",
            needed.instances,
            needed.memory_bytes >> 20,
            left.instances,
            left.memory_bytes >> 20
        )
    }
}

impl std::error::Error for DoesNotFit {}

impl Budget {
    /// All that the host has.
    pub fn new(instances: u32, memory_bytes: u64) -> Self {
        Self(Arc::new(Mutex::new(Left { instances: u64::from(instances), memory_bytes })))
    }

    /// Set aside what a version may come to use.
    ///
    /// # Errors
    /// [`DoesNotFit`], with the numbers.
    pub fn reserve(&self, limits: &ModelLimits) -> Result<Reservation, DoesNotFit> {
        let needed = needed(limits);
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let after = left
            .instances
            .checked_sub(needed.instances)
            .zip(left.memory_bytes.checked_sub(needed.memory_bytes));
        let (instances, memory_bytes) = after.ok_or(DoesNotFit { needed, left: *left })?;
        *left = Left { instances, memory_bytes };
        Ok(Reservation { budget: self.clone(), reserved: needed })
    }
}

fn needed(limits: &ModelLimits) -> Left {
    let instances = limits.concurrency as u64;
    let memory_bytes = instances.saturating_mul(limits.instance.memory_bytes as u64);
    Left { instances, memory_bytes }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::guest::InstanceLimits;
    use crate::pool::Isolation;

    #[test]
    fn what_does_not_fit_is_told_with_numbers_and_takes_nothing() {
        let limits = ModelLimits {
            instance: InstanceLimits { memory_bytes: 100 << 20, ..InstanceLimits::default() },
            isolation: Isolation::Fresh,
            queued: 256,
            concurrency: 2,
            predict_time: Duration::from_secs(1),
            batching: crate::version::Batching::default(),
        };
        let budget = Budget::new(10, 450 << 20);
        let _one = budget.reserve(&limits).unwrap();
        let other = budget.reserve(&limits).unwrap();
        let refused = budget.reserve(&limits).unwrap_err().to_string();
        for number in ["2 instances", "200 MiB", "6 instances", "50 MiB"] {
            assert!(refused.contains(number), "{refused}");
        }
        drop(other);
        assert!(budget.reserve(&limits).is_ok());
    }
}
