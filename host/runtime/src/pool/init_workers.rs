//! Threads that create the instances of a version without a snapshot, in each of which `init` runs.
//!
//! Inference threads only run requests, so they never run an `init`, which may outlast the
//! deadlines of all callers: they wait for an instance until their deadline while an init worker
//! creates one. There are at most as many workers as missing instances. A worker ends when no
//! instance is missing or when one cannot be created, and is interrupted when the pool is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{LeasedInstance, PoolInner};
use crate::guest::{Fault, StopReason, StopSignal};

/// How often a batch that waits for an instance checks whether its callers have disconnected.
const CANCELLATION_INTERVAL: Duration = Duration::from_millis(1);

impl PoolInner {
    /// Whether init workers create the instances, instead of the thread that acquires one. A pool
    /// with target 0 keeps no instances and has no workers.
    pub(super) fn uses_init_workers(&self) -> bool {
        self.component.runs_init() && self.target > 0
    }

    /// Wait for an idle instance.
    pub(super) fn wait_for_idle(
        self: &Arc<Self>,
        stop: &StopSignal,
    ) -> Result<LeasedInstance, Fault> {
        let mut instances = self.lock();
        instances.waiting += 1;
        let outcome = loop {
            if let Some(idle) = instances.take_idle() {
                break Ok(idle);
            }
            if let Some(fault) = instances.failure.take() {
                break Err(fault);
            }
            match stop.reason(Instant::now()) {
                None => {}
                Some(StopReason::Deadline) => break Err(Fault::Deadline),
                Some(StopReason::Cancelled) => break Err(Fault::Cancelled),
            }
            if instances.in_use < self.target {
                drop(instances);
                self.spawn_init_worker();
                instances = self.lock();
            }
            let waited = self.changed.wait_timeout(instances, CANCELLATION_INTERVAL);
            (instances, _) = waited.unwrap_or_else(PoisonError::into_inner);
        };
        instances.waiting -= 1;
        if instances.waiting == 0 {
            // The fault does not concern later batches.
            instances.failure = None;
        }
        outcome
    }

    /// Start a thread that creates instances until none is missing. Does nothing if none is.
    pub(super) fn spawn_init_worker(self: &Arc<Self>) {
        if !self.reserve_missing() {
            return;
        }
        self.lock().init_workers += 1;
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("make".to_owned());
        let thread = thread.stack_size(self.component.thread_stack_bytes());
        if let Err(error) = thread.spawn(move || shared.create_until_full()) {
            self.lock().in_use -= 1;
            self.end_init_worker(Some(Fault::Host(format!("no thread: {error}"))));
        }
    }

    fn create_until_full(&self) {
        loop {
            // A panic is a bug of the host; it costs the instance.
            let created =
                catch_unwind(AssertUnwindSafe(|| self.create_reserved())).unwrap_or_else(|_| {
                    self.lock().in_use -= 1;
                    Err(Fault::Host("a thread that creates instances panicked".to_owned()))
                });
            if let Err(fault) = created {
                return self.end_init_worker(Some(fault));
            }
            self.changed.notify_one();
            if !self.reserve_missing() {
                return self.end_init_worker(None);
            }
        }
    }

    fn end_init_worker(&self, fault: Option<Fault>) {
        let mut instances = self.lock();
        instances.init_workers -= 1;
        if instances.waiting > 0 && fault.is_some() {
            instances.failure = fault;
        }
        drop(instances);
        self.changed.notify_all();
    }

    /// Wait until no init worker runs.
    pub(super) fn join_init_workers(&self) {
        let instances = self.lock();
        let ended = self.changed.wait_while(instances, |instances| instances.init_workers > 0);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }
}
