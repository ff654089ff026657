//! What is counted and timed: cheap to write from many threads, read only when somebody scrapes.
//!
//! Nothing here has a name; that is for the page of metrics. Nothing grows with what callers send: the
//! keys of a [`MetricFamily`] are words of the program, and its routes.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn count(&self) {
        self.add(1);
    }

    /// That many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many there have been.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many there are of something now.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// One more came.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One left.
    pub fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of a [`DurationHistogram`], in microseconds. From 100 µs, which is less than any call of a
/// guest over HTTP takes, to 30 s, the longest that a request may take; two or three a decade, so that a
/// quantile is off by a factor of two at most and a version has a few hundred series.
pub const BOUNDS_US: [u64; 17] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// How long something took, by ranges. Writing is two additions without a lock.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    /// One for each bound, and what is over the last one.
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl DurationHistogram {
    /// It took that long.
    pub fn record(&self, time: Duration) {
        let micros = time.as_nanos().div_ceil(1000);
        let place = BOUNDS_US.partition_point(|bound| u128::from(*bound) < micros);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    /// All of it in seconds, and how many fell between each bound, in seconds, and the one before; the
    /// last bound is [`f64::MAX`].
    pub fn snapshot(&self) -> (f64, Vec<(f64, u64)>) {
        let bounds = BOUNDS_US.iter().map(|bound| *bound as f64 / 1e6).chain([f64::MAX]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        (self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9, bounds.zip(counts).collect())
    }
}

/// The upper bounds of [`SizeHistogram`]: powers of two, as sizes of batches are chosen, up to the most rows that a
/// request may have by default.
pub const SIZE_BOUNDS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// How large something was, by ranges.
#[derive(Debug, Default)]
pub struct SizeHistogram {
    /// One for each bound, and what is over the last one.
    counts: [AtomicU64; SIZE_BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl SizeHistogram {
    /// It was that large.
    pub fn record(&self, size: u64) {
        let place = SIZE_BOUNDS.partition_point(|bound| *bound < size);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(size, Ordering::Relaxed);
    }

    /// All of it, and how many fell between each bound and the one before; the last bound is [`f64::MAX`].
    pub fn snapshot(&self) -> (f64, Vec<(f64, u64)>) {
        let bounds = SIZE_BOUNDS.iter().map(|bound| *bound as f64).chain([f64::MAX]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        (self.sum.load(Ordering::Relaxed) as f64, bounds.zip(counts).collect())
    }
}

/// Values by key, each made when it is first needed. Whoever comes later shares the lock with everybody
/// else, so that nobody waits.
#[derive(Debug)]
pub struct MetricFamily<K, V>(RwLock<BTreeMap<K, V>>);

impl<K, V> Default for MetricFamily<K, V> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Ord, V: Default> MetricFamily<K, V> {
    /// Do something with the value of the key.
    pub fn with<Q>(&self, key: &Q, work: impl FnOnce(&V))
    where
        K: Borrow<Q>,
        Q: Ord + ToOwned<Owned = K> + ?Sized,
    {
        {
            // Values are whole at any moment, so a panic elsewhere does not spoil them.
            let values = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(value) = values.get(key) {
                return work(value);
            }
        }
        let mut values = self.0.write().unwrap_or_else(PoisonError::into_inner);
        work(values.entry(key.to_owned()).or_default());
    }

    /// What `read` makes of each key and its value, in the order of the keys.
    pub fn map<T>(&self, mut read: impl FnMut(&K, &V) -> T) -> Vec<T> {
        let values = self.0.read().unwrap_or_else(PoisonError::into_inner);
        values.iter().map(|(key, value)| read(key, value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_below_its_bound_or_on_it() {
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
    fn a_size_falls_below_its_bound_or_on_it() {
        let sizes = SizeHistogram::default();
        [1, 2, 3, 4, 1024, 1025].into_iter().for_each(|size| sizes.record(size));
        let (sum, buckets) = sizes.snapshot();
        let counts: Vec<_> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert!((sum - 2059.0).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn values_are_made_once_and_shared_by_all_threads() {
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
