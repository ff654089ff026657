//! Threads that make the instances of a version in each of which `init` runs.
//!
//! Inference threads only ever compute for requests, so they do not run an `init` that may outlast
//! every caller: they wait for an instance until their callers' deadline, while a maker makes it for
//! whoever comes next. There are at most as many makers as instances are missing, each ends when none
//! is missing or one cannot be made, and all of them are interrupted when the pool goes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Leased, Shared};
use crate::guest::{Fault, Stop, StopReason};

/// How often a batch that waits for an instance looks whether its callers have gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

impl Shared {
    /// Whether makers make the instances, and not whoever takes one. Nobody keeps instances for a
    /// pool without a target.
    pub(super) fn has_makers(&self) -> bool {
        self.component.runs_init() && self.target > 0
    }

    /// An instance that is idle, as soon as there is one.
    pub(super) fn wait_for_idle(self: &Arc<Self>, stop: &Stop) -> Result<Leased, Fault> {
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
            if instances.out < self.target {
                drop(instances);
                self.start_maker();
                instances = self.lock();
            }
            let waited = self.changed.wait_timeout(instances, LOOK_INTERVAL);
            (instances, _) = waited.unwrap_or_else(PoisonError::into_inner);
        };
        instances.waiting -= 1;
        if instances.waiting == 0 {
            // It says nothing to whoever comes later.
            instances.failure = None;
        }
        outcome
    }

    /// Start a thread that makes instances until none is missing; if none is, do nothing.
    pub(super) fn start_maker(self: &Arc<Self>) {
        if !self.begin_missing() {
            return;
        }
        self.lock().makers += 1;
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("make".to_owned());
        let thread = thread.stack_size(self.component.thread_stack_bytes());
        if let Err(error) = thread.spawn(move || shared.make_until_none_is_missing()) {
            self.lock().out -= 1;
            self.end_maker(Some(Fault::Host(format!("no thread: {error}"))));
        }
    }

    fn make_until_none_is_missing(&self) {
        loop {
            // A panic here is a bug of the host; it costs the instance.
            let made =
                catch_unwind(AssertUnwindSafe(|| self.make_missing())).unwrap_or_else(|_| {
                    self.lock().out -= 1;
                    Err(Fault::Host("a thread that makes instances panicked".to_owned()))
                });
            if let Err(fault) = made {
                return self.end_maker(Some(fault));
            }
            self.changed.notify_one();
            if !self.begin_missing() {
                return self.end_maker(None);
            }
        }
    }

    fn end_maker(&self, fault: Option<Fault>) {
        let mut instances = self.lock();
        instances.makers -= 1;
        if instances.waiting > 0 && fault.is_some() {
            instances.failure = fault;
        }
        drop(instances);
        self.changed.notify_all();
    }

    /// Wait until no maker runs.
    pub(super) fn wait_for_makers(&self) {
        let instances = self.lock();
        let ended = self.changed.wait_while(instances, |instances| instances.makers > 0);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }
}
