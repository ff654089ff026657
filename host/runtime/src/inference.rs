//! The inference threads, which run guests for requests.
//!
//! There are more threads than cores, but no version may occupy more than its share of them. A
//! guest that never returns therefore leaves threads to other versions, and the kernel divides the
//! cores. Tokio's workers never run a guest and never wait for a lock that a running guest holds:
//! they submit a job and await its result. Each version has its own bounded queue, and versions
//! take turns. A job whose deadline has passed, or whose caller has disconnected, is dropped before
//! it costs anything.

mod batch;
mod queue;
mod run;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

pub use self::queue::{DEFAULT_PRIORITY, PRIORITY_LEVELS};
use self::queue::{FairQueue, LaneLimits, LaneTurn, PriorityLevel, QueueEntry};
use self::run::{PendingJob, StartDeadline};
use crate::guest::{Fault, StopSignal};
use crate::measure::Counter;
use crate::stages::StageTimer;
use crate::version::{BreakerRefusal, CallerId, ServableVersion};
use guesthouse_model::Tensor;

/// How long past the deadline the result of an interrupted guest is awaited: a few epoch ticks.
const INTERRUPTION_GRACE: Duration = Duration::from_millis(20);

/// Why a job has no outputs.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// The guest was called and returned no outputs.
    #[error(transparent)]
    Guest(#[from] Fault),
    /// The version's queue is full.
    #[error("the version's queue is full")]
    Overloaded,
    /// The version keeps failing, for all callers or for this one, and is suspended for a while.
    #[error("the version is suspended, at least for this caller")]
    Suspended(BreakerRefusal),
    /// The version has failed on these inputs several times.
    #[error("the version keeps breaking down on these inputs")]
    Quarantined,
    /// The deadline passed before the guest was called.
    #[error("the deadline passed in the queue")]
    Expired,
    /// The job did not start within the queue timeout of its [`QueueOptions`].
    #[error("the job did not start within its queue timeout")]
    QueueTimeout,
    /// The server is shutting down.
    #[error("the inference threads are gone")]
    Stopped,
}

/// A request to run a version on rows that have been validated against its signature.
pub struct PredictJob {
    /// The version to run.
    pub version: Arc<ServableVersion>,
    /// The caller, whose failures the version's breaker counts.
    pub caller: CallerId,
    /// The inputs; shared, because a shadow comparison may need them after the response.
    pub inputs: Arc<Vec<Tensor>>,
    /// When the caller stops waiting for the outputs.
    pub deadline: Instant,
    /// Measures the stages of the job.
    pub timer: StageTimer,
    /// How the job is ordered among others that wait for the same version.
    pub queue_options: QueueOptions,
}

/// How a job is ordered and bounded in its version's queue. By default it has the middle priority
/// and may wait until its deadline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueOptions {
    /// The priority, from 1 (most urgent) to 9; 0 selects the default, and larger values count as
    /// 9.
    pub priority: u64,
    /// How long the job may wait in the queue. If it has not started by then, it is rejected.
    pub queue_timeout: Option<Duration>,
}

/// The number of threads and the bound of each queue.
#[derive(Debug, Clone, Copy)]
pub struct InferenceLimits {
    /// Threads in total.
    pub threads: usize,
    /// Jobs of one version that may wait for a thread.
    pub queued_per_version: usize,
}

/// A handle to the inference threads, which end when it is dropped.
pub struct InferenceThreads(Arc<ThreadsShared>);

struct ThreadsShared {
    state: Mutex<QueueState>,
    changed: Condvar,
}

struct QueueState {
    queue: FairQueue<PendingJob>,
    stopped: bool,
}

impl ThreadsShared {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // No code panics in the middle of an update, so a poisoned state is consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait for the next batch; `None` when the threads are to stop.
    fn next(&self) -> Option<LaneTurn<PendingJob>> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let now = Instant::now();
            if let Some(turn) = state.queue.pop(now, |job| job.is_expired(now)) {
                if state.queue.next_release().is_some() {
                    // Another thread has to wait for the release of the jobs that are held back.
                    self.changed.notify_one();
                }
                return Some(turn);
            }
            state = match state.queue.next_release() {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(release) => {
                    let time = release.saturating_duration_since(now);
                    let waited = self.changed.wait_timeout(state, time);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl InferenceThreads {
    /// Start the threads, each with a stack of `stack_bytes`.
    ///
    /// # Errors
    /// The system cannot create the threads.
    pub fn start(limits: InferenceLimits, stack_bytes: usize) -> std::io::Result<Self> {
        let queue = FairQueue::new(limits.queued_per_version);
        let state = Mutex::new(QueueState { queue, stopped: false });
        let inference = Self(Arc::new(ThreadsShared { state, changed: Condvar::new() }));
        for index in 0..limits.threads {
            let shared = Arc::clone(&inference.0);
            let thread = thread::Builder::new().name(format!("inference-{index}"));
            let thread = thread.stack_size(stack_bytes);
            thread.spawn(move || run_jobs(&shared))?;
        }
        Ok(inference)
    }

    /// Run a job and return its outputs. Dropping the future cancels the job: it is removed from
    /// the queue, or its guest is interrupted.
    ///
    /// # Errors
    /// [`PredictError`]: immediately if the version is suspended or its queue is full, otherwise no
    /// later than shortly after the deadline.
    pub async fn predict(&self, job: PredictJob) -> Result<Vec<Tensor>, PredictError> {
        let version = Arc::clone(&job.version);
        if let Err(refusal) = version.breaker().admit(job.caller, Instant::now()) {
            version.metrics().count_refusal(refusal);
            return Err(PredictError::Suspended(refusal));
        }
        let (answer, mut received) = oneshot::channel();
        let (stop, _cancel_if_dropped) = StopSignal::with_guard(job.deadline);
        let since = Instant::now();
        let entry = queue_entry(&job, since);
        let limits = LaneLimits {
            max_running: version.limits().concurrency,
            max_rows: version.max_batch_size() as u64,
        };
        let PredictJob { inputs, caller, deadline, timer, queue_options, .. } = job;
        let latest = queue_options.queue_timeout.and_then(|time| since.checked_add(time));
        let start_deadline =
            latest.map(|latest| StartDeadline { latest, is_claimed: Arc::default() });
        let (attempts, pending_fault, fingerprint) = (0, None, None);
        let job = PendingJob {
            version: Arc::clone(&version),
            caller,
            inputs,
            fingerprint,
            deadline,
            since,
            start_deadline: start_deadline.clone(),
            stop,
            timer,
            answer,
            attempts,
            pending_fault,
        };
        {
            let mut state = self.0.lock();
            if state.stopped {
                return Err(PredictError::Stopped);
            }
            if state.queue.push(version.key(), limits, entry, job).is_err() {
                version.metrics().rejections.with(&"queue_full", Counter::count);
                return Err(PredictError::Overloaded);
            }
        }
        self.0.changed.notify_one();
        if let Some(start_deadline) = start_deadline.filter(|start| start.latest < deadline) {
            let received =
                tokio::time::timeout_at(start_deadline.latest.into(), &mut received).await;
            match received {
                Ok(outcome) => return outcome.unwrap_or(Err(PredictError::Stopped)),
                Err(_elapsed) if start_deadline.claim() => {
                    version.metrics().rejections.with(&"queue_timeout", Counter::count);
                    return Err(PredictError::QueueTimeout);
                }
                // The job has started, so it runs until its deadline.
                Err(_elapsed) => {}
            }
        }
        // A running guest is interrupted at the deadline and reports that. This timeout is for jobs
        // that still wait, and for those whose batch continues for other callers.
        let latest = deadline + INTERRUPTION_GRACE;
        match tokio::time::timeout_at(latest.into(), received).await {
            Ok(outcome) => outcome.unwrap_or(Err(PredictError::Stopped)),
            Err(_elapsed) => Err(PredictError::Expired),
        }
    }
}

/// The position of the job in its queue, and the key of the batches that it can join.
fn queue_entry(job: &PredictJob, since: Instant) -> QueueEntry {
    let PredictJob { version, inputs, deadline, queue_options, .. } = job;
    let time = deadline.saturating_duration_since(since);
    // A caller that failed recently runs alone, because a failing batch has to run again.
    let is_alone = !version.is_batched() || version.breaker().is_isolated(job.caller, since);
    let batch_key =
        (!is_alone).then(|| batch::batch_key(version.signature(), inputs, time)).flatten();
    let mut held_for = Duration::ZERO;
    if batch_key.is_some() {
        // At most half of the time it may wait, so that it can still start in time.
        let longest =
            queue_options.queue_timeout.map_or(time, |queue_timeout| queue_timeout.min(time)) / 2;
        held_for = version.limits().batching.max_queue_delay.min(longest);
    }
    QueueEntry {
        level: PriorityLevel::from_request(queue_options.priority),
        batch_key,
        rows: inputs.first().map_or(0, Tensor::rows),
        since,
        hold_until: since + held_for,
    }
}

impl InferenceThreads {
    /// How many jobs of the version with this key wait for a thread.
    pub fn waiting(&self, key: u64) -> usize {
        self.0.lock().queue.waiting(key)
    }
}

impl Drop for InferenceThreads {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_all();
    }
}

fn run_jobs(shared: &ThreadsShared) {
    while let Some(LaneTurn { lane, jobs, expired, wait }) = shared.next() {
        // Expired jobs count as well: they have waited, too.
        if let Some(job) = jobs.first().map(|queued| &queued.job).or(expired.first()) {
            job.version.admission().record_wait(wait, Instant::now());
        }
        let retries = run::run(jobs, expired);
        let are_several = retries.len() > 1;
        shared.lock().queue.finish(lane, retries, Instant::now());
        // Another job of this version may have waited for a free share of the threads.
        if are_several {
            shared.changed.notify_all();
        } else {
            shared.changed.notify_one();
        }
    }
}
