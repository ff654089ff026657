//! Instances of one version: taken for a batch, given back, and replaced when they are used up.
//!
//! Making and dropping instances happens off the request path wherever it can: after the answer has
//! been sent, [`Pool::give_back`] drops what is used up and makes what is missing. Where there is a
//! snapshot, that takes microseconds. Where `init` runs in each instance, it may take a minute, so
//! threads of the pool's own make them ([`makers`]), and whoever wants one waits for it until its
//! deadline. How many instances may exist at all is the engine's limit.

mod makers;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::guest::{CancelOnDrop, Fault, Instance, LoadedComponent, Stop};
use guesthouse_model::Tensor;

/// How strictly requests of one version are kept apart. Every instance starts in the state that
/// `init` left, and none is used again after a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// A new instance for every batch: no state can pass from one to the next.
    Fresh,
    /// An instance serves until one of the limits is reached.
    Reuse(ReuseLimits),
}

/// When a reused instance is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReuseLimits {
    /// Batches it has served. 1000 by default: what a guest leaks with every call stays small, and
    /// replacing costs tens of microseconds.
    pub max_batches: u32,
    /// Bytes its memory has grown by. 64 MiB by default.
    pub max_memory_growth: usize,
    /// How long it lives. 10 minutes by default.
    pub max_age: Duration,
}

impl Default for ReuseLimits {
    fn default() -> Self {
        let max_age = Duration::from_secs(600);
        Self { max_batches: 1000, max_memory_growth: 64 << 20, max_age }
    }
}

/// How long it may take to make an instance that no request waits for: `start` functions, and `init`
/// where there is no snapshot.
pub const MAKE_TIME: Duration = Duration::from_secs(60);

/// The instances of one version.
pub struct Pool {
    shared: Arc<Shared>,
    /// Interrupts the makers when the pool goes.
    closing: Option<CancelOnDrop>,
}

/// What the pool shares with its makers.
struct Shared {
    component: LoadedComponent,
    isolation: Isolation,
    instances: Mutex<Instances>,
    /// Notified when a maker has made an instance, has failed to, or has ended.
    changed: Condvar,
    /// Cancelled when the pool goes.
    open: Stop,
    /// How many instances there are, idle or not: one for each batch that may run at once. It is
    /// what has been set aside for the version, so there are never more.
    target: usize,
}

#[derive(Default)]
struct Instances {
    idle: Vec<Leased>,
    /// Leased, or being made.
    out: usize,
    /// Linear memory of the idle ones, and of the others when they were last looked at, in bytes.
    idle_bytes: usize,
    out_bytes: usize,
    made: u64,
    /// Threads that make instances.
    makers: usize,
    /// Batches that wait for an instance.
    waiting: usize,
    /// Why a maker failed, for one of those that wait.
    failure: Option<Fault>,
}

impl Instances {
    /// An idle one, which is out from now on.
    fn take_idle(&mut self) -> Option<Leased> {
        let taken = self.idle.pop()?;
        self.out += 1;
        self.idle_bytes -= taken.counted_bytes;
        self.out_bytes += taken.counted_bytes;
        Some(taken)
    }

    fn put_idle(&mut self, mut leased: Leased) {
        self.out -= 1;
        self.out_bytes -= leased.counted_bytes;
        leased.counted_bytes = leased.instance.memory_bytes();
        self.idle_bytes += leased.counted_bytes;
        self.idle.push(leased);
    }
}

/// How many instances of a version there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceCounts {
    /// Ready for a batch.
    pub idle: usize,
    /// On their way through a batch, or being made.
    pub out: usize,
    /// Linear memory of those that are ready, in bytes.
    pub idle_bytes: usize,
    /// The same of the others, as it was before their batch.
    pub out_bytes: usize,
    /// Made since the version was loaded.
    pub made: u64,
}

/// An instance on its way through a batch.
pub struct Leased {
    instance: Instance,
    batches: u32,
    memory_at_first: usize,
    /// Its memory as it is counted in the pool.
    counted_bytes: usize,
    made: Instant,
}

impl Leased {
    /// Outputs for a batch that has been validated against the signature.
    ///
    /// # Errors
    /// [`Fault`]; the instance is still to be given back, with the outcome.
    pub fn predict(&mut self, inputs: &[Tensor], stop: &Stop) -> Result<Vec<Tensor>, Fault> {
        self.batches += 1;
        self.instance.predict(inputs, stop)
    }
}

impl Pool {
    /// A pool without instances, which keeps `target` of them once they have been made. At most as
    /// many may be taken at once.
    pub fn new(component: LoadedComponent, isolation: Isolation, target: usize) -> Self {
        // Each maker sets its own deadline.
        let (open, closing) = Stop::with_guard(Instant::now());
        let (instances, changed) = (Mutex::default(), Condvar::new());
        let shared = Shared { component, isolation, instances, changed, open, target };
        Self { shared: Arc::new(shared), closing: Some(closing) }
    }

    /// An instance: an idle one, or a new one if there is none.
    ///
    /// # Errors
    /// [`Fault::Host`], when the engine has no more of them; where guest code has to run for a new
    /// one any other.
    pub fn take(&self, stop: &Stop) -> Result<Leased, Fault> {
        if self.shared.has_makers() {
            return self.shared.wait_for_idle(stop);
        }
        {
            let mut instances = self.shared.lock();
            if let Some(idle) = instances.take_idle() {
                return Ok(idle);
            }
            instances.out += 1;
        }
        let made = self.shared.make(stop);
        if made.is_err() {
            self.shared.lock().out -= 1;
        }
        made
    }

    /// Take an instance back, to be used again or to be replaced. `good` says whether its last
    /// batch left it usable. Off the request path, because it may unmap and map memory.
    pub fn give_back(&self, leased: Leased, good: bool) {
        let shared = &self.shared;
        if good && !shared.is_used_up(&leased) {
            shared.lock().put_idle(leased);
            shared.changed.notify_one();
            return;
        }
        let bytes = leased.counted_bytes;
        // Its place in the engine is free before it is counted as such.
        drop(leased);
        let mut instances = shared.lock();
        instances.out -= 1;
        instances.out_bytes -= bytes;
        drop(instances);
        if shared.has_makers() {
            shared.start_maker();
        } else {
            // An engine that is full now has instances again when others are given back.
            let _ = self.fill();
        }
    }

    /// Make the instances that are missing, on this thread.
    ///
    /// # Errors
    /// The first one that cannot be made.
    pub fn fill(&self) -> Result<(), Fault> {
        while self.shared.begin_missing() {
            self.shared.make_missing()?;
        }
        Ok(())
    }

    /// Make one instance if there is none, on this thread.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_first(&self) -> Result<(), Fault> {
        if self.shared.is_empty() && self.shared.begin_missing() {
            self.shared.make_missing()?;
        }
        Ok(())
    }

    /// Drop the instances that wait for a batch.
    pub fn clear(&self) {
        let idle = {
            let mut instances = self.shared.lock();
            instances.idle_bytes = 0;
            std::mem::take(&mut instances.idle)
        };
        // Without the lock, because it may unmap memory.
        drop(idle);
    }

    /// How many instances there are.
    pub fn counts(&self) -> InstanceCounts {
        let instances = self.shared.lock();
        let Instances { idle, out, idle_bytes, out_bytes, made, .. } = &*instances;
        let (idle, out, made) = (idle.len(), *out, *made);
        InstanceCounts { idle, out, idle_bytes: *idle_bytes, out_bytes: *out_bytes, made }
    }
}

impl Drop for Pool {
    /// Nothing of what was set aside for the version is in use when the pool has gone. Makers look at
    /// their cancellation once a tick.
    fn drop(&mut self) {
        self.closing = None;
        self.shared.wait_for_makers();
    }
}

impl Shared {
    /// Count an instance as being made, if one is missing.
    fn begin_missing(&self) -> bool {
        let mut instances = self.lock();
        let is_missing = instances.idle.len() + instances.out < self.target;
        instances.out += usize::from(is_missing);
        is_missing
    }

    /// Make an instance that has been counted.
    fn make_missing(&self) -> Result<(), Fault> {
        let stop = self.open.until(Instant::now() + MAKE_TIME);
        let made = self.make(&stop);
        let mut instances = self.lock();
        match made {
            Ok(made) => {
                instances.put_idle(made);
                Ok(())
            }
            Err(fault) => {
                instances.out -= 1;
                Err(fault)
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.lock().idle.is_empty()
    }

    fn make(&self, stop: &Stop) -> Result<Leased, Fault> {
        let instance = self.component.instantiate(stop)?;
        let (batches, bytes, made) = (0, instance.memory_bytes(), Instant::now());
        let mut instances = self.lock();
        instances.made += 1;
        instances.out_bytes += bytes;
        Ok(Leased { instance, batches, memory_at_first: bytes, counted_bytes: bytes, made })
    }

    fn is_used_up(&self, leased: &Leased) -> bool {
        match self.isolation {
            Isolation::Fresh => leased.batches > 0,
            Isolation::Reuse(limits) => {
                let growth = leased.instance.memory_bytes().saturating_sub(leased.memory_at_first);
                leased.batches >= limits.max_batches
                    || growth > limits.max_memory_growth
                    || leased.made.elapsed() >= limits.max_age
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Instances> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
