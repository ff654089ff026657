//! An immutable servable: one version with its signature and its instances. Whoever holds it keeps
//! it alive, so draining is a matter of ownership.

use std::time::{Duration, Instant};

use crate::artifact::{Artifact, Digest, GoldenExample, Metadata, Tolerances};
use crate::guest::{Fault, LoadedComponent};
use crate::model::{Signature, Tensor, VersionId};
use crate::pool::Pool;
use crate::record;

/// The time one golden example may take: they run before anyone waits for an answer.
const GOLDEN_DEADLINE: Duration = Duration::from_secs(30);

/// A version that can serve.
pub struct ServableVersion {
    id: VersionId,
    digest: Digest,
    metadata: Metadata,
    signature: Signature,
    pool: Pool,
}

/// A version does not do what its artifact promises.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
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

impl ServableVersion {
    /// A version that has met all of its golden examples, with warm instances.
    ///
    /// # Errors
    /// [`ProofError`] with the first example that was not met.
    pub fn prove(
        artifact: &Artifact,
        signature: Signature,
        component: LoadedComponent,
        warm_instances: usize,
    ) -> Result<Self, ProofError> {
        let pool = Pool::new(component, warm_instances);
        let examples = artifact.golden();
        let tolerances = &artifact.descriptor().tolerances;
        for (index, example) in examples.iter().enumerate() {
            prove_example(&pool, &signature, index + 1, example, tolerances)?;
        }
        if let Some(example) = examples.first() {
            let inputs = golden_inputs(&signature, 1, example)?;
            for _ in 1..warm_instances {
                let deadline = Instant::now() + GOLDEN_DEADLINE;
                let fault = |fault| ProofError::Fault { index: 1, fault };
                pool.warm(&inputs, deadline).map_err(fault)?;
            }
        }
        let (id, digest) = (artifact.id().clone(), artifact.digest());
        Ok(Self { id, digest, metadata: artifact.metadata().clone(), signature, pool })
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
        &self.signature
    }

    /// Outputs for a batch that has been validated against the signature, of at most its maximum
    /// batch size. Blocks until they are there: for inference threads.
    ///
    /// # Errors
    /// [`Fault`], which costs this batch and nothing else.
    pub fn predict(&self, inputs: &[Tensor], deadline: Instant) -> Result<Vec<Tensor>, Fault> {
        self.pool.predict(inputs, deadline)
    }
}

fn golden_inputs(
    signature: &Signature,
    index: usize,
    example: &GoldenExample,
) -> Result<Vec<Tensor>, ProofError> {
    record::decode(signature, &[&example.inputs])
        .map_err(|error| ProofError::Inputs { index, reason: error.to_string() })
}

fn prove_example(
    pool: &Pool,
    signature: &Signature,
    index: usize,
    example: &GoldenExample,
    tolerances: &Tolerances,
) -> Result<(), ProofError> {
    let inputs = golden_inputs(signature, index, example)?;
    let deadline = Instant::now() + GOLDEN_DEADLINE;
    let outputs = pool.predict(&inputs, deadline);
    let outputs = outputs.map_err(|fault| ProofError::Fault { index, fault })?;
    let rows = record::encode(signature, &outputs);
    let row = rows.first().expect("an instance's outputs have as many rows as its inputs");
    match record::difference(&example.outputs, row, tolerances) {
        None => Ok(()),
        Some(difference) => Err(ProofError::Differs { index, difference: Box::new(difference) }),
    }
}
