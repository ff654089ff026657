//! The metrics of one version. They live in the version, so its series end when it is unloaded.

use super::BreakerRefusal;
use crate::measure::{Counter, DurationHistogram, MetricFamily, SizeHistogram};

/// The metrics since the version was loaded.
#[derive(Debug, Default)]
pub struct VersionMetrics {
    /// Responses by the endpoint's pattern, and then by the version's role and the status.
    pub requests: MetricFamily<String, MetricFamily<(&'static str, u16), Counter>>,
    /// The time from the request head to the response, by the version's role.
    pub total: MetricFamily<&'static str, DurationHistogram>,
    /// The time from the submission of a request to its start on a thread.
    pub queue: DurationHistogram,
    /// The time to acquire an instance for a batch.
    pub instantiate: DurationHistogram,
    /// The time of a batch in the guest.
    pub predict: DurationHistogram,
    /// The rows of each batch.
    pub batch_rows: SizeHistogram,
    /// The time to encode a response.
    pub encode: DurationHistogram,
    /// Jobs that were rejected, by reason; earlier rejections are counted by `AdmissionControl`.
    pub rejections: MetricFamily<&'static str, Counter>,
}

impl VersionMetrics {
    /// Count a request that was refused because the version is suspended for its caller or for all.
    pub fn count_refusal(&self, refusal: BreakerRefusal) {
        let reason = match refusal {
            BreakerRefusal::Version(_) => "suspended",
            BreakerRefusal::Caller(_) => "caller_suspended",
        };
        self.rejections.with(&reason, Counter::count);
    }
}
