//! Validated inputs on their way through one version, and back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::Policy;
use super::error::{ApiError, ErrorCode};
use super::passage::{Entered, Passage};
use guesthouse_control::router::Route;
use guesthouse_control::shadow::{ComparedBatch, Comparison};
use guesthouse_model::Tensor;
use guesthouse_model::record;
use guesthouse_runtime::inference::{Inference, Urgency, Work};
use guesthouse_runtime::stages::{Stage, StageTimer};
use guesthouse_runtime::version::CallerId;

/// Validated inputs on their way through one version.
pub(super) struct Call<'a> {
    inference: &'a Inference,
    pub(super) route: &'a Route,
    caller: CallerId,
    deadline: Instant,
    timer: StageTimer,
    /// How urgent it is.
    pub(super) urgency: Urgency,
    /// What has been run, if another version is to be asked as well.
    batches: Vec<ComparedBatch>,
    /// How long outputs have taken to become what the caller is sent.
    encoding: Duration,
}

/// What is left to do of a call when it is over.
pub(super) struct Called {
    timer: StageTimer,
    caller: CallerId,
    batches: Vec<ComparedBatch>,
    encoding: Duration,
}

impl<'a> Call<'a> {
    pub(super) fn new(passage: &Passage<'a>, entered: &'a Entered, timer: StageTimer) -> Self {
        let (batches, encoding) = (Vec::new(), Duration::ZERO);
        let (inference, route, deadline) =
            (&passage.edge.inference, &entered.route, entered.deadline);
        let (caller, urgency) = (passage.caller_id(), Urgency::default());
        Self { inference, route, caller, deadline, timer, urgency, batches, encoding }
    }

    /// Records for the rows. They are run in batches of at most the version's own size, one after the
    /// other, so that one large request does not take every inference thread.
    pub(super) async fn run(
        &mut self,
        inputs: Vec<Tensor>,
        rows: usize,
    ) -> Result<Vec<Map<String, Value>>, ApiError> {
        let mut records = Vec::with_capacity(rows);
        for (start, batch) in self.split(inputs, rows) {
            let batch = self.run_batch(batch).await;
            records.extend(batch.map_err(|error| error.shift_rows(start))?);
        }
        Ok(records)
    }

    pub(super) async fn run_batch(
        &mut self,
        inputs: Arc<Vec<Tensor>>,
    ) -> Result<Vec<Map<String, Value>>, ApiError> {
        let again = self.route.shadow.as_ref().map(|_| Arc::clone(&inputs));
        let outputs = self.outputs(inputs).await?;
        let begin = Instant::now();
        let records = record::encode(self.route.version.signature(), &outputs)?;
        self.encoding += begin.elapsed();
        if let Some(inputs) = again {
            self.batches.push(ComparedBatch { inputs, outputs });
        }
        Ok(records)
    }

    /// The outputs of the rows as they are, one tensor for each of the signature, in its order.
    pub(super) async fn run_tensors(
        &mut self,
        inputs: Vec<Tensor>,
        rows: usize,
    ) -> Result<Vec<Tensor>, ApiError> {
        let mut all: Option<Vec<Tensor>> = None;
        for (start, batch) in self.split(inputs, rows) {
            let again = self.route.shadow.as_ref().map(|_| Arc::clone(&batch));
            let outputs = self.outputs(batch).await.map_err(|error| error.shift_rows(start))?;
            if let Some(inputs) = again {
                self.batches.push(ComparedBatch { inputs, outputs: outputs.clone() });
            }
            match &mut all {
                None => all = Some(outputs),
                Some(all) => {
                    for (whole, part) in all.iter_mut().zip(&outputs) {
                        if !whole.append(part) {
                            return Err(ragged(&whole.name));
                        }
                    }
                }
            }
        }
        all.ok_or_else(|| ApiError::malformed("there are no rows"))
    }

    /// The batches of so many rows, and where each begins.
    fn split(
        &self,
        inputs: Vec<Tensor>,
        rows: usize,
    ) -> impl Iterator<Item = (usize, Arc<Vec<Tensor>>)> + use<> {
        let most = self.route.version.max_batch_size();
        // One that fits is not copied.
        let (whole, parts) =
            if rows <= most { (Some(Arc::new(inputs)), Vec::new()) } else { (None, inputs) };
        let split = (0..rows).step_by(most).filter(move |_| rows > most).map(move |start| {
            let count = most.min(rows - start);
            let batch = parts.iter().map(|input| input.slice_rows(start, count)).collect();
            (start, Arc::new(batch))
        });
        whole.into_iter().map(|batch| (0, batch)).chain(split)
    }

    async fn outputs(&self, inputs: Arc<Vec<Tensor>>) -> Result<Vec<Tensor>, ApiError> {
        let (version, timer) = (Arc::clone(&self.route.version), self.timer.clone());
        let (deadline, urgency) = (self.deadline, self.urgency);
        let work = Work { version, caller: self.caller, inputs, deadline, timer, urgency };
        Ok(self.inference.predict(work).await?)
    }

    /// What is left to do, once the outputs are there.
    pub(super) fn over(self) -> Called {
        let Self { timer, caller, batches, encoding, .. } = self;
        Called { timer, caller, batches, encoding }
    }
}

/// Rows that share a tensor have the same shape; those of a large request run apart from each other.
fn ragged(output: &str) -> ApiError {
    let message =
        format!("output `{output}` has another shape for some of the rows: send fewer at once");
    ApiError::new(ErrorCode::UnacceptableInput, message)
}

impl Called {
    /// What is to be compared, once the answer is on its way.
    pub(super) fn comparison(
        &mut self,
        route: &Route,
        policy: &Policy,
        request_id: &str,
    ) -> Option<Comparison> {
        let candidate = Arc::clone(route.shadow.as_ref()?);
        let primary = Arc::clone(&route.version);
        let capture = policy.captured.contains(&primary.id().name);
        let (batches, request_id) = (std::mem::take(&mut self.batches), request_id.to_owned());
        let caller = self.caller;
        Some(Comparison { candidate, primary, caller, batches, request_id, capture })
    }

    /// The response is encoded: record the time for that and for converting the records.
    pub(super) fn encoded(&self, route: &Route, begin: Instant) {
        let (since, now) = (begin.checked_sub(self.encoding).unwrap_or(begin), Instant::now());
        self.timer.record(Stage::Encode, since, now, &route.version.measured().encode);
        route.version.statistics().outputs_converted(now.saturating_duration_since(since));
    }
}
