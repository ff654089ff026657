//! What a caller submits to be compared.

use std::sync::Arc;

use guesthouse_model::Tensor;
use guesthouse_runtime::version::{CallerId, ServableVersion};

/// A request that was answered, and the candidate to compare the answer with.
pub struct Comparison {
    /// The version to run.
    pub candidate: Arc<ServableVersion>,
    /// The version that answered.
    pub primary: Arc<ServableVersion>,
    /// The caller of the request.
    pub caller: CallerId,
    /// The batches of the request, in order.
    pub batches: Vec<ComparedBatch>,
    /// The id of the request in the access log.
    pub request_id: String,
    /// Whether the gravest disagreements may be kept with their records.
    pub capture: bool,
}

/// One batch: inputs that were validated against the signature of the primary, and its outputs.
pub struct ComparedBatch {
    /// In the order of the signature.
    pub inputs: Arc<Vec<Tensor>>,
    /// In the order of the signature.
    pub outputs: Vec<Tensor>,
}

impl ComparedBatch {
    pub(super) fn rows(&self) -> usize {
        let rows = self.inputs.first().map_or(0, Tensor::rows);
        usize::try_from(rows).expect("a checked tensor is counted in usize")
    }
}

impl Comparison {
    pub(super) fn bytes(&self) -> usize {
        let tensors =
            self.batches.iter().flat_map(|batch| batch.inputs.iter().chain(&batch.outputs));
        tensors.map(|tensor| size_of::<Tensor>() + tensor.data.len()).fold(0, usize::saturating_add)
    }
}
