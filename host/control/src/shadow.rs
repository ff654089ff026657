//! Shadow traffic: what another version would have answered, found out after the answer.
//!
//! Owns the threads on which candidates are asked, the bounded queue before them, and what was found
//! of each pair of versions. Serving comes first: offering never waits, what does not fit is dropped
//! and counted, guests run here only while the kernel has nothing else to run, and a candidate that
//! also serves is suspended for nothing that it does here. Which requests are compared is the
//! router's business, and when they are offered the edge's.
//!
//! A thread at idle priority may stop for over a second, wherever it is; so each worker is two
//! threads. One, of normal priority, touches what serving touches as well (the engine's instances,
//! the memory of others), for microseconds. The other computes at idle priority and holds nothing.
//! An offer wakes the idle one, and that one the other: if it gets to run at all, there is time.

mod compare;
mod evidence;
mod idle;
mod offers;
mod report;
mod worker;
mod worst;

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

pub use compare::{Kind, OutputCounts};
pub use evidence::{Captured, Disagreement, Excerpt, Labels};
pub use report::{ModelReport, Pair, PairCounts, PairReport, Results};

use self::idle::Idle;
use self::offers::{Offers, offers};
use self::report::Reports;
use self::worker::{Job, Worker};
use guesthouse_model::{ModelName, Tensor};
use guesthouse_runtime::clock;
use guesthouse_runtime::version::{CallerId, ServableVersion};

/// What shadows may use.
#[derive(Debug, Clone, Copy)]
pub struct ShadowLimits {
    /// Requests that are compared at once, and instances that this takes. Half as many as there are
    /// cores by default, because processors share their caches and their memory whatever the
    /// priority.
    pub threads: usize,
    /// Requests that wait to be compared. 64 by default: more would be compared no sooner.
    pub queued: usize,
    /// Bytes of inputs and outputs of all requests that wait or are being compared. 64 MiB by
    /// default, which are eight of the largest bodies.
    pub queued_bytes: usize,
}

impl Default for ShadowLimits {
    fn default() -> Self {
        let cores = guesthouse_runtime::machine::cores();
        Self { threads: (cores / 2).max(1), queued: 64, queued_bytes: 64 << 20 }
    }
}

/// A request that was answered, and the version to compare the answer with.
pub struct Comparison {
    /// To be asked.
    pub candidate: Arc<ServableVersion>,
    /// Which has answered.
    pub primary: Arc<ServableVersion>,
    /// Who asked.
    pub caller: CallerId,
    /// As they were run, one after the other.
    pub batches: Vec<Batch>,
    /// As in the log.
    pub request_id: String,
    /// Whether the worst disagreements may be kept with what was asked and answered.
    pub capture: bool,
}

/// Inputs that were validated against the primary's signature, and its outputs.
pub struct Batch {
    /// In the order of the signature.
    pub inputs: Arc<Vec<Tensor>>,
    /// In the order of the signature.
    pub outputs: Vec<Tensor>,
}

impl Batch {
    fn rows(&self) -> usize {
        let rows = self.inputs.first().map_or(0, Tensor::rows);
        usize::try_from(rows).expect("a checked tensor is counted in usize")
    }
}

impl Comparison {
    fn bytes(&self) -> usize {
        let tensors =
            self.batches.iter().flat_map(|batch| batch.inputs.iter().chain(&batch.outputs));
        tensors.map(|tensor| size_of::<Tensor>() + tensor.data.len()).fold(0, usize::saturating_add)
    }
}

/// The shadows' threads, which end when this is dropped, and what they have found.
pub struct Shadows {
    offers: Offers<Job>,
    reports: Reports,
}

impl Shadows {
    /// Start the threads; guests have a stack of that many bytes.
    ///
    /// # Errors
    /// The machine gives no more threads.
    pub fn start(limits: ShadowLimits, stack_bytes: usize) -> io::Result<Self> {
        let idle = (0..limits.threads)
            .map(|index| Idle::start(format!("shadow-idle-{index}"), stack_bytes))
            .collect::<io::Result<Vec<_>>>()?;
        let sleepers = idle.iter().map(Idle::thread);
        let (offers, taken) = offers(limits.queued, limits.queued_bytes, sleepers);
        let taken = Arc::new(taken);
        for (index, idle) in idle.into_iter().enumerate() {
            let worker = Worker::new(Arc::clone(&taken), idle, index);
            let thread = thread::Builder::new().name(format!("shadow-{index}"));
            // It makes instances.
            thread.stack_size(stack_bytes).spawn(move || worker.work())?;
        }
        Ok(Self { offers, reports: Reports::default() })
    }

    /// Compare when there is time, or count that there was none. Never waits.
    pub fn offer(&self, comparison: Comparison) {
        let Comparison { candidate, primary, .. } = &comparison;
        let pair =
            Pair { candidate: candidate.id().clone(), primary: primary.id().version.clone() };
        let digests = (candidate.digest(), primary.digest());
        let report = self.reports.of(pair, digests, clock::now());
        let (bytes, offered) = (comparison.bytes(), Instant::now());
        let job = Job { comparison, report: Arc::clone(&report), offered };
        if !self.offers.offer(job, bytes) {
            report.count_dropped();
        }
    }

    /// What was found of a model's shadows since each of them began, or since [`Shadows::forget`].
    pub fn report(&self, model: &ModelName) -> ModelReport {
        self.reports.of_model(model)
    }

    /// The counters of all pairs, with their models.
    pub fn counts(&self) -> Vec<(ModelName, PairCounts)> {
        self.reports.counts()
    }

    /// Begin anew with a model. What is being compared is not counted any more.
    pub fn forget(&self, model: &ModelName) {
        self.reports.forget(model);
    }
}
