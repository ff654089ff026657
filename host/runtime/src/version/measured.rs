//! What is measured of one version. It lives in the version, so that what is unloaded leaves no series
//! behind.

use super::Refusal;
use crate::measure::{Counter, Histogram, Series, Sizes};

/// Since the version was loaded.
#[derive(Debug, Default)]
pub struct Measured {
    /// Requests that were answered, by the endpoint's pattern, then by the version's role and the status.
    pub requests: Series<String, Series<(&'static str, u16), Counter>>,
    /// From the head of a request to its answer, by the version's role.
    pub total: Series<&'static str, Histogram>,
    /// Of the rows of one request, from their submission to the thread that took them.
    pub queue: Histogram,
    /// To get an instance for a batch.
    pub instantiate: Histogram,
    /// The guest's own time for a batch.
    pub predict: Histogram,
    /// Rows of a batch, as the guest was called with them.
    pub batch_rows: Sizes,
    /// To write the answer.
    pub encode: Histogram,
    /// Batches that were given no thread, by reason; what is refused before that, `Admission` counts.
    pub rejections: Series<&'static str, Counter>,
}

impl Measured {
    /// A request was refused because the version is suspended, at least for its caller.
    pub fn count_refusal(&self, refusal: Refusal) {
        let reason = match refusal {
            Refusal::Version(_) => "suspended",
            Refusal::Caller(_) => "caller_suspended",
        };
        self.rejections.with(&reason, Counter::count);
    }
}
