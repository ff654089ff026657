//! What a version has done since it was loaded, as the Open Inference Protocol's statistics count it:
//! requests, rows and calls of the guest, with the time that each step took in all.
//!
//! The edge says what becomes of requests and how long it converts; the inference threads say how long
//! requests wait and what they run. Writing is a few additions without a lock of one's own: sizes of
//! batches that have been seen before share theirs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How many sizes of batches are told apart: all that a request may have by default. Those that come
/// later are counted in the sums alone.
const MAX_SIZES: usize = 1024;

/// How often something was done, and how long it took in all.
#[derive(Debug, Default)]
struct Times {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

/// How often something was done, and how long it took in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimesTaken {
    /// How often.
    pub count: u64,
    /// How long, in nanoseconds.
    pub nanoseconds: u64,
}

impl Times {
    fn add(&self, time: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn taken(&self) -> TimesTaken {
        let count = self.count.load(Ordering::Relaxed);
        TimesTaken { count, nanoseconds: self.nanoseconds.load(Ordering::Relaxed) }
    }
}

/// Since the version was loaded.
#[derive(Debug, Default)]
pub struct Statistics {
    success: Times,
    fail: Times,
    queue: Times,
    input: Times,
    infer: Times,
    output: Times,
    last_inference_ms: AtomicU64,
    inferences: AtomicU64,
    executions: AtomicU64,
    sizes: RwLock<BTreeMap<u64, SizeTimes>>,
}

/// Of the batches of one size.
#[derive(Debug, Default)]
struct SizeTimes {
    input: Times,
    infer: Times,
    output: Times,
}

/// What a call of the guest took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Execution {
    /// Rows that it was called with.
    pub rows: u64,
    /// To put the rows of several requests together.
    pub input: Duration,
    /// The guest's own time.
    pub infer: Duration,
    /// To take its answer apart.
    pub output: Duration,
}

/// What there is to tell of a version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatisticsTaken {
    /// When the last rows were predicted for, in milliseconds since 1970; 0, if never.
    pub last_inference_ms: u64,
    /// Rows that were predicted for.
    pub inference_count: u64,
    /// Calls of the guest that answered.
    pub execution_count: u64,
    /// Requests that were answered, from their head to their answer.
    pub success: TimesTaken,
    /// Requests that a version was chosen for and that got an error.
    pub fail: TimesTaken,
    /// Waits for a thread.
    pub queue: TimesTaken,
    /// Requests turned into tensors.
    pub compute_input: TimesTaken,
    /// Answers of a guest, each counted for each of those whose rows were in its batch.
    pub compute_infer: TimesTaken,
    /// Tensors turned into answers.
    pub compute_output: TimesTaken,
    /// The calls that answered, by the rows that they had; in this order.
    pub batches: Vec<BatchesTaken>,
}

/// The calls of one size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchesTaken {
    /// Rows of each.
    pub batch_size: u64,
    /// To put the rows of several requests together.
    pub compute_input: TimesTaken,
    /// The guest's own time.
    pub compute_infer: TimesTaken,
    /// To take its answer apart.
    pub compute_output: TimesTaken,
}

impl Statistics {
    /// A request was answered, so long after its head.
    pub fn request_answered(&self, time: Duration) {
        self.success.add(time);
    }

    /// A request for which this version was chosen got an error, so long after its head.
    pub fn request_failed(&self, time: Duration) {
        self.fail.add(time);
    }

    /// A request was turned into tensors.
    pub fn inputs_converted(&self, time: Duration) {
        self.input.add(time);
    }

    /// Tensors were turned into an answer.
    pub fn outputs_converted(&self, time: Duration) {
        self.output.add(time);
    }

    /// The rows of a request got a thread after such a wait.
    pub(crate) fn waited(&self, time: Duration) {
        self.queue.add(time);
    }

    /// The guest has answered for the rows of so many requests.
    pub(crate) fn executed(&self, execution: &Execution, requests: usize, now: SystemTime) {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        self.last_inference_ms.fetch_max(now, Ordering::Relaxed);
        self.inferences.fetch_add(execution.rows, Ordering::Relaxed);
        self.executions.fetch_add(1, Ordering::Relaxed);
        (0..requests).for_each(|_| self.infer.add(execution.infer));
        let add = |times: &SizeTimes| {
            times.input.add(execution.input);
            times.infer.add(execution.infer);
            times.output.add(execution.output);
        };
        {
            // Values are whole at any moment, so a panic elsewhere does not spoil them.
            let sizes = self.sizes.read().unwrap_or_else(PoisonError::into_inner);
            match sizes.get(&execution.rows) {
                Some(times) => return add(times),
                None if sizes.len() >= MAX_SIZES => return,
                None => {}
            }
        }
        let mut sizes = self.sizes.write().unwrap_or_else(PoisonError::into_inner);
        if sizes.len() < MAX_SIZES || sizes.contains_key(&execution.rows) {
            add(sizes.entry(execution.rows).or_default());
        }
    }

    /// What there is to tell. What is written meanwhile may be in it in parts.
    pub fn taken(&self) -> StatisticsTaken {
        let sizes = self.sizes.read().unwrap_or_else(PoisonError::into_inner);
        let batches = sizes.iter().map(|(size, times)| BatchesTaken {
            batch_size: *size,
            compute_input: times.input.taken(),
            compute_infer: times.infer.taken(),
            compute_output: times.output.taken(),
        });
        StatisticsTaken {
            last_inference_ms: self.last_inference_ms.load(Ordering::Relaxed),
            inference_count: self.inferences.load(Ordering::Relaxed),
            execution_count: self.executions.load(Ordering::Relaxed),
            success: self.success.taken(),
            fail: self.fail.taken(),
            queue: self.queue.taken(),
            compute_input: self.input.taken(),
            compute_infer: self.infer.taken(),
            compute_output: self.output.taken(),
            batches: batches.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    #[test]
    fn calls_are_counted_once_and_for_each_request() {
        let statistics = Statistics::default();
        assert_eq!(statistics.taken(), StatisticsTaken::default());
        let batch = |rows| Execution { rows, infer: MICROSECOND, ..Execution::default() };
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        statistics.executed(&batch(8), 3, at(2));
        statistics.executed(&batch(1), 1, at(1));
        statistics.executed(&batch(8), 8, at(0));
        let taken = statistics.taken();
        assert_eq!((taken.inference_count, taken.execution_count), (17, 3));
        assert_eq!(taken.last_inference_ms, 2000);
        assert_eq!(taken.compute_infer, TimesTaken { count: 12, nanoseconds: 12_000 });
        let sizes: Vec<_> = taken
            .batches
            .iter()
            .map(|batch| (batch.batch_size, batch.compute_infer.count, batch.compute_input.count))
            .collect();
        assert_eq!(sizes, [(1, 1, 1), (8, 2, 2)]);
    }

    #[test]
    fn sizes_are_bounded_and_sums_are_not() {
        let statistics = Statistics::default();
        let sizes = 2 * MAX_SIZES as u64;
        for rows in (1..=sizes).chain(1..=sizes) {
            let batch = Execution { rows, ..Execution::default() };
            statistics.executed(&batch, 1, UNIX_EPOCH);
        }
        let taken = statistics.taken();
        assert_eq!((taken.batches.len(), taken.execution_count), (MAX_SIZES, 2 * sizes));
        assert!(taken.batches.iter().all(|batch| batch.compute_infer.count == 2));
    }
}
