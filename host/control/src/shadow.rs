//! Shadow traffic: a candidate version is run on requests that another version has answered, and the two
//! outputs are compared.
//!
//! Owns the threads that run candidates, the bounded queue before them, and the results of each pair of
//! versions. Serving comes first: submitting a comparison never waits, comparisons that do not fit are
//! dropped and counted, guests run here only while the kernel has nothing else to run, and faults here
//! never suspend a candidate that also serves. The router decides which requests are compared; the server
//! submits them when their responses are on their way.
//!
//! The kernel may pause a thread of idle priority for over a second, at any point, so a worker has two
//! threads. One of normal priority uses what serving uses as well (the engine's instances, memory that
//! others have allocated), for microseconds. The other computes at idle priority and holds no lock. A new
//! comparison wakes the idle thread, and that wakes the other one: if the idle one runs at all, the machine
//! has time.

mod compare;
mod comparison;
mod evidence;
mod idle_thread;
mod queue;
mod report;
mod worker;
mod worst;

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

pub use compare::{DifferenceKind, OutputCounts};
pub use comparison::{ComparedBatch, Comparison};
pub use evidence::{CapturedRecords, Disagreement, Excerpt, Labels};
pub use report::{ModelReport, PairCounts, PairReport, ResultCounts, VersionPair};

use self::idle_thread::IdleThread;
use self::queue::{QueueSender, bounded};
use self::report::Reports;
use self::worker::{Job, Worker};
use guesthouse_model::ModelName;
use guesthouse_runtime::clock;

/// The resources that shadows may use.
#[derive(Debug, Clone, Copy)]
pub struct ShadowLimits {
    /// Comparisons that run at once, each with one instance. Half the number of cores by default, because
    /// processors share their caches and their memory at any priority.
    pub threads: usize,
    /// Comparisons that may wait. 64 by default: a longer queue would only add delay.
    pub queued: usize,
    /// Bytes of inputs and outputs of all comparisons that wait or run. 64 MiB by default, which is eight
    /// of the largest request bodies.
    pub queued_bytes: usize,
}

impl Default for ShadowLimits {
    fn default() -> Self {
        let cores = guesthouse_runtime::machine::cores();
        Self { threads: (cores / 2).max(1), queued: 64, queued_bytes: 64 << 20 }
    }
}

/// The threads of the shadows, which end when this is dropped, and their results.
pub struct Shadows {
    queue: QueueSender<Job>,
    reports: Reports,
}

impl Shadows {
    /// Start the threads. `stack_bytes` is the largest stack that a guest may use.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub fn start(limits: ShadowLimits, stack_bytes: usize) -> io::Result<Self> {
        let idle = (0..limits.threads)
            .map(|index| IdleThread::start(format!("shadow-idle-{index}"), stack_bytes))
            .collect::<io::Result<Vec<_>>>()?;
        let waiters = idle.iter().map(IdleThread::thread);
        let (queue, jobs) = bounded(limits.queued, limits.queued_bytes, waiters);
        let jobs = Arc::new(jobs);
        for (index, idle) in idle.into_iter().enumerate() {
            let worker = Worker::new(Arc::clone(&jobs), idle, index);
            let thread = thread::Builder::new().name(format!("shadow-{index}"));
            // It makes instances, which run the guest's start functions.
            thread.stack_size(stack_bytes).spawn(move || worker.run())?;
        }
        Ok(Self { queue, reports: Reports::default() })
    }

    /// Queue a comparison, or count it as dropped if the queue is full. Never waits.
    pub fn submit(&self, comparison: Comparison) {
        let Comparison { candidate, primary, .. } = &comparison;
        let pair = VersionPair {
            candidate: candidate.id().clone(),
            primary: primary.id().version.clone(),
        };
        let digests = (candidate.digest(), primary.digest());
        let report = self.reports.get_or_insert(pair, digests, clock::now());
        let (bytes, queued) = (comparison.bytes(), Instant::now());
        let job = Job { comparison, report: Arc::clone(&report), queued };
        if !self.queue.try_send(job, bytes) {
            report.count_dropped();
        }
    }

    /// The results of the shadows of a model, since each of them started or since [`Shadows::reset`].
    pub fn report(&self, model: &ModelName) -> ModelReport {
        self.reports.model_report(model)
    }

    /// The counters of all pairs with their models.
    pub fn counts(&self) -> Vec<(ModelName, PairCounts)> {
        self.reports.counts()
    }

    /// Reset the results of a model. Comparisons that are running are not counted any more.
    pub fn reset(&self, model: &ModelName) {
        self.reports.remove(model);
    }
}
