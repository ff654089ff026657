//! Counters, gauges and histograms: cheap to update from many threads, and read only when metrics
//! are scraped.
//!
//! Metrics have no names here; the metrics page adds them. Their number does not depend on what
//! callers send: the keys of a [`MetricFamily`] are constants of the program, and its routes.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// A number that only increases.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Add one.
    pub fn count(&self) {
        self.add(1);
    }

    /// Add a number.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The current value.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that increases and decreases.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Add one.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Subtract one.
    pub fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of a [`DurationHistogram`], in microseconds: from 100 µs, which is less than
/// any guest call over HTTP takes, to 30 s, the longest time of a request; two or three per decade,
/// so that a quantile is off by a factor of two at most and a version has a few hundred time
/// series.
pub const BOUNDS_US: [u64; 17] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// A histogram of durations. An update is two atomic additions.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    /// A counter for each bound, and one for larger values.
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl DurationHistogram {
    /// Record a duration.
    pub fn record(&self, time: Duration) {
        let micros = time.as_nanos().div_ceil(1000);
        let place = BOUNDS_US.partition_point(|bound| u128::from(*bound) < micros);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    /// The sum in seconds, and for each upper bound in seconds the number of durations up to it and
    /// above the previous one; the last bound is [`f64::MAX`].
    pub fn snapshot(&self) -> (f64, Vec<(f64, u64)>) {
        let bounds = BOUNDS_US.iter().map(|bound| *bound as f64 / 1e6).chain([f64::MAX]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        (self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9, bounds.zip(counts).collect())
    }
}

/// The upper bounds of a [`SizeHistogram`]: powers of two, up to the most rows of a request by
/// default.
pub const SIZE_BOUNDS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// A histogram of sizes.
#[derive(Debug, Default)]
pub struct SizeHistogram {
    /// A counter for each bound, and one for larger values.
    counts: [AtomicU64; SIZE_BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl SizeHistogram {
    /// Record a size.
    pub fn record(&self, size: u64) {
        let place = SIZE_BOUNDS.partition_point(|bound| *bound < size);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(size, Ordering::Relaxed);
    }

    /// The sum, and for each upper bound the number of sizes up to it and above the previous one;
    /// the last bound is [`f64::MAX`].
    pub fn snapshot(&self) -> (f64, Vec<(f64, u64)>) {
        let bounds = SIZE_BOUNDS.iter().map(|bound| *bound as f64).chain([f64::MAX]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        (self.sum.load(Ordering::Relaxed) as f64, bounds.zip(counts).collect())
    }
}

/// Metrics by key, created on first use. Later uses only take a shared lock.
#[derive(Debug)]
pub struct MetricFamily<K, V>(RwLock<BTreeMap<K, V>>);

impl<K, V> Default for MetricFamily<K, V> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Ord, V: Default> MetricFamily<K, V> {
    /// Call `work` with the metric of this key.
    pub fn with<Q>(&self, key: &Q, work: impl FnOnce(&V))
    where
        K: Borrow<Q>,
        Q: Ord + ToOwned<Owned = K> + ?Sized,
    {
        {
            // Metrics are consistent at any time, so a poisoned lock is harmless.
            let values = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(value) = values.get(key) {
                return work(value);
            }
        }
        let mut values = self.0.write().unwrap_or_else(PoisonError::into_inner);
        work(values.entry(key.to_owned()).or_default());
    }

    /// Map each key and its metric with `read`, ordered by key.
    pub fn map<T>(&self, mut read: impl FnMut(&K, &V) -> T) -> Vec<T> {
        let values = self.0.read().unwrap_or_else(PoisonError::into_inner);
        values.iter().map(|(key, value)| read(key, value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_at_the_next_upper_bound() {
        let histogram = DurationHistogram::default();
        for micros in [0, 100, 101, 30_000_000, 30_000_001] {
            histogram.record(Duration::from_micros(micros));
        }
        histogram.record(Duration::from_nanos(100_001));
        let (sum, buckets) = histogram.snapshot();
        let counts: Vec<_> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!((counts[0], counts[1], counts[16], counts[17]), (2, 2, 1, 1));
        assert_eq!(counts.iter().sum::<u64>(), 6);
        assert!((sum - 60.000_302).abs() < 1e-5, "{sum}");
    }

    #[test]
    fn a_size_counts_at_the_next_upper_bound() {
        let sizes = SizeHistogram::default();
        [1, 2, 3, 4, 1024, 1025].into_iter().for_each(|size| sizes.record(size));
        let (sum, buckets) = sizes.snapshot();
        let counts: Vec<_> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert!((sum - 2059.0).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn metrics_are_created_once_and_shared_by_threads() {
        let series = MetricFamily::<String, Counter>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| series.with("a", Counter::count)));
            }
        });
        series.with("b", Counter::count);
        let read = series.map(|key, value| (key.clone(), value.total()));
        assert_eq!(read, [("a".to_owned(), 4000), ("b".to_owned(), 1)]);
    }
}
