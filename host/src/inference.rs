//! The inference threads: the only place where guests run.
//!
//! A fixed number of threads takes jobs from one bounded queue. Tokio's workers never run a guest
//! and never wait for a lock that one holds; they submit and await. A job whose deadline has passed
//! or whose caller has gone is dropped before it costs anything.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::oneshot;
use tracing::Span;

use crate::guest::Fault;
use crate::model::Tensor;
use crate::version::ServableVersion;

/// How long after the deadline the word of an interrupted guest is waited for: a few epoch ticks.
const INTERRUPTION_GRACE: Duration = Duration::from_millis(20);

/// Why a batch has no outputs.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// The guest was asked and gave none.
    #[error(transparent)]
    Guest(#[from] Fault),
    /// The queue is full.
    #[error("the queue of inferences is full")]
    Overloaded,
    /// The deadline passed before the guest was asked.
    #[error("the deadline passed in the queue")]
    Expired,
    /// The server is going down.
    #[error("the inference threads are gone")]
    Stopped,
}

struct Job {
    version: Arc<ServableVersion>,
    inputs: Vec<Tensor>,
    deadline: Instant,
    /// Of the request: what is logged while the guest runs belongs to it.
    span: Span,
    answer: oneshot::Sender<Result<Vec<Tensor>, PredictError>>,
}

/// The way to the inference threads, which end when it is dropped.
#[derive(Debug, Clone)]
pub struct Inference {
    queue: Sender<Job>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Job({})", self.version.id())
    }
}

impl Inference {
    /// Start the threads.
    ///
    /// # Errors
    /// The machine gives no more threads.
    pub fn start(threads: usize, queue_capacity: usize) -> std::io::Result<Self> {
        let (queue, jobs) = bounded(queue_capacity);
        for index in 0..threads {
            let jobs = jobs.clone();
            let thread = thread::Builder::new().name(format!("inference-{index}"));
            thread.spawn(move || work(&jobs))?;
        }
        Ok(Self { queue })
    }

    /// Outputs for a batch that has been validated against the version's signature.
    ///
    /// # Errors
    /// [`PredictError`], at once if the queue is full, else by the deadline.
    pub async fn predict(
        &self,
        version: Arc<ServableVersion>,
        inputs: Vec<Tensor>,
        deadline: Instant,
        span: Span,
    ) -> Result<Vec<Tensor>, PredictError> {
        let (answer, answered) = oneshot::channel();
        let job = Job { version, inputs, deadline, span, answer };
        self.queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => PredictError::Overloaded,
            TrySendError::Disconnected(_) => PredictError::Stopped,
        })?;
        // A running guest is interrupted at the deadline and says so; this is for jobs that wait.
        let latest = deadline + INTERRUPTION_GRACE;
        match tokio::time::timeout_at(latest.into(), answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_closed)) => Err(PredictError::Stopped),
            Err(_elapsed) => Err(PredictError::Expired),
        }
    }
}

fn work(jobs: &Receiver<Job>) {
    for job in jobs {
        if job.answer.is_closed() {
            continue;
        }
        let outcome =
            if Instant::now() < job.deadline { run(&job) } else { Err(PredictError::Expired) };
        // The caller may have gone in the meantime, which is its right.
        let _ = job.answer.send(outcome);
    }
}

/// A panic here is a bug of the host; it costs the job, not the thread.
fn run(job: &Job) -> Result<Vec<Tensor>, PredictError> {
    let _logged_with_the_request = job.span.enter();
    let predict = || job.version.predict(&job.inputs, job.deadline);
    let outcome = catch_unwind(AssertUnwindSafe(predict))
        .unwrap_or_else(|_panic| Err(Fault::Host("an inference thread panicked".to_owned())));
    outcome.map_err(|fault| {
        log_fault(job, &fault);
        fault.into()
    })
}

/// Faults are logged where they happen, because the caller may have gone. A rejection is the
/// caller's own fault and no news for an operator.
fn log_fault(job: &Job, fault: &Fault) {
    if matches!(fault, Fault::Rejected(_)) {
        return;
    }
    let (model, version) = (&job.version.id().name, &job.version.id().version);
    tracing::warn!(target: "fault", %model, %version, kind = fault.kind(), "{fault}");
}
