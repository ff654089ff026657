//! Reserves instances and memory for loaded versions, by their limits, out of what the host has.
//!
//! A version that would not fit is rejected before it loads, instead of its requests failing later.
//! Weights are shared between instances and idle memory is returned to the system, so the real use
//! stays below the reserved amount.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::ModelLimits;

/// The instances and the memory that are not reserved.
#[derive(Debug, Clone)]
pub struct ResourceBudget(Arc<Mutex<Resources>>);

/// The resources reserved for a version; returned when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: ResourceBudget,
    reserved: Resources,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut left = self.budget.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.instances += self.reserved.instances;
        left.memory_bytes += self.reserved.memory_bytes;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Resources {
    instances: u64,
    memory_bytes: u64,
}

/// A version needs more than is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetExceeded {
    needed: Resources,
    left: Resources,
}

impl fmt::Display for BudgetExceeded {
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

impl std::error::Error for BudgetExceeded {}

impl ResourceBudget {
    /// A budget of this many instances and this much memory.
    pub fn new(instances: u32, memory_bytes: u64) -> Self {
        Self(Arc::new(Mutex::new(Resources { instances: u64::from(instances), memory_bytes })))
    }

    /// Reserve what a version with these limits can use at most.
    ///
    /// # Errors
    /// [`BudgetExceeded`], with the needed and the remaining amounts.
    pub fn reserve(&self, limits: &ModelLimits) -> Result<Reservation, BudgetExceeded> {
        let needed = needed(limits);
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let after = left
            .instances
            .checked_sub(needed.instances)
            .zip(left.memory_bytes.checked_sub(needed.memory_bytes));
        let (instances, memory_bytes) = after.ok_or(BudgetExceeded { needed, left: *left })?;
        *left = Resources { instances, memory_bytes };
        Ok(Reservation { budget: self.clone(), reserved: needed })
    }
}

fn needed(limits: &ModelLimits) -> Resources {
    let instances = limits.concurrency as u64;
    let memory_bytes = instances.saturating_mul(limits.instance.memory_bytes as u64);
    Resources { instances, memory_bytes }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::guest::InstanceLimits;
    use crate::pool::Isolation;

    #[test]
    fn a_version_that_does_not_fit_is_rejected_with_numbers() {
        let limits = ModelLimits {
            instance: InstanceLimits { memory_bytes: 100 << 20, ..InstanceLimits::default() },
            isolation: Isolation::Fresh,
            queued: 256,
            concurrency: 2,
            predict_time: Duration::from_secs(1),
            batching: crate::version::Batching::default(),
        };
        let budget = ResourceBudget::new(10, 450 << 20);
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
