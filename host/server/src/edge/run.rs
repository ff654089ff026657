//! Inputs on their way through one version, in calls of at most as many rows as the version takes.
//!
//! Calls run one after the other, so that one large request does not take every inference thread. Where the
//! caller accepts that some rows fail (`?partial=true`), a row that the guest rejects costs the others
//! nothing: they run again without it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::codec::{Inputs, Outputs, PartialRows};
use super::error::{ApiError, Detail, ErrorCode};
use super::policy::Policy;
use guesthouse_control::router::Route;
use guesthouse_control::shadow::{ComparedBatch, Comparison};
use guesthouse_model::Tensor;
use guesthouse_runtime::inference::{InferenceThreads, PredictJob, QueueOptions};
use guesthouse_runtime::stages::{Stage, StageTimer};
use guesthouse_runtime::version::CallerId;

/// How often the rest of a batch runs again. Guests report all rows that they reject at once, so once is
/// enough for any that means well.
const MAX_ATTEMPTS: usize = 4;

/// Runs the inputs of one request.
pub(super) struct Runner<'a> {
    pub(super) inference: &'a InferenceThreads,
    pub(super) route: &'a Route,
    pub(super) caller: CallerId,
    pub(super) deadline: Instant,
    pub(super) timer: StageTimer,
    pub(super) queue_options: QueueOptions,
    /// The calls that a shadow is to run as well.
    pub(super) compared: Vec<ComparedBatch>,
}

impl Runner<'_> {
    /// The outputs of all rows, or of those that did not fail where that is accepted.
    pub(super) async fn run(&mut self, inputs: Inputs) -> Result<Outputs, ApiError> {
        let Inputs { tensors, rows, partial, queue_options: _ } = inputs;
        match partial {
            None => self.run_whole(tensors, rows).await,
            Some(partial) => self.run_partial(tensors, partial).await,
        }
    }

    async fn run_whole(&mut self, inputs: Vec<Tensor>, rows: usize) -> Result<Outputs, ApiError> {
        let most = self.route.version.max_batch_size();
        if rows <= most {
            // Nothing is copied.
            let calls = vec![self.call(Arc::new(inputs)).await?];
            return Ok(Outputs { calls, partial: None });
        }
        let mut calls = Vec::with_capacity(rows.div_ceil(most));
        for start in (0..rows).step_by(most) {
            let outputs = self.call(slice(&inputs, start, most.min(rows - start))).await;
            calls.push(outputs.map_err(|error| error.shift_rows(start))?);
        }
        Ok(Outputs { calls, partial: None })
    }

    async fn run_partial(
        &mut self,
        inputs: Vec<Tensor>,
        rows: PartialRows,
    ) -> Result<Outputs, ApiError> {
        let most = self.route.version.max_batch_size();
        let PartialRows { places, mut failed } = rows;
        let (mut calls, mut answered) = (Vec::new(), Vec::with_capacity(places.len()));
        for (start, places) in (0..).step_by(most).zip(places.chunks(most)) {
            let batch = slice(&inputs, start, places.len());
            if let Some((outputs, left)) = self.run_rest(batch, places, &mut failed).await? {
                calls.push(outputs);
                answered.extend(left);
            }
        }
        if answered.is_empty() {
            return Err(ApiError::all_rows_failed(&failed));
        }
        Ok(Outputs { calls, partial: Some(PartialRows { places: answered, failed }) })
    }

    /// The outputs of the rows at these places that the guest does not reject, and which those are.
    async fn run_rest(
        &mut self,
        mut inputs: Arc<Vec<Tensor>>,
        places: &[usize],
        failed: &mut BTreeMap<usize, ApiError>,
    ) -> Result<Option<(Vec<Tensor>, Vec<usize>)>, ApiError> {
        let mut places = places.to_vec();
        for _ in 0..MAX_ATTEMPTS {
            let error = match self.call(Arc::clone(&inputs)).await {
                Ok(outputs) => return Ok(Some((outputs, places))),
                Err(error) => error,
            };
            // The one error of a call that is about rows.
            if error.code != ErrorCode::UnacceptableInput || error.details.is_empty() {
                return Err(error);
            }
            let mut rejected: BTreeMap<usize, Vec<Detail>> = BTreeMap::new();
            for detail in error.details {
                rejected.entry(detail.row).or_default().push(detail);
            }
            let left: Vec<usize> =
                (0..places.len()).filter(|row| !rejected.contains_key(row)).collect();
            for (row, mut details) in rejected {
                let Some(place) = places.get(row).copied() else { continue };
                details.iter_mut().for_each(|detail| detail.row = place);
                let error = ApiError::with_details(ErrorCode::UnacceptableInput, details);
                failed.insert(place, error);
            }
            if left.is_empty() {
                return Ok(None);
            }
            inputs = Arc::new(inputs.iter().map(|input| input.select_rows(&left)).collect());
            places = left.into_iter().map(|row| places[row]).collect();
        }
        let message = "the model rejects different rows each time it runs";
        let error = ApiError::new(ErrorCode::ModelFailure, message);
        failed.extend(places.into_iter().map(|place| (place, error.clone())));
        Ok(None)
    }

    /// One call of the guest.
    async fn call(&mut self, inputs: Arc<Vec<Tensor>>) -> Result<Vec<Tensor>, ApiError> {
        let compared = self.route.shadow.as_ref().map(|_| Arc::clone(&inputs));
        let (version, timer) = (Arc::clone(&self.route.version), self.timer.clone());
        let (caller, deadline, queue_options) = (self.caller, self.deadline, self.queue_options);
        let job = PredictJob { version, caller, inputs, deadline, timer, queue_options };
        let outputs = self.inference.predict(job).await?;
        if let Some(inputs) = compared {
            self.compared.push(ComparedBatch { inputs, outputs: outputs.clone() });
        }
        Ok(outputs)
    }

    /// Record how long the answer took to encode, which began at `begin`.
    pub(super) fn encoded(&self, begin: Instant) {
        let (version, now) = (&self.route.version, Instant::now());
        self.timer.record(Stage::Encode, begin, now, &version.metrics().encode);
        version.statistics().record_output_conversion(now.saturating_duration_since(begin));
    }

    /// What the route's shadow is to be compared with, if it has one.
    pub(super) fn comparison(self, policy: &Policy, request_id: &str) -> Option<Comparison> {
        let candidate = Arc::clone(self.route.shadow.as_ref()?);
        let primary = Arc::clone(&self.route.version);
        let capture = policy.captured.contains(&primary.id().name);
        let (batches, request_id) = (self.compared, request_id.to_owned());
        Some(Comparison { candidate, primary, caller: self.caller, batches, request_id, capture })
    }
}

fn slice(inputs: &[Tensor], start: usize, count: usize) -> Arc<Vec<Tensor>> {
    Arc::new(inputs.iter().map(|input| input.slice_rows(start, count)).collect())
}
