//! The stages of a prediction, and the timer that measures them.
//!
//! The runtime knows when a stage begins and ends; what becomes of that besides the version's
//! histograms is the embedder's business. The server makes spans of it for requests that are traced.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use crate::measure::DurationHistogram;

/// A part of the work for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The request waits for an inference thread.
    Queue,
    /// The request gets an instance of the guest.
    Instantiate,
    /// The guest runs.
    Guest,
    /// The response is encoded.
    Encode,
}

impl Stage {
    /// The name of the stage in traces.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Instantiate => "instantiate",
            Self::Guest => "guest",
            Self::Encode => "encode",
        }
    }
}

/// Receives the stages of one request as they end.
pub trait RecordStage: Debug + Send + Sync {
    /// The stage lasted from `since` to `until`.
    fn record(&self, stage: Stage, since: Instant, until: Instant);
}

/// Measures the stages of one request.
#[derive(Debug, Clone)]
pub struct StageTimer {
    /// The span that log events of the request belong to.
    pub span: tracing::Span,
    /// Receives each stage, if the request is traced.
    pub recorder: Option<Arc<dyn RecordStage>>,
}

impl StageTimer {
    /// A timer for calls that belong to no request of a client.
    pub fn untraced() -> Self {
        Self { span: tracing::Span::none(), recorder: None }
    }

    /// Record a stage that this request went through alone, also in the version's histogram.
    pub fn record(&self, stage: Stage, since: Instant, until: Instant, times: &DurationHistogram) {
        times.record(until.saturating_duration_since(since));
        self.record_shared(stage, since, until);
    }

    /// Record a stage that was measured once for all requests of a batch.
    pub fn record_shared(&self, stage: Stage, since: Instant, until: Instant) {
        if let Some(recorder) = &self.recorder {
            recorder.record(stage, since, until);
        }
    }
}
