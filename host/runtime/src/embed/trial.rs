//! An artifact that is tried out: calls of a guest that has not proved itself, one at a time, without
//! the queue and the breaker of a version that serves.

use std::time::{Duration, Instant};

use guesthouse_model::record::{self, RecordError, TooManyValues};
use guesthouse_model::{Signature, Tensor};
use serde_json::{Map, Value};

use super::OpenError;
use crate::guest::{Fault, LoadedComponent, StopSignal};
use crate::pool::{Isolation, Pool};
use crate::preinit::{InstanceStart, PreinitReport};
use crate::profile::Profile;
use crate::version::GOLDEN_TIME;

/// Why an artifact cannot be tried out.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The artifact cannot be compiled or loaded.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is nothing to predict for.
    #[error("the artifact has no golden example to predict for")]
    NoExample,
    /// A call takes fewer or more rows.
    #[error("a call takes from 1 to {most} rows, not {rows}")]
    Rows {
        /// The rows that were asked for.
        rows: usize,
        /// The most rows of a call.
        most: usize,
    },
    /// The example does not match the signature.
    #[error(transparent)]
    Example(#[from] RecordError),
    /// A call failed.
    #[error("the call failed: {0}")]
    Call(Fault),
    /// The outputs are too large for JSON.
    #[error(transparent)]
    TooManyValues(#[from] TooManyValues),
}

impl From<Fault> for TrialError {
    fn from(fault: Fault) -> Self {
        Self::Call(fault)
    }
}

/// A version that has not proved itself.
pub struct Trial {
    component: LoadedComponent,
    pool: Pool,
    report: PreinitReport,
}

/// What a call returned and took.
#[derive(Debug)]
pub struct TrialCall {
    /// The outputs of each row.
    pub outputs: Vec<Map<String, Value>>,
    /// The time from acquiring an instance to its outputs.
    pub time: Duration,
    /// The linear memory of the instance after the call, in bytes.
    pub memory_bytes: usize,
}

impl Trial {
    pub(super) fn new(
        component: LoadedComponent,
        report: PreinitReport,
        isolation: Isolation,
    ) -> Self {
        Self { pool: Pool::new(component.clone(), isolation, 1), component, report }
    }

    /// The inputs and outputs.
    pub fn signature(&self) -> &Signature {
        &self.report.signature
    }

    /// Whether instances start from a snapshot, or run `init` first.
    pub fn starts_from_snapshot(&self) -> bool {
        matches!(self.report.start, InstanceStart::Snapshot)
    }

    /// Predict for rows in one call.
    ///
    /// # Errors
    /// [`TrialError`]; the next call gets another instance if it has to.
    pub fn predict(&self, rows: &[Map<String, Value>]) -> Result<TrialCall, TrialError> {
        let inputs = self.decode(rows)?;
        let stop = StopSignal::at_deadline(Instant::now() + GOLDEN_TIME);
        let start = Instant::now();
        let mut leased = self.pool.acquire(&stop)?;
        let outcome = leased.predict(&inputs, &stop);
        let (time, memory_bytes) = (start.elapsed(), leased.memory_bytes());
        let is_usable = outcome.as_ref().err().is_none_or(Fault::leaves_instance_usable);
        self.pool.release(leased, is_usable);
        let outputs = record::encode(self.signature(), &outcome?)?;
        Ok(TrialCall { outputs, time, memory_bytes })
    }

    /// Measure where the time of calls with these rows goes.
    pub(super) fn profile(
        &self,
        rows: &[Map<String, Value>],
        time: Duration,
    ) -> Result<Profile, TrialError> {
        Ok(Profile::measure(&self.component, &self.decode(rows)?, time)?)
    }

    fn decode(&self, rows: &[Map<String, Value>]) -> Result<Vec<Tensor>, TrialError> {
        Ok(record::decode(self.signature(), rows)?)
    }
}
