//! The inference threads: where requests meet guests.
//!
//! There are more threads than cores, but no version may use more than its share of them, so that a
//! version that computes for ever leaves threads to the others and the kernel divides the cores.
//! Tokio's workers never run a guest and never wait for a lock that a running guest holds; they
//! submit and await. Each version has a bounded queue of its own, and versions take turns. A job
//! whose deadline has passed or whose caller has gone is dropped before it costs anything.

mod batch;
mod queue;
mod run;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

pub use self::queue::{DEFAULT_LEVEL, LEVELS};
use self::queue::{FairQueue, Level, Place, Rules, Turn};
use self::run::{BeginBy, Job};
use crate::guest::{Fault, Stop};
use crate::measure::Counter;
use crate::stages::StageTimer;
use crate::version::{CallerId, Refusal, ServableVersion};
use guesthouse_model::Tensor;

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
    /// The version keeps breaking down, for everybody or for this caller, and is not asked for a while.
    #[error("the version is suspended, at least for this caller")]
    Suspended(Refusal),
    /// The version has broken down on these inputs several times.
    #[error("the version keeps breaking down on these inputs")]
    Quarantined,
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
    /// Who asks for it.
    pub caller: CallerId,
    /// Shared with whoever wants to compare the answer with another version's.
    pub inputs: Arc<Vec<Tensor>>,
    /// When nobody waits for the answer any more.
    pub deadline: Instant,
    /// Measures the stages that it goes through.
    pub timer: StageTimer,
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

    /// The next turn, as soon as there is one; none when it is time to stop.
    fn next(&self) -> Option<Turn<Job>> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let now = Instant::now();
            if let Some(turn) = state.queue.pop(now, |job| job.is_over(now)) {
                if state.queue.next_release().is_some() {
                    // Somebody has to look at the clock meanwhile.
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
        let version = Arc::clone(&work.version);
        if let Err(refusal) = version.breaker().admit(work.caller, Instant::now()) {
            version.measured().count_refusal(refusal);
            return Err(PredictError::Suspended(refusal));
        }
        let (answer, mut answered) = oneshot::channel();
        let (stop, _cancel_if_dropped) = Stop::with_guard(work.deadline);
        let since = Instant::now();
        let place = place_of(&work, since);
        let rules = Rules {
            max_running: version.limits().concurrency,
            max_rows: version.max_batch_size() as u64,
        };
        let Work { inputs, caller, deadline, timer, urgency, .. } = work;
        let latest = urgency.queue_time.and_then(|time| since.checked_add(time));
        let begin = latest.map(|latest| BeginBy { latest, is_decided: Arc::default() });
        let (tries, suspicion, fingerprint) = (0, None, None);
        let job = Job {
            version: Arc::clone(&version),
            caller,
            inputs,
            fingerprint,
            deadline,
            since,
            begin: begin.clone(),
            stop,
            timer,
            answer,
            tries,
            suspicion,
        };
        {
            let mut state = self.0.lock();
            if state.stopped {
                return Err(PredictError::Stopped);
            }
            if state.queue.push(version.key(), rules, place, job).is_err() {
                version.measured().rejections.with(&"queue_full", Counter::count);
                return Err(PredictError::Overloaded);
            }
        }
        self.0.changed.notify_one();
        if let Some(begin) = begin.filter(|begin| begin.latest < deadline) {
            let answered = tokio::time::timeout_at(begin.latest.into(), &mut answered).await;
            match answered {
                Ok(outcome) => return outcome.unwrap_or(Err(PredictError::Stopped)),
                Err(_elapsed) if begin.decide() => {
                    version.measured().rejections.with(&"queue_timeout", Counter::count);
                    return Err(PredictError::QueueTimeout);
                }
                // It has been begun.
                Err(_elapsed) => {}
            }
        }
        // A running guest is interrupted at the deadline and says so; this is for jobs that wait, and
        // for those whose batch goes on for others.
        let latest = deadline + INTERRUPTION_GRACE;
        match tokio::time::timeout_at(latest.into(), answered).await {
            Ok(outcome) => outcome.unwrap_or(Err(PredictError::Stopped)),
            Err(_elapsed) => Err(PredictError::Expired),
        }
    }
}

/// Where the work stands in the queue.
fn place_of(work: &Work, since: Instant) -> Place {
    let Work { version, inputs, deadline, urgency, .. } = work;
    let time = deadline.saturating_duration_since(since);
    // Whoever made a call fail lately would make its neighbours run twice.
    let is_alone = !version.is_batched() || version.breaker().is_isolated(work.caller, since);
    let group = (!is_alone).then(|| batch::group(version.signature(), inputs, time)).flatten();
    let mut held_for = Duration::ZERO;
    if group.is_some() {
        // Not so long that nothing is left of the time for which it may wait.
        let longest = urgency.queue_time.map_or(time, |queue_time| queue_time.min(time)) / 2;
        held_for = version.limits().batching.max_queue_delay.min(longest);
    }
    Place {
        level: Level::of(urgency.priority),
        group,
        rows: inputs.first().map_or(0, Tensor::rows),
        since,
        hold_until: since + held_for,
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
    while let Some(Turn { lane, jobs, over, wait }) = shared.next() {
        // Those for whom it is too late have waited as well.
        if let Some(job) = jobs.first().map(|queued| &queued.job).or(over.first()) {
            job.version.admission().waited(wait, Instant::now());
        }
        let again = run::run(jobs, over);
        let are_several = again.len() > 1;
        shared.lock().queue.finish(lane, again, Instant::now());
        // Another job of this lane may have waited for its share.
        if are_several {
            shared.changed.notify_all();
        } else {
            shared.changed.notify_one();
        }
    }
}
