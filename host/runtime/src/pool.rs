//! The instances of one version: acquired for a batch, released, and replaced when they are used
//! up.
//!
//! Instances are created and dropped off the request path if possible: [`Pool::release`] runs after
//! the response was sent, drops instances that are used up and creates missing ones. With a
//! snapshot, this takes microseconds. Without one, `init` runs in each instance and may take a
//! minute, so threads of the pool create the instances ([`init_workers`]), and batches wait for one
//! until their deadline. The total number of instances is bounded by the engine.

mod init_workers;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::guest::{CancelOnDrop, Fault, Instance, LoadedComponent, StopSignal};
use guesthouse_model::Tensor;

/// How strictly requests of one version are isolated from each other. Every instance starts in the
/// state that `init` left, and none is reused after a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// A new instance for every batch, so that no state passes from one batch to the next.
    Fresh,
    /// An instance serves batches until it reaches one of the limits.
    Reuse(ReuseLimits),
}

/// When a reused instance is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReuseLimits {
    /// The batches that it may serve. 1000 by default: memory that a guest leaks per call stays
    /// small, and a replacement costs tens of microseconds.
    pub max_batches: u32,
    /// The bytes by which its memory may grow. 64 MiB by default.
    pub max_memory_growth: usize,
    /// The age up to which it is used. 10 minutes by default.
    pub max_age: Duration,
}

impl Default for ReuseLimits {
    fn default() -> Self {
        let max_age = Duration::from_secs(600);
        Self { max_batches: 1000, max_memory_growth: 64 << 20, max_age }
    }
}

/// How long creating an instance may take if no request waits for it: running `start` functions,
/// and `init` if there is no snapshot.
pub const CREATE_TIMEOUT: Duration = Duration::from_secs(60);

/// The instances of one version.
pub struct Pool {
    shared: Arc<PoolInner>,
    /// Interrupts the init workers when the pool is dropped.
    closing: Option<CancelOnDrop>,
}

/// The state that the pool shares with its init workers.
struct PoolInner {
    component: LoadedComponent,
    isolation: Isolation,
    instances: Mutex<Instances>,
    /// Notified when an init worker has created an instance, has failed, or has ended.
    changed: Condvar,
    /// Cancelled when the pool is dropped.
    open: StopSignal,
    /// The number of instances to keep, idle or in use: one for each batch that may run at once.
    /// This many are reserved in the budget, so there are never more.
    target: usize,
}

#[derive(Default)]
struct Instances {
    idle: Vec<LeasedInstance>,
    /// Leased, or being created.
    in_use: usize,
    /// The linear memory of the idle instances and of those in use, in bytes; of the latter as it
    /// was before their batch.
    idle_bytes: usize,
    in_use_bytes: usize,
    created: u64,
    /// The number of running init workers.
    init_workers: usize,
    /// The number of batches that wait for an instance.
    waiting: usize,
    /// The fault of an init worker, for one of the waiting batches.
    failure: Option<Fault>,
}

impl Instances {
    /// Take an idle instance, which counts as in use from now on.
    fn take_idle(&mut self) -> Option<LeasedInstance> {
        let taken = self.idle.pop()?;
        self.in_use += 1;
        self.idle_bytes -= taken.counted_bytes;
        self.in_use_bytes += taken.counted_bytes;
        Some(taken)
    }

    fn put_idle(&mut self, mut leased: LeasedInstance) {
        self.in_use -= 1;
        self.in_use_bytes -= leased.counted_bytes;
        leased.counted_bytes = leased.instance.memory_bytes();
        self.idle_bytes += leased.counted_bytes;
        self.idle.push(leased);
    }
}

/// The number of instances of a version, and their memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceCounts {
    /// Instances that are ready for a batch.
    pub idle: usize,
    /// Instances that run a batch or are being created.
    pub in_use: usize,
    /// The linear memory of idle instances, in bytes.
    pub idle_bytes: usize,
    /// The linear memory of instances in use, as it was before their batch, in bytes.
    pub in_use_bytes: usize,
    /// The instances created since the version was loaded.
    pub created: u64,
}

/// An instance that was acquired for a batch.
pub struct LeasedInstance {
    instance: Instance,
    batches: u32,
    memory_at_first: usize,
    /// The memory that the pool counts for it.
    counted_bytes: usize,
    created: Instant,
}

impl LeasedInstance {
    /// Run a batch that has been validated against the signature.
    ///
    /// # Errors
    /// [`Fault`]; the instance must be released all the same.
    pub fn predict(&mut self, inputs: &[Tensor], stop: &StopSignal) -> Result<Vec<Tensor>, Fault> {
        self.batches += 1;
        self.instance.predict(inputs, stop)
    }

    /// The size of the instance's linear memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.instance.memory_bytes()
    }
}

impl Pool {
    /// Create a pool without instances, which will keep `target` of them. At most this many may be
    /// in use at once.
    pub fn new(component: LoadedComponent, isolation: Isolation, target: usize) -> Self {
        // Each init worker sets its own deadline.
        let (open, closing) = StopSignal::with_guard(Instant::now());
        let (instances, changed) = (Mutex::default(), Condvar::new());
        let shared = PoolInner { component, isolation, instances, changed, open, target };
        Self { shared: Arc::new(shared), closing: Some(closing) }
    }

    /// Acquire an idle instance, or a new one if none is idle.
    ///
    /// # Errors
    /// [`Fault::Host`], if the engine's pool is exhausted; any other fault if guest code has to run
    /// for a new instance.
    pub fn acquire(&self, stop: &StopSignal) -> Result<LeasedInstance, Fault> {
        if self.shared.uses_init_workers() {
            return self.shared.wait_for_idle(stop);
        }
        {
            let mut instances = self.shared.lock();
            if let Some(idle) = instances.take_idle() {
                return Ok(idle);
            }
            instances.in_use += 1;
        }
        let created = self.shared.create(stop);
        if created.is_err() {
            self.shared.lock().in_use -= 1;
        }
        created
    }

    /// Return an instance, to be reused or replaced. `is_usable` says whether its last batch left
    /// it usable. Call this off the request path, because it may map and unmap memory.
    pub fn release(&self, leased: LeasedInstance, is_usable: bool) {
        let shared = &self.shared;
        if is_usable && !shared.is_used_up(&leased) {
            shared.lock().put_idle(leased);
            shared.changed.notify_one();
            return;
        }
        let bytes = leased.counted_bytes;
        // Free its slot in the engine before counting it as free.
        drop(leased);
        let mut instances = shared.lock();
        instances.in_use -= 1;
        instances.in_use_bytes -= bytes;
        drop(instances);
        if shared.uses_init_workers() {
            shared.spawn_init_worker();
        } else {
            // If the engine is full now, it has room again when other instances are released.
            let _ = self.fill();
        }
    }

    /// Create the missing instances on this thread.
    ///
    /// # Errors
    /// The fault of the first instance that cannot be created.
    pub fn fill(&self) -> Result<(), Fault> {
        while self.shared.reserve_missing() {
            self.shared.create_reserved()?;
        }
        Ok(())
    }

    /// Create an instance on this thread if none is idle.
    ///
    /// # Errors
    /// The instance cannot be created.
    pub fn create_first(&self) -> Result<(), Fault> {
        if self.shared.is_empty() && self.shared.reserve_missing() {
            self.shared.create_reserved()?;
        }
        Ok(())
    }

    /// Drop the idle instances.
    pub fn clear(&self) {
        let idle = {
            let mut instances = self.shared.lock();
            instances.idle_bytes = 0;
            std::mem::take(&mut instances.idle)
        };
        // Dropped without the lock, because this may unmap memory.
        drop(idle);
    }

    /// The current counts.
    pub fn counts(&self) -> InstanceCounts {
        let instances = self.shared.lock();
        let Instances { idle, in_use, idle_bytes, in_use_bytes, created, .. } = &*instances;
        let (idle, in_use, created) = (idle.len(), *in_use, *created);
        InstanceCounts {
            idle,
            in_use,
            idle_bytes: *idle_bytes,
            in_use_bytes: *in_use_bytes,
            created,
        }
    }
}

impl Drop for Pool {
    /// Wait for the init workers, so that nothing of the version's reservation is in use
    /// afterwards. They check for cancellation once per epoch tick.
    fn drop(&mut self) {
        self.closing = None;
        self.shared.join_init_workers();
    }
}

impl PoolInner {
    /// Count an instance as being created, if one is missing.
    fn reserve_missing(&self) -> bool {
        let mut instances = self.lock();
        let is_missing = instances.idle.len() + instances.in_use < self.target;
        instances.in_use += usize::from(is_missing);
        is_missing
    }

    /// Create an instance that has been counted.
    fn create_reserved(&self) -> Result<(), Fault> {
        let stop = self.open.until(Instant::now() + CREATE_TIMEOUT);
        let created = self.create(&stop);
        let mut instances = self.lock();
        match created {
            Ok(leased) => {
                instances.put_idle(leased);
                Ok(())
            }
            Err(fault) => {
                instances.in_use -= 1;
                Err(fault)
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.lock().idle.is_empty()
    }

    fn create(&self, stop: &StopSignal) -> Result<LeasedInstance, Fault> {
        let instance = self.component.instantiate(stop)?;
        let (batches, bytes, created) = (0, instance.memory_bytes(), Instant::now());
        let mut instances = self.lock();
        instances.created += 1;
        instances.in_use_bytes += bytes;
        Ok(LeasedInstance {
            instance,
            batches,
            memory_at_first: bytes,
            counted_bytes: bytes,
            created,
        })
    }

    fn is_used_up(&self, leased: &LeasedInstance) -> bool {
        match self.isolation {
            Isolation::Fresh => leased.batches > 0,
            Isolation::Reuse(limits) => {
                let growth = leased.instance.memory_bytes().saturating_sub(leased.memory_at_first);
                leased.batches >= limits.max_batches
                    || growth > limits.max_memory_growth
                    || leased.created.elapsed() >= limits.max_age
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Instances> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
