//! A bounded cache of expensive values, which are computed by a few threads of its own.
//!
//! Concurrent requests for a key share one computation. A request joins a computation only if its result
//! is at least as new as the request: one that has not started yet, or one that started from the current
//! state. Waiting requests occupy no thread.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::edge::error::{ApiError, ErrorCode};

/// The threads that compute values: two, so that a small value does not wait for a large one.
const THREADS: usize = 2;

/// The most queued computations. Each is for another key, so there are more only if many clients with
/// different scopes request different pages at once.
const MAX_QUEUED: usize = 64;

/// The most values of one cache.
const MAX_VALUES: usize = 256;

/// The most bytes of values of one cache: a few documents about thousands of models.
const MAX_BYTES: usize = 128 << 20;

/// The largest value that is computed for each request because it depends on more than the state. Larger
/// ones, about hundreds of models, are cached for [`MAX_AGE`].
const MAX_FRESH_BYTES: usize = 1 << 20;

/// The maximum age of a cached value that depends on more than the state.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The threads.
#[derive(Clone)]
pub(super) struct RenderThreads(SyncSender<Job>);

type Job = Box<dyn FnOnce() + Send>;

impl RenderThreads {
    /// Start the threads. They end when the last clone of this is dropped.
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
        tracing::warn!(%error, "threads that render pages run with normal priority");
    }
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        job();
    }
}

/// A value whose size in memory is known.
pub(in crate::edge) trait MemorySize {
    /// The size in bytes.
    fn bytes(&self) -> usize;
}

type Outcome<T> = Result<Arc<T>, ApiError>;
type Waiting<T> = watch::Receiver<Option<Outcome<T>>>;

/// The cache.
pub(in crate::edge) struct RenderCache<K, S, T> {
    threads: RenderThreads,
    inner: Mutex<Inner<K, S, T>>,
}

struct Inner<K, S, T> {
    entries: BTreeMap<K, Entry<S, T>>,
    /// The size of all cached values.
    bytes: usize,
    /// A logical clock of requests and computations.
    clock: u64,
}

struct Entry<S, T> {
    kept: Option<Kept<S, T>>,
    /// The computation that started last, and the state at that time.
    running: Option<(u64, Option<S>, Waiting<T>)>,
    /// The computation that has not started yet.
    queued: Option<Waiting<T>>,
    /// The time of the last request.
    used: u64,
}

struct Kept<S, T> {
    /// The time at which its computation started.
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
    /// There is neither a value nor a computation; the caller submits one.
    Absent(watch::Sender<Option<Outcome<T>>>, Waiting<T>),
}

impl<K, S, T> RenderCache<K, S, T>
where
    K: Ord + Clone + Send + 'static,
    S: PartialEq + Clone + Send + Sync + 'static,
    T: MemorySize + Send + Sync + 'static,
{
    pub(super) fn new(threads: RenderThreads) -> Self {
        let inner = Inner { entries: BTreeMap::new(), bytes: 0, clock: 0 };
        Self { threads, inner: Mutex::new(inner) }
    }

    /// The value, computed by `make` unless a current one is cached. `state` returns the state that the
    /// value depends on, or `None` if it depends on more. It is called again before and after `make`: if
    /// the state has changed meanwhile, the value goes to the waiting requests and is not cached.
    pub(in crate::edge) async fn get(
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
        let outcome =
            waiting.wait_for(Option::is_some).await.map_err(|_dropped| ApiError::internal())?;
        outcome.clone().unwrap_or_else(|| Err(ApiError::internal()))
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
        // Requests that have joined meanwhile wait for this sender.
        let shared = Arc::new(sender);
        let answer = Arc::clone(&shared);
        let job = move || {
            let begun = Instant::now();
            let (started, before) = table.start(&key, state());
            let outcome = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_panic| {
                tracing::error!("a page could not be rendered");
                Err(ApiError::internal())
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
                TrySendError::Disconnected(_) => ApiError::internal(),
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

    /// Record that a computation begins in this state.
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

    /// Record that a computation has ended.
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

impl<K: Ord + Clone, S, T: MemorySize> Inner<K, S, T> {
    /// Drop empty entries, and evict the least recently used values while the cache exceeds its limits.
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
