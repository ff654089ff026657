//! Quantiles of measured times.

use std::time::Duration;

use serde_json::{Value, json};

/// The median and the 95th percentile in microseconds.
pub(crate) fn summary(times: &[Duration]) -> Value {
    let mut times = times.to_vec();
    times.sort();
    json!({ "p50": quantile(&times, 50), "p95": quantile(&times, 95) })
}

/// A percentile of sorted times in microseconds: the smallest time that is not below it.
fn quantile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_measured_values() {
        let times: Vec<_> = (1..=100).rev().map(Duration::from_micros).collect();
        let summary = summary(&times);
        let near =
            |name: &str, wanted: f64| (summary[name].as_f64().unwrap() - wanted).abs() < 1e-6;
        assert!(near("p50", 50.0) && near("p95", 95.0), "{summary}");
        assert!((quantile(&[Duration::from_micros(7)], 50) - 7.0).abs() < 1e-6);
    }
}
