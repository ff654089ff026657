//! A loaded version that can serve: its signature, its limits and its instances. It is immutable
//! and reference-counted: a request keeps its version alive by holding it, so a version is drained
//! when the last holder drops it.

pub mod admission;
mod breaker;
mod budget;
mod caller;
mod faults;
mod metrics;
mod quarantine;
pub mod statistics;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use admission::Admission;
pub use breaker::{Breaker, BreakerRefusal, SuspensionScope};
pub use budget::{BudgetExceeded, Reservation, ResourceBudget};
pub use caller::CallerId;
pub use faults::FaultCounts;
pub use metrics::VersionMetrics;
pub use quarantine::{InputFingerprint, Quarantine};
pub use statistics::Statistics;

use crate::guest::{ArithmeticUsage, Fault, InstanceLimits, LoadedComponent, StopSignal};
use crate::machine;
use crate::pool::{Isolation, Pool, ReuseLimits};
use crate::preinit::PreinitReport;
use guesthouse_artifact::{Artifact, ArtifactMetadata, Digest, GoldenExample, Tolerances};
use guesthouse_model::record;
use guesthouse_model::{Signature, Tensor, VersionId};

/// The time that all golden examples of a version may take together. No request waits for them.
pub(crate) const GOLDEN_TIME: Duration = Duration::from_secs(60);

/// The limits and settings of the versions of one model.
#[derive(Debug, Clone, Copy)]
pub struct ModelLimits {
    /// The limits of each instance.
    pub instance: InstanceLimits,
    /// How strictly requests are isolated from each other.
    pub isolation: Isolation,
    /// The most batches of one version that may run at once; this many instances are kept.
    pub concurrency: usize,
    /// The most jobs that may wait for a thread.
    pub queued: usize,
    /// The time a request may wait and run, unless the request sets a deadline.
    pub predict_time: Duration,
    /// How rows of several requests are batched.
    pub batching: Batching,
}

/// How long a request may wait and run by default. 2 s are longer than any small model takes.
const DEFAULT_PREDICT_TIME: Duration = Duration::from_secs(2);

/// The most jobs of a version that wait by default: on two cores an eighth of a second of jobs that take 1 ms.
const DEFAULT_QUEUED: usize = 256;

impl Default for ModelLimits {
    fn default() -> Self {
        Self {
            instance: InstanceLimits::default(),
            isolation: Isolation::Reuse(ReuseLimits::default()),
            concurrency: machine::cores(),
            queued: DEFAULT_QUEUED,
            predict_time: DEFAULT_PREDICT_TIME,
            batching: Batching::default(),
        }
    }
}

/// How rows of several requests are joined for one call of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Whether requests are batched. They are by default: a call of a guest costs about the same
    /// for many rows, and no request waits for others.
    pub is_enabled: bool,
    /// The most rows of one call, if that is less than the signature allows.
    pub max_batch_size: u32,
    /// How long a request may be held back so that others can join its batch. Zero by default: a
    /// request that finds a free thread is answered soonest by running at once, and requests that
    /// arrive while all threads are busy form a batch anyway.
    pub max_queue_delay: Duration,
}

impl Default for Batching {
    fn default() -> Self {
        Self { is_enabled: true, max_batch_size: u32::MAX, max_queue_delay: Duration::ZERO }
    }
}

/// Whether the host computes for a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArithmeticGrant {
    /// The guest does not import the interface.
    Unused,
    /// The guest may call its functions.
    Granted,
    /// The operator does not allow it, and the guest computes by itself.
    Denied,
}

/// A version that can serve.
pub struct ServableVersion {
    key: u64,
    id: VersionId,
    digest: Digest,
    metadata: ArtifactMetadata,
    report: PreinitReport,
    limits: ModelLimits,
    tolerances: Tolerances,
    arithmetic: ArithmeticGrant,
    arithmetic_usage: Arc<ArithmeticUsage>,
    pool: Pool,
    shadow_pool: Pool,
    admission: Admission,
    breaker: Breaker,
    quarantine: Quarantine,
    faults: FaultCounts,
    metrics: Arc<VersionMetrics>,
    statistics: Arc<Statistics>,
    /// Released when the version is dropped.
    _reservation: Reservation,
}

/// A version does not pass the golden examples of its artifact.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// An instance cannot be created.
    #[error("an instance cannot be created: {0}")]
    Instance(#[source] Fault),
    /// The inputs of a golden example do not fit the signature.
    #[error("golden example {index} does not fit the signature: {reason}")]
    Inputs {
        /// The number of the example, from 1.
        index: usize,
        /// Why not.
        reason: String,
    },
    /// The guest failed on a golden example.
    #[error("golden example {index}: {fault}")]
    Fault {
        /// The number of the example, from 1.
        index: usize,
        /// Why not.
        #[source]
        fault: Fault,
    },
    /// The outputs differ from the golden ones.
    #[error("golden example {index}: {difference}")]
    Differs {
        /// The number of the example, from 1.
        index: usize,
        /// The first difference.
        difference: Box<record::GoldenMismatch>,
    },
}

fn arithmetic_grant(artifact: &Artifact, limits: &ModelLimits) -> ArithmeticGrant {
    match (artifact.imports_arithmetic(), limits.instance.arithmetic) {
        (false, _) => ArithmeticGrant::Unused,
        (true, Some(_)) => ArithmeticGrant::Granted,
        (true, None) => ArithmeticGrant::Denied,
    }
}

fn is_batched(limits: &ModelLimits) -> bool {
    limits.batching.is_enabled && limits.isolation != Isolation::Fresh
}

/// How many requests of one row can share a batch.
fn most_together(limits: &ModelLimits, of_signature: u32) -> usize {
    let most = of_signature.min(limits.batching.max_batch_size) as usize;
    if is_batched(limits) { most } else { 1 }
}

impl ServableVersion {
    /// Run the golden examples of a version and create its instances.
    ///
    /// # Errors
    /// [`ProofError`] for the first golden example that fails.
    pub fn prove(
        artifact: &Artifact,
        report: &PreinitReport,
        component: LoadedComponent,
        limits: ModelLimits,
        reservation: Reservation,
    ) -> Result<Self, ProofError> {
        static NEXT_KEY: AtomicU64 = AtomicU64::new(0);
        let arithmetic_usage = Arc::clone(component.arithmetic_usage());
        let component = component.with_share(limits.concurrency);
        let shadow_pool = Pool::new(component.clone(), limits.isolation, 0);
        let pool = Pool::new(component, limits.isolation, limits.concurrency);
        pool.create_first().map_err(ProofError::Instance)?;
        let check = GoldenCheck {
            pool: &pool,
            signature: &report.signature,
            tolerances: &artifact.descriptor().tolerances,
            stop: StopSignal::at_deadline(Instant::now() + GOLDEN_TIME),
        };
        for (index, example) in artifact.golden().iter().enumerate() {
            check.run_example(index + 1, example)?;
        }
        // At least one instance exists. Those that cannot be created because the engine's pool is
        // full now are created on demand.
        let _ = pool.fill();
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        let (id, digest) = (artifact.id().clone(), artifact.digest());
        let (metadata, report) = (artifact.metadata().clone(), report.clone());
        let tolerances = artifact.descriptor().tolerances.clone();
        let together = most_together(&limits, report.signature.max_batch_size);
        let admission =
            Admission::new(limits.concurrency, limits.queued, limits.predict_time, together);
        let (breaker, faults) = (Breaker::default(), FaultCounts::default());
        Ok(Self {
            key,
            id,
            digest,
            metadata,
            report,
            limits,
            tolerances,
            arithmetic: arithmetic_grant(artifact, &limits),
            arithmetic_usage,
            pool,
            shadow_pool,
            admission,
            breaker,
            quarantine: Quarantine::default(),
            faults,
            metrics: Arc::default(),
            statistics: Arc::default(),
            _reservation: reservation,
        })
    }

    /// Run the golden examples of another version. Returns a line of text for each that fails.
    pub fn replay(&self, examples: &[GoldenExample], tolerances: &Tolerances) -> Vec<String> {
        let stop = StopSignal::at_deadline(Instant::now() + GOLDEN_TIME);
        let signature = &self.report.signature;
        let check = GoldenCheck { pool: &self.pool, signature, tolerances, stop };
        let run = |(index, example)| check.run_example(index + 1, example).err();
        examples.iter().enumerate().filter_map(run).map(|error| error.to_string()).collect()
    }

    /// The key that identifies this loaded version within the process.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// The model's name and the version's number.
    pub fn id(&self) -> &VersionId {
        &self.id
    }

    /// The digest of the artifact.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The artifact's description, licence and other metadata.
    pub fn metadata(&self) -> &ArtifactMetadata {
        &self.metadata
    }

    /// The inputs and outputs of the version.
    pub fn signature(&self) -> &Signature {
        &self.report.signature
    }

    /// The most rows of one call of the guest, by the signature and by the operator's limit.
    pub fn max_batch_size(&self) -> usize {
        self.signature().max_batch_size.min(self.limits.batching.max_batch_size) as usize
    }

    /// Whether rows of several requests may share a call of the guest. They never do with
    /// [`Isolation::Fresh`].
    pub fn is_batched(&self) -> bool {
        is_batched(&self.limits)
    }

    /// The report of pre-initialisation.
    pub fn report(&self) -> &PreinitReport {
        &self.report
    }

    /// The limits of the version.
    pub fn limits(&self) -> &ModelLimits {
        &self.limits
    }

    /// How far outputs may differ from others and still count as equal, by output; 0 for outputs
    /// that are not listed.
    pub fn tolerances(&self) -> &Tolerances {
        &self.tolerances
    }

    /// Whether the host computes for the version.
    pub fn arithmetic(&self) -> ArithmeticGrant {
        self.arithmetic
    }

    /// What the host has computed for the version.
    pub fn arithmetic_usage(&self) -> &Arc<ArithmeticUsage> {
        &self.arithmetic_usage
    }

    /// The instances that serve clients.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Instances for shadow batches, for which no client waits. They are created on demand, so that
    /// shadow batches take neither instances nor the pool's lock from batches of clients. The
    /// shadow worker clears the pool when it is done.
    pub fn shadow_pool(&self) -> &Pool {
        &self.shadow_pool
    }

    /// The limit of concurrent requests.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// The circuit breaker.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// The inputs on which the version keeps failing.
    pub fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// The metrics of the version.
    pub fn metrics(&self) -> &Arc<VersionMetrics> {
        &self.metrics
    }

    /// The counters that the Open Inference Protocol's statistics report.
    pub fn statistics(&self) -> &Arc<Statistics> {
        &self.statistics
    }

    /// The faults since the version was loaded, by kind.
    pub fn faults(&self) -> &FaultCounts {
        &self.faults
    }
}

/// Runs golden examples and compares their outputs.
struct GoldenCheck<'a> {
    pool: &'a Pool,
    signature: &'a Signature,
    tolerances: &'a Tolerances,
    stop: StopSignal,
}

impl GoldenCheck<'_> {
    fn run_example(&self, index: usize, example: &GoldenExample) -> Result<(), ProofError> {
        let inputs = record::decode(self.signature, &[&example.inputs])
            .map_err(|error| ProofError::Inputs { index, reason: error.to_string() })?;
        let outputs = self.run(&inputs).map_err(|fault| ProofError::Fault { index, fault })?;
        let records = record::encode(self.signature, &outputs).map_err(|error| {
            ProofError::Fault { index, fault: Fault::BadOutput(error.to_string()) }
        })?;
        let record = records.first().expect("outputs have as many rows as inputs, which is one");
        match record::compare_golden(&example.outputs, record, self.tolerances) {
            None => Ok(()),
            Some(difference) => {
                Err(ProofError::Differs { index, difference: Box::new(difference) })
            }
        }
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Fault> {
        let mut leased = self.pool.acquire(&self.stop)?;
        let outcome = leased.predict(inputs, &self.stop);
        let is_usable = outcome.as_ref().err().is_none_or(Fault::leaves_instance_usable);
        self.pool.release(leased, is_usable);
        outcome
    }
}
