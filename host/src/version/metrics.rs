//! What is measured of one version. It lives in the version, so that what is unloaded leaves no series
//! behind.

use super::BreakerRefusal;
use crate::measure::{Counter, DurationHistogram, MetricFamily, SizeHistogram};

/// Since the version was loaded.
#[derive(Debug, Default)]
pub struct VersionMetrics {
    /// Requests that were answered, by the endpoint's pattern, then by the version's role and the status.
    pub requests: MetricFamily<String, MetricFamily<(&'static str, u16), Counter>>,
    /// From the head of a request to its answer, by the version's role.
    pub total: MetricFamily<&'static str, DurationHistogram>,
    /// Of the rows of one request, from their submission to the thread that took them.
    pub queue: DurationHistogram,
    /// To get an instance for a batch.
    pub instantiate: DurationHistogram,
    /// The guest's own time for a batch.
    pub predict: DurationHistogram,
    /// Rows of a batch, as the guest was called with them.
    pub batch_rows: SizeHistogram,
    /// To write the answer.
    pub encode: DurationHistogram,
    /// Batches that were given no thread, by reason; what is refused before that, `Admission` counts.
    pub rejections: MetricFamily<&'static str, Counter>,
}

impl VersionMetrics {
    /// A request was refused because the version is suspended, at least for its caller.
    pub fn count_refusal(&self, refusal: BreakerRefusal) {
        let reason = match refusal {
            BreakerRefusal::Version(_) => "suspended",
            BreakerRefusal::Caller(_) => "caller_suspended",
        };
        self.rejections.with(&reason, Counter::count);
    }
}
