//! A bounded cache of values that take long to make, filled by a few threads of its own.
//!
//! Requests for one key share one value. A request joins a computation only if what that computation
//! returns is at least as new as the request: one that has not started yet, or one that started from the
//! state that holds now. Waiting requests cost no thread.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::refused::broken;

/// Threads that compute values: two, so that a small value does not wait for a large one.
const THREADS: usize = 2;

/// Values that wait for a thread at the same time. Each belongs to another key, so that there are more
/// only if many callers with different scopes ask for different things at once.
const MAX_QUEUED: usize = 64;

/// The most values that one cache keeps.
const MAX_VALUES: usize = 256;

/// The most bytes of values that one cache keeps: a few documents about thousands of models.
const MAX_BYTES: usize = 128 << 20;

/// The largest value that depends on more than the state and is still computed for each request. Larger
/// ones, about hundreds of models, are kept for [`MAX_AGE`].
const MAX_FRESH_BYTES: usize = 1 << 20;

/// How old a large value that depends on more than the state may be.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The threads.
#[derive(Clone)]
pub(super) struct Threads(SyncSender<Job>);

type Job = Box<dyn FnOnce() + Send>;

impl Threads {
    /// Start them. They end when the last clone of this is gone.
    pub(super) fn start() -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(MAX_QUEUED);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..THREADS {
            let receiver = Arc::clone(&receiver);
            thread::Builder::new().name("pages".to_owned()).spawn(move || work(&receiver))?;
        }
        Ok(Self(sender))
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    if let Err(error) = guesthouse_runtime::priority::lower_priority() {
        tracing::warn!(%error, "threads that render pages run with the usual priority");
    }
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        job();
    }
}

/// A value that takes up memory.
pub(in crate::edge) trait Weigh {
    /// In bytes.
    fn bytes(&self) -> usize;
}

type Outcome<T> = Result<Arc<T>, ApiError>;
type Waiting<T> = watch::Receiver<Option<Outcome<T>>>;

/// The values of all keys.
pub(super) struct Table<K, S, T> {
    threads: Threads,
    inner: Mutex<Inner<K, S, T>>,
}

struct Inner<K, S, T> {
    entries: BTreeMap<K, Entry<S, T>>,
    /// Of the values that are kept.
    bytes: usize,
    /// Counts requests and computations: tells which of two was later.
    clock: u64,
}

struct Entry<S, T> {
    kept: Option<Kept<S, T>>,
    /// The computation that has started last, and the state at that time.
    running: Option<(u64, Option<S>, Waiting<T>)>,
    /// The computation that has not started yet.
    queued: Option<Waiting<T>>,
    /// When it was last asked for.
    used: u64,
}

struct Kept<S, T> {
    /// When its computation started.
    started: u64,
    valid: Valid<S>,
    value: Arc<T>,
}

enum Valid<S> {
    While(S),
    Until(Instant),
}

enum Found<T> {
    Kept(Arc<T>),
    Waiting(Waiting<T>),
    /// The caller has to see to it that the value is computed.
    Absent(watch::Sender<Option<Outcome<T>>>, Waiting<T>),
}

impl<K, S, T> Table<K, S, T>
where
    K: Ord + Clone + Send + 'static,
    S: PartialEq + Clone + Send + Sync + 'static,
    T: Weigh + Send + Sync + 'static,
{
    pub(super) fn new(threads: Threads) -> Self {
        let inner = Inner { entries: BTreeMap::new(), bytes: 0, clock: 0 };
        Self { threads, inner: Mutex::new(inner) }
    }

    /// The value, computed by `make` unless there is one that is as good. `state` is what the value is a
    /// function of, or none if it depends on more than can be compared. It is called again before and
    /// after `make`: a value during whose computation the state has changed is handed to those who wait
    /// for it and not kept.
    pub(super) async fn get(
        self: &Arc<Self>,
        key: K,
        state: impl Fn() -> Option<S> + Send + 'static,
        make: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Outcome<T> {
        let mut waiting = match self.find(&key, state()) {
            Found::Kept(value) => return Ok(value),
            Found::Waiting(waiting) => waiting,
            Found::Absent(sender, waiting) => {
                self.submit(key, sender, state, make)?;
                waiting
            }
        };
        let outcome = waiting.wait_for(Option::is_some).await.map_err(|_dropped| broken())?;
        outcome.clone().unwrap_or_else(|| Err(broken()))
    }

    fn find(&self, key: &K, state: Option<S>) -> Found<T> {
        let mut inner = self.lock();
        inner.clock += 1;
        let used = inner.clock;
        let entry = inner.entries.entry(key.clone()).or_insert_with(Entry::new);
        entry.used = used;
        if let Some(kept) = &entry.kept {
            let is_valid = match &kept.valid {
                Valid::While(held) => state.as_ref() == Some(held),
                Valid::Until(end) => Instant::now() < *end,
            };
            if is_valid {
                return Found::Kept(Arc::clone(&kept.value));
            }
        }
        if let Some((_, started_in, waiting)) = &entry.running
            && state.is_some()
            && *started_in == state
        {
            return Found::Waiting(waiting.clone());
        }
        if let Some(waiting) = &entry.queued {
            return Found::Waiting(waiting.clone());
        }
        let (sender, waiting) = watch::channel(None);
        entry.queued = Some(waiting.clone());
        Found::Absent(sender, waiting)
    }

    fn submit(
        self: &Arc<Self>,
        key: K,
        sender: watch::Sender<Option<Outcome<T>>>,
        state: impl Fn() -> Option<S> + Send + 'static,
        make: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(), ApiError> {
        let (table, queued) = (Arc::clone(self), key.clone());
        // Whoever has joined meanwhile waits for this sender.
        let shared = Arc::new(sender);
        let answer = Arc::clone(&shared);
        let job = move || {
            let begun = Instant::now();
            let (started, before) = table.start(&key, state());
            let outcome = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_panic| {
                tracing::error!("a page could not be rendered");
                Err(broken())
            });
            let outcome = outcome.map(Arc::new);
            let valid = match before {
                None => Some(Valid::Until(begun + MAX_AGE)),
                Some(before) => (state().as_ref() == Some(&before)).then_some(Valid::While(before)),
            };
            table.finish(&key, started, valid, outcome.as_ref().ok());
            answer.send_replace(Some(outcome));
        };
        self.threads.0.try_send(Box::new(job)).map_err(|error| {
            let error = match error {
                TrySendError::Full(_) => {
                    ApiError::new(ErrorCode::Overloaded, "too many pages are being rendered")
                }
                TrySendError::Disconnected(_) => broken(),
            };
            let mut inner = self.lock();
            if let Some(entry) = inner.entries.get_mut(&queued) {
                entry.queued = None;
            }
            inner.trim();
            drop(inner);
            shared.send_replace(Some(Err(error.clone())));
            error
        })
    }

    /// A computation begins in this state.
    fn start(&self, key: &K, state: Option<S>) -> (u64, Option<S>) {
        let mut inner = self.lock();
        inner.clock += 1;
        let started = inner.clock;
        if let Some(entry) = inner.entries.get_mut(key)
            && let Some(waiting) = entry.queued.take()
        {
            entry.running = Some((started, state.clone(), waiting));
        }
        (started, state)
    }

    /// A computation has ended.
    fn finish(&self, key: &K, started: u64, valid: Option<Valid<S>>, value: Option<&Arc<T>>) {
        let mut inner = self.lock();
        let Inner { entries, bytes, .. } = &mut *inner;
        if let Some(entry) = entries.get_mut(key) {
            if entry.running.as_ref().is_some_and(|(running, ..)| *running == started) {
                entry.running = None;
            }
            let is_newest = entry.kept.as_ref().is_none_or(|kept| kept.started < started);
            if let (true, Some(valid), Some(value)) = (is_newest, valid, value) {
                let weight = value.bytes();
                let is_worth_keeping = match valid {
                    Valid::While(_) => true,
                    Valid::Until(_) => weight > MAX_FRESH_BYTES,
                };
                *bytes -= entry.kept.take().map_or(0, |kept| kept.value.bytes());
                if is_worth_keeping && weight <= MAX_BYTES {
                    *bytes += weight;
                    entry.kept = Some(Kept { started, valid, value: Arc::clone(value) });
                }
            }
        }
        inner.trim();
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K, S, T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S, T> Entry<S, T> {
    fn new() -> Self {
        Self { kept: None, running: None, queued: None, used: 0 }
    }

    fn is_busy(&self) -> bool {
        self.running.is_some() || self.queued.is_some()
    }
}

impl<K: Ord + Clone, S, T: Weigh> Inner<K, S, T> {
    /// Forget what nobody waits for and what is over the limits: the values that were asked for longest
    /// ago.
    fn trim(&mut self) {
        self.entries.retain(|_, entry| entry.is_busy() || entry.kept.is_some());
        loop {
            let kept = self.entries.iter().filter(|(_, entry)| entry.kept.is_some());
            let count = kept.clone().count();
            if count <= MAX_VALUES && self.bytes <= MAX_BYTES {
                return;
            }
            let oldest = kept.min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { return };
            let Some(entry) = self.entries.get_mut(&oldest) else { return };
            self.bytes -= entry.kept.take().map_or(0, |kept| kept.value.bytes());
            if !entry.is_busy() {
                self.entries.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests;
