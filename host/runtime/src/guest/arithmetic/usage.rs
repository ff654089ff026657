//! How much a version uses the host's arithmetic.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The functions of the interface that compute, by their names in `wit/model.wit`.
const FUNCTIONS: [&str; 19] = [
    "binary",
    "convolution",
    "deconvolution",
    "depthwise-convolution",
    "dequantise",
    "dequantised-convolution",
    "dequantised-depthwise-convolution",
    "dequantised-matrix-product",
    "layer-norm",
    "matrix-product",
    "pool",
    "quantise",
    "quantised-convolution",
    "quantised-depthwise-convolution",
    "quantised-matrix-product",
    "quantised-sum",
    "reduction",
    "softmax",
    "unary",
];

/// One of [`FUNCTIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Function(usize);

impl Function {
    /// The function of this name.
    ///
    /// # Panics
    /// There is none.
    pub(super) fn named(name: &str) -> Self {
        let position = FUNCTIONS.iter().position(|function| *function == name);
        Self(position.unwrap_or_else(|| panic!("the interface has no function {name:?}")))
    }
}

/// The arithmetic of all instances of a version since it was loaded.
#[derive(Debug, Default)]
pub struct ArithmeticUsage([Counters; FUNCTIONS.len()]);

/// The calls of a function.
#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    nanoseconds: AtomicU64,
}

/// The calls of a function since a version was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionUsage {
    /// Its name in the contract.
    pub function: &'static str,
    /// The calls.
    pub calls: u64,
    /// The time that they took.
    pub time: Duration,
}

impl ArithmeticUsage {
    /// The operations that were executed.
    pub fn calls(&self) -> u64 {
        self.by_function().map(|usage| usage.calls).sum()
    }

    /// The time that they took.
    pub fn time(&self) -> Duration {
        self.by_function().map(|usage| usage.time).sum()
    }

    /// The same for each function that a guest can call.
    pub fn by_function(&self) -> impl Iterator<Item = FunctionUsage> {
        FUNCTIONS.iter().zip(&self.0).map(|(function, counters)| FunctionUsage {
            function,
            calls: counters.calls.load(Ordering::Relaxed),
            time: Duration::from_nanos(counters.nanoseconds.load(Ordering::Relaxed)),
        })
    }

    pub(super) fn add(&self, Function(index): Function, time: Duration) {
        let counters = &self.0[index];
        counters.calls.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        counters.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_function() {
        let usage = ArithmeticUsage::default();
        usage.add(Function::named("softmax"), Duration::from_micros(2));
        usage.add(Function::named("unary"), Duration::from_micros(1));
        usage.add(Function::named("softmax"), Duration::from_micros(3));
        assert_eq!((usage.calls(), usage.time()), (3, Duration::from_micros(6)));
        let softmax = usage.by_function().find(|usage| usage.function == "softmax").unwrap();
        assert_eq!((softmax.calls, softmax.time), (2, Duration::from_micros(5)));
    }
}
