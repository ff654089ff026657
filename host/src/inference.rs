//! The inference threads: where requests meet guests.
//!
//! There are more threads than cores, but no version may use more than its share of them, so that a
//! version that computes for ever leaves threads to the others and the kernel divides the cores.
//! Tokio's workers never run a guest and never wait for a lock that a running guest holds; they
//! submit and await. Each version has a bounded queue of its own, and versions take turns. A job
//! whose deadline has passed or whose caller has gone is dropped before it costs anything.

mod queue;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use self::queue::{FairQueue, LaneKey};
use crate::guest::{Fault, Stop};
use crate::model::Tensor;
use crate::observe::measure::Counter;
use crate::observe::trace::{Stage, Told};
use crate::version::ServableVersion;
use crate::version::statistics::Execution;

/// How long after the deadline the word of an interrupted guest is waited for: a few epoch ticks.
const INTERRUPTION_GRACE: Duration = Duration::from_millis(20);

/// Why a batch has no outputs.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// The guest was asked and gave none.
    #[error(transparent)]
    Guest(#[from] Fault),
    /// The version's queue is full.
    #[error("the version's queue is full")]
    Overloaded,
    /// The version keeps breaking down and is not asked for a while.
    #[error("the version is suspended")]
    Suspended,
    /// The deadline passed before the guest was asked.
    #[error("the deadline passed in the queue")]
    Expired,
    /// The work was not begun in the time that it may wait.
    #[error("the work was not begun in the time that it may wait")]
    QueueTimeout,
    /// The server is going down.
    #[error("the inference threads are gone")]
    Stopped,
}

/// Rows that have been validated against the signature of a version, to be predicted for.
pub struct Work {
    /// Who is to predict.
    pub version: Arc<ServableVersion>,
    /// Shared with whoever wants to compare the answer with another version's.
    pub inputs: Arc<Vec<Tensor>>,
    /// When nobody waits for the answer any more.
    pub deadline: Instant,
    /// Who is told what it goes through.
    pub told: Told,
    /// Its place among others that wait for the same version.
    pub urgency: Urgency,
}

/// How urgent work is beside other work for the same version. By default it is as urgent as most,
/// and may wait until its deadline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Urgency {
    /// From 1, the most urgent, downwards; 0 stands for the level of whoever says nothing.
    pub priority: u64,
    /// How long it may wait before it is begun; if that is longer, it is refused.
    pub queue_time: Option<Duration>,
}

struct Job {
    version: Arc<ServableVersion>,
    /// Shared with whoever wants to compare the answer with another version's.
    inputs: Arc<Vec<Tensor>>,
    deadline: Instant,
    /// When it is too late to begin, if that is before the deadline.
    begin_by: Option<Instant>,
    /// When it began to wait.
    since: Instant,
    stop: Stop,
    /// Who is told what it went through.
    told: Told,
    answer: oneshot::Sender<Result<Vec<Tensor>, PredictError>>,
}

/// How many threads there are, and what waits before them.
#[derive(Debug, Clone, Copy)]
pub struct InferenceLimits {
    /// All threads.
    pub threads: usize,
    /// Batches of one version that wait for a thread.
    pub queued_per_version: usize,
}

/// The way to the inference threads, which end when it is dropped.
pub struct Inference(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    queue: FairQueue<Job>,
    stopped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, as soon as there is one; none when it is time to stop.
    fn next(&self) -> Option<(LaneKey, Job)> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(next) = state.queue.pop() {
                return Some(next);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Inference {
    /// Start the threads, with a stack of that many bytes each.
    ///
    /// # Errors
    /// The machine gives no more threads.
    pub fn start(limits: InferenceLimits, stack_bytes: usize) -> std::io::Result<Self> {
        let queue = FairQueue::new(limits.queued_per_version);
        let state = Mutex::new(State { queue, stopped: false });
        let inference = Self(Arc::new(Shared { state, changed: Condvar::new() }));
        for index in 0..limits.threads {
            let shared = Arc::clone(&inference.0);
            let thread = thread::Builder::new().name(format!("inference-{index}"));
            let thread = thread.stack_size(stack_bytes);
            thread.spawn(move || work(&shared))?;
        }
        Ok(inference)
    }

    /// Outputs for a batch that has been validated against the version's signature. A caller that
    /// drops the future has gone: the batch is dropped, or interrupted if it runs.
    ///
    /// # Errors
    /// [`PredictError`], at once if the version is suspended or its queue is full, else by the
    /// deadline.
    pub async fn predict(&self, work: Work) -> Result<Vec<Tensor>, PredictError> {
        let Work { version, inputs, deadline, told, urgency } = work;
        if !version.breaker().admit(Instant::now()) {
            version.measured().rejections.with(&"suspended", Counter::count);
            return Err(PredictError::Suspended);
        }
        let (answer, answered) = oneshot::channel();
        let (stop, _cancel_if_dropped) = Stop::with_guard(deadline);
        let (key, share) = (version.key(), version.limits().concurrency);
        let since = Instant::now();
        let begin_by = urgency.queue_time.and_then(|time| since.checked_add(time));
        let job = Job { version, inputs, deadline, begin_by, since, stop, told, answer };
        {
            let mut state = self.0.lock();
            if state.stopped {
                return Err(PredictError::Stopped);
            }
            if let Err(job) = state.queue.push(key, share, job) {
                job.version.measured().rejections.with(&"queue_full", Counter::count);
                return Err(PredictError::Overloaded);
            }
        }
        self.0.changed.notify_one();
        // A running guest is interrupted at the deadline and says so; this is for jobs that wait.
        let latest = deadline + INTERRUPTION_GRACE;
        match tokio::time::timeout_at(latest.into(), answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_closed)) => Err(PredictError::Stopped),
            Err(_elapsed) => Err(PredictError::Expired),
        }
    }
}

impl Inference {
    /// How many batches of the version with this key wait for a thread.
    pub fn waiting(&self, key: u64) -> usize {
        self.0.lock().queue.waiting(key)
    }
}

impl Drop for Inference {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_all();
    }
}

fn work(shared: &Shared) {
    while let Some((lane, job)) = shared.next() {
        run(job);
        shared.lock().queue.finish(lane);
        // Another job of this lane may have waited for its share.
        shared.changed.notify_one();
    }
}

fn run(job: Job) {
    let Job { version, inputs, deadline, begin_by, since, stop, told, answer } = job;
    let now = Instant::now();
    let waited = now.saturating_duration_since(since);
    version.admission().waited(waited, now);
    version.statistics().waited(waited);
    told.went_through(Stage::Queue, since, now, &version.measured().queue);
    if answer.is_closed() {
        return;
    }
    if now >= deadline {
        version.measured().rejections.with(&"expired", Counter::count);
        // The caller may have gone in the meantime, which is its right.
        let _ = answer.send(Err(PredictError::Expired));
        return;
    }
    if begin_by.is_some_and(|latest| now >= latest) {
        version.measured().rejections.with(&"queue_timeout", Counter::count);
        let _ = answer.send(Err(PredictError::QueueTimeout));
        return;
    }
    let _logged_with_the_request = told.span.enter();
    let mut leased = None;
    let predict = || {
        let taken = version.pool().take(&stop);
        let instantiated = Instant::now();
        told.went_through(Stage::Instantiate, now, instantiated, &version.measured().instantiate);
        let outcome = leased.insert(taken?).predict(&inputs, &stop);
        let end = Instant::now();
        told.went_through(Stage::Guest, instantiated, end, &version.measured().predict);
        if outcome.is_ok() {
            let rows = inputs.first().map_or(0, Tensor::rows);
            let infer = end.saturating_duration_since(instantiated);
            let execution = Execution { rows, infer, ..Execution::default() };
            version.statistics().executed(&execution, 1, SystemTime::now());
        }
        outcome
    };
    // A panic here is a bug of the host; it costs the job, not the thread.
    let outcome = catch_unwind(AssertUnwindSafe(predict))
        .unwrap_or_else(|_panic| Err(Fault::Host("an inference thread panicked".to_owned())));
    let good = outcome.as_ref().err().is_none_or(Fault::spares_instance);
    account(&version, outcome.as_ref().err());
    let _ = answer.send(outcome.map_err(PredictError::Guest));
    // The caller has its answer; the rest is on nobody's time.
    if let Some(leased) = leased {
        version.pool().give_back(leased, good);
    }
}

/// Log a fault where it happens, because the caller may have gone, and let the breaker know. A
/// rejection is the caller's own fault and no news for an operator.
fn account(version: &ServableVersion, fault: Option<&Fault>) {
    let (id, breaker) = (version.id(), version.breaker());
    let Some(fault) = fault else { return breaker.succeeded() };
    version.faults().count(fault);
    if matches!(fault, Fault::Rejected(_)) {
        return breaker.succeeded();
    }
    let (model, version) = (&id.name, &id.version);
    tracing::warn!(target: "fault", %model, %version, kind = fault.kind(), trap = fault.trap(), "{fault}");
    if !fault.condemns_version() {
        return;
    }
    if let Some(time) = breaker.broke_down(Instant::now()) {
        let seconds = time.as_secs();
        tracing::error!(target: "fault", %model, %version, seconds, "version suspended");
    }
}
