//! The statistics of a version since it was loaded, as the Open Inference Protocol reports them:
//! the numbers of requests, rows and guest calls, and the total time of each step.
//!
//! The server records the outcomes of requests and the time for conversions; the inference threads
//! record queueing and guest calls. Recording takes a few atomic additions, and a shared lock for
//! the counters of the batch size.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most batch sizes with counters of their own: all that a request may have by default. Further
/// sizes count in the totals only.
const MAX_SIZES: usize = 1024;

/// A number of events and their total duration.
#[derive(Debug, Default)]
struct DurationCounter {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

/// A number of events and their total duration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DurationCount {
    /// The number of events.
    pub count: u64,
    /// Their total duration, in nanoseconds.
    pub nanoseconds: u64,
}

impl DurationCounter {
    fn add(&self, time: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn snapshot(&self) -> DurationCount {
        let count = self.count.load(Ordering::Relaxed);
        DurationCount { count, nanoseconds: self.nanoseconds.load(Ordering::Relaxed) }
    }
}

/// The counters of a version.
#[derive(Debug, Default)]
pub struct Statistics {
    success: DurationCounter,
    fail: DurationCounter,
    queue: DurationCounter,
    input: DurationCounter,
    infer: DurationCounter,
    output: DurationCounter,
    last_inference_ms: AtomicU64,
    inferences: AtomicU64,
    executions: AtomicU64,
    sizes: RwLock<BTreeMap<u64, SizeTimes>>,
}

/// The counters of one batch size.
#[derive(Debug, Default)]
struct SizeTimes {
    input: DurationCounter,
    infer: DurationCounter,
    output: DurationCounter,
}

/// The durations of one guest call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Execution {
    /// The rows of the call.
    pub rows: u64,
    /// The time to join the rows of several requests.
    pub input: Duration,
    /// The time in the guest.
    pub infer: Duration,
    /// The time to split the outputs.
    pub output: Duration,
}

/// A snapshot of [`Statistics`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatisticsSnapshot {
    /// When the last successful guest call ended, in milliseconds since 1970; 0 if there was none.
    pub last_inference_ms: u64,
    /// Rows in successful guest calls.
    pub inference_count: u64,
    /// Successful guest calls.
    pub execution_count: u64,
    /// Successful requests, timed from the request head to the response.
    pub success: DurationCount,
    /// Requests that were routed to the version and failed.
    pub fail: DurationCount,
    /// Waits for an inference thread.
    pub queue: DurationCount,
    /// Conversions of requests into tensors.
    pub compute_input: DurationCount,
    /// Time in the guest, counted once for each request of a batch.
    pub compute_infer: DurationCount,
    /// Conversions of tensors into responses.
    pub compute_output: DurationCount,
    /// The successful guest calls by number of rows, in ascending order.
    pub batches: Vec<BatchStatistics>,
}

/// The successful guest calls with one number of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchStatistics {
    /// The rows of each call.
    pub batch_size: u64,
    /// The time to join the rows of several requests.
    pub compute_input: DurationCount,
    /// The time in the guest.
    pub compute_infer: DurationCount,
    /// The time to split the outputs.
    pub compute_output: DurationCount,
}

impl Statistics {
    /// Record a successful request that took this long from its head.
    pub fn record_success(&self, time: Duration) {
        self.success.add(time);
    }

    /// Record a failed request that took this long from its head.
    pub fn record_failure(&self, time: Duration) {
        self.fail.add(time);
    }

    /// Record the conversion of a request into tensors.
    pub fn record_input_conversion(&self, time: Duration) {
        self.input.add(time);
    }

    /// Record the conversion of tensors into a response.
    pub fn record_output_conversion(&self, time: Duration) {
        self.output.add(time);
    }

    /// Record how long a request waited for a thread.
    pub(crate) fn record_queue_wait(&self, time: Duration) {
        self.queue.add(time);
    }

    /// Record a successful guest call for this number of requests.
    pub(crate) fn record_execution(&self, execution: &Execution, requests: usize, now: SystemTime) {
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
            // The counters are consistent at any time, so a poisoned lock is harmless.
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

    /// Read all counters. Concurrent updates may be included partly.
    pub fn snapshot(&self) -> StatisticsSnapshot {
        let sizes = self.sizes.read().unwrap_or_else(PoisonError::into_inner);
        let batches = sizes.iter().map(|(size, times)| BatchStatistics {
            batch_size: *size,
            compute_input: times.input.snapshot(),
            compute_infer: times.infer.snapshot(),
            compute_output: times.output.snapshot(),
        });
        StatisticsSnapshot {
            last_inference_ms: self.last_inference_ms.load(Ordering::Relaxed),
            inference_count: self.inferences.load(Ordering::Relaxed),
            execution_count: self.executions.load(Ordering::Relaxed),
            success: self.success.snapshot(),
            fail: self.fail.snapshot(),
            queue: self.queue.snapshot(),
            compute_input: self.input.snapshot(),
            compute_infer: self.infer.snapshot(),
            compute_output: self.output.snapshot(),
            batches: batches.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    #[test]
    fn calls_count_once_and_for_each_request() {
        let statistics = Statistics::default();
        assert_eq!(statistics.snapshot(), StatisticsSnapshot::default());
        let batch = |rows| Execution { rows, infer: MICROSECOND, ..Execution::default() };
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        statistics.record_execution(&batch(8), 3, at(2));
        statistics.record_execution(&batch(1), 1, at(1));
        statistics.record_execution(&batch(8), 8, at(0));
        let taken = statistics.snapshot();
        assert_eq!((taken.inference_count, taken.execution_count), (17, 3));
        assert_eq!(taken.last_inference_ms, 2000);
        assert_eq!(taken.compute_infer, DurationCount { count: 12, nanoseconds: 12_000 });
        let sizes: Vec<_> = taken
            .batches
            .iter()
            .map(|batch| (batch.batch_size, batch.compute_infer.count, batch.compute_input.count))
            .collect();
        assert_eq!(sizes, [(1, 1, 1), (8, 2, 2)]);
    }

    #[test]
    fn sizes_are_bounded_and_totals_are_not() {
        let statistics = Statistics::default();
        let sizes = 2 * MAX_SIZES as u64;
        for rows in (1..=sizes).chain(1..=sizes) {
            let batch = Execution { rows, ..Execution::default() };
            statistics.record_execution(&batch, 1, UNIX_EPOCH);
        }
        let taken = statistics.snapshot();
        assert_eq!((taken.batches.len(), taken.execution_count), (MAX_SIZES, 2 * sizes));
        assert!(taken.batches.iter().all(|batch| batch.compute_infer.count == 2));
    }
}
