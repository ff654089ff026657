//! An immutable servable: one version with its signature and its instances. Whoever holds it keeps
//! it alive, so draining is a matter of ownership.

pub mod admission;
mod breaker;
mod budget;
mod caller;
mod faults;
mod measured;
mod quarantine;
pub mod statistics;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use admission::Admission;
pub use breaker::{Breaker, Refusal, Suspended};
pub use budget::{Budget, DoesNotFit, Reservation};
pub use caller::CallerId;
pub use faults::Faults;
pub use measured::Measured;
pub use quarantine::{Fingerprint, Quarantine};
pub use statistics::Statistics;

use crate::guest::{Fault, InstanceLimits, LoadedComponent, Stop};
use crate::pool::{Isolation, Pool};
use crate::preinit::PreinitReport;
use guesthouse_artifact::{Artifact, Digest, GoldenExample, Metadata, Tolerances};
use guesthouse_model::record;
use guesthouse_model::{Signature, Tensor, VersionId};

/// The time all golden examples of a version may take together. They run before anyone waits for
/// an answer.
const GOLDEN_TIME: Duration = Duration::from_secs(60);

/// What versions of one model may use.
#[derive(Debug, Clone, Copy)]
pub struct ModelLimits {
    /// Of each instance.
    pub instance: InstanceLimits,
    /// How strictly requests are kept apart.
    pub isolation: Isolation,
    /// Batches of one version that may run at once; as many instances are kept idle.
    pub concurrency: usize,
    /// Batches that may wait for a thread.
    pub queued: usize,
    /// How long a request may wait and run, if it does not say itself.
    pub predict_time: Duration,
    /// How rows of several requests are run together.
    pub batching: Batching,
}

/// How rows of several requests are put together for one call of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Whether they are at all. By default, yes: a call of a guest costs the same for many rows, and
    /// nobody waits for it.
    pub is_enabled: bool,
    /// The most rows of one call, if that is less than the signature says.
    pub max_batch_size: u32,
    /// How long a request may be held back so that others can join it. None by default: whoever finds
    /// a thread free is answered soonest by taking it, and what comes meanwhile is a batch by itself.
    pub max_queue_delay: Duration,
}

impl Default for Batching {
    fn default() -> Self {
        Self { is_enabled: true, max_batch_size: u32::MAX, max_queue_delay: Duration::ZERO }
    }
}

/// A version that can serve.
pub struct ServableVersion {
    key: u64,
    id: VersionId,
    digest: Digest,
    metadata: Metadata,
    report: PreinitReport,
    limits: ModelLimits,
    tolerances: Tolerances,
    pool: Pool,
    shadow_pool: Pool,
    admission: Admission,
    breaker: Breaker,
    quarantine: Quarantine,
    faults: Faults,
    measured: Arc<Measured>,
    statistics: Arc<Statistics>,
    /// Given back when the last request of this version is over.
    _reservation: Reservation,
}

/// A version does not do what its artifact promises.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// An instance of it cannot be made.
    #[error("an instance cannot be made: {0}")]
    Instance(#[source] Fault),
    /// A golden example cannot be given to the guest.
    #[error("golden example {index} does not fit the signature: {reason}")]
    Inputs {
        /// From 1.
        index: usize,
        /// Why not.
        reason: String,
    },
    /// The guest gave no answer to a golden example.
    #[error("golden example {index}: {fault}")]
    Fault {
        /// From 1.
        index: usize,
        /// Why not.
        #[source]
        fault: Fault,
    },
    /// The guest gave another answer than the golden one.
    #[error("golden example {index}: {difference}")]
    Differs {
        /// From 1.
        index: usize,
        /// What differs.
        difference: Box<record::Difference>,
    },
}

fn is_batched(limits: &ModelLimits) -> bool {
    limits.batching.is_enabled && limits.isolation != Isolation::Fresh
}

/// How many requests of one row can share a call.
fn most_together(limits: &ModelLimits, of_signature: u32) -> usize {
    let most = of_signature.min(limits.batching.max_batch_size) as usize;
    if is_batched(limits) { most } else { 1 }
}

impl ServableVersion {
    /// A version that has met all of its golden examples, with warm instances.
    ///
    /// # Errors
    /// [`ProofError`] with the first example that was not met.
    pub fn prove(
        artifact: &Artifact,
        report: &PreinitReport,
        component: LoadedComponent,
        limits: ModelLimits,
        reservation: Reservation,
    ) -> Result<Self, ProofError> {
        static NEXT_KEY: AtomicU64 = AtomicU64::new(0);
        let shadow_pool = Pool::new(component.clone(), limits.isolation, 0);
        let pool = Pool::new(component, limits.isolation, limits.concurrency);
        pool.make_first().map_err(ProofError::Instance)?;
        let proof = Proof {
            pool: &pool,
            signature: &report.signature,
            tolerances: &artifact.descriptor().tolerances,
            stop: Stop::at(Instant::now() + GOLDEN_TIME),
        };
        for (index, example) in artifact.golden().iter().enumerate() {
            proof.example(index + 1, example)?;
        }
        // One can be made. Those that cannot, because the engine is full now, are made when they are
        // needed.
        let _ = pool.fill();
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        let (id, digest) = (artifact.id().clone(), artifact.digest());
        let (metadata, report) = (artifact.metadata().clone(), report.clone());
        let tolerances = artifact.descriptor().tolerances.clone();
        let together = most_together(&limits, report.signature.max_batch_size);
        let admission =
            Admission::new(limits.concurrency, limits.queued, limits.predict_time, together);
        let (breaker, faults) = (Breaker::default(), Faults::default());
        Ok(Self {
            key,
            id,
            digest,
            metadata,
            report,
            limits,
            tolerances,
            pool,
            shadow_pool,
            admission,
            breaker,
            quarantine: Quarantine::default(),
            faults,
            measured: Arc::default(),
            statistics: Arc::default(),
            _reservation: reservation,
        })
    }

    /// Run the golden examples of another version; in which it differs from them, a line each.
    pub fn replay(&self, examples: &[GoldenExample], tolerances: &Tolerances) -> Vec<String> {
        let stop = Stop::at(Instant::now() + GOLDEN_TIME);
        let signature = &self.report.signature;
        let proof = Proof { pool: &self.pool, signature, tolerances, stop };
        let run = |(index, example)| proof.example(index + 1, example).err();
        examples.iter().enumerate().filter_map(run).map(|error| error.to_string()).collect()
    }

    /// Tells this loaded version from every other one of the process.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// The model and the version.
    pub fn id(&self) -> &VersionId {
        &self.id
    }

    /// The artifact that it is.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Description, licence and the like.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What it takes and gives.
    pub fn signature(&self) -> &Signature {
        &self.report.signature
    }

    /// The most rows of one call of its guest.
    pub fn max_batch_size(&self) -> usize {
        self.signature().max_batch_size.min(self.limits.batching.max_batch_size) as usize
    }

    /// Whether rows of several requests may meet in one call of its guest. Not where the operator
    /// wants requests to be kept apart.
    pub fn is_batched(&self) -> bool {
        is_batched(&self.limits)
    }

    /// What pre-initialising found out.
    pub fn report(&self) -> &PreinitReport {
        &self.report
    }

    /// What it may use.
    pub fn limits(&self) -> &ModelLimits {
        &self.limits
    }

    /// How close its outputs must come to others to count as the same, by output; 0 for those that
    /// are not named.
    pub fn tolerances(&self) -> &Tolerances {
        &self.tolerances
    }

    /// Its instances.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Instances for batches that no client waits for, made when there is one, so that those never
    /// take an instance, or the lock of the pool, from a batch that a client does wait for. Whoever
    /// runs such batches clears it in the end.
    pub fn shadow_pool(&self) -> &Pool {
        &self.shadow_pool
    }

    /// How many requests it takes at once.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Whose requests it accepts.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Inputs on which it keeps breaking down.
    pub fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// What is measured of it.
    pub fn measured(&self) -> &Arc<Measured> {
        &self.measured
    }

    /// What it has done so far, as protocols tell it.
    pub fn statistics(&self) -> &Arc<Statistics> {
        &self.statistics
    }

    /// What went wrong so far.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

/// What every golden example is held against.
struct Proof<'a> {
    pool: &'a Pool,
    signature: &'a Signature,
    tolerances: &'a Tolerances,
    stop: Stop,
}

impl Proof<'_> {
    fn example(&self, index: usize, example: &GoldenExample) -> Result<(), ProofError> {
        let inputs = record::decode(self.signature, &[&example.inputs])
            .map_err(|error| ProofError::Inputs { index, reason: error.to_string() })?;
        let outputs = self.run(&inputs).map_err(|fault| ProofError::Fault { index, fault })?;
        let records = record::encode(self.signature, &outputs).map_err(|error| {
            ProofError::Fault { index, fault: Fault::BadOutput(error.to_string()) }
        })?;
        let record = records.first().expect("outputs have as many rows as inputs, which is one");
        match record::difference(&example.outputs, record, self.tolerances) {
            None => Ok(()),
            Some(difference) => {
                Err(ProofError::Differs { index, difference: Box::new(difference) })
            }
        }
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Fault> {
        let mut leased = self.pool.take(&self.stop)?;
        let outcome = leased.predict(inputs, &self.stop);
        let good = outcome.as_ref().err().is_none_or(Fault::spares_instance);
        self.pool.give_back(leased, good);
        outcome
    }
}
