//! Counts the requests of each version by the reason for which it was chosen: the evidence of a
//! traffic split.
//!
//! The counts of each version that has been chosen are logged whenever they have changed since the
//! last time.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use guesthouse_model::VersionId;

/// Traffic counts as active until it has paused for this long.
const MOMENT: Duration = Duration::from_secs(1);

/// Counters of requests by version and reason.
#[derive(Debug, Default)]
pub struct Traffic(Mutex<TrafficState>);

#[derive(Debug, Default)]
struct TrafficState {
    counts: TrafficCounts,
    last: Option<Instant>,
}

/// The number of requests by version and reason.
pub type TrafficCounts = BTreeMap<(VersionId, &'static str), RequestCounts>;

/// A number of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// All requests.
    pub all: u64,
    /// The requests that were assigned at random, because they had no sticky key.
    pub random: u64,
}

impl Traffic {
    /// Count a request. `is_random` says that it was assigned at random by a traffic split.
    pub fn count(&self, version: &VersionId, reason: &'static str, is_random: bool) {
        // Allocated before the lock is taken.
        let key = (version.clone(), reason);
        let mut counted = self.lock();
        let requests = counted.counts.entry(key).or_default();
        requests.all += 1;
        requests.random += u64::from(is_random);
        counted.last = Some(Instant::now());
    }

    /// Whether a request was counted within the last second.
    pub fn is_active(&self) -> bool {
        self.lock().last.is_some_and(|last| last.elapsed() < MOMENT)
    }

    /// The counts since the server started.
    pub fn counts(&self) -> TrafficCounts {
        self.lock().counts.clone()
    }

    /// Log the counts if they differ from `last`, and update `last`.
    pub fn log(&self, last: &mut TrafficCounts) {
        let counts = self.counts();
        if counts == *last {
            return;
        }
        for ((version, reason), requests) in &counts {
            let share = share_percent(&counts, version, reason, requests.all);
            let (model, version) = (&version.name, &version.version);
            let RequestCounts { all: requests, random } = requests;
            tracing::info!(target: "traffic", %model, %version, reason, requests, random, share_percent = share);
        }
        *last = counts;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, TrafficState> {
        // The map is consistent at any time, so a poisoned lock is harmless.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The version's share of the model's requests that were routed for the same reason.
fn share_percent(counts: &TrafficCounts, version: &VersionId, reason: &str, requests: u64) -> f64 {
    let total: u64 = counts
        .iter()
        .filter(|((other, why), _)| other.name == version.name && *why == reason)
        .map(|(_, requests)| requests.all)
        .sum();
    let percent = 100.0 * requests as f64 / total.max(1) as f64;
    (percent * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_relative_to_the_model_and_reason() {
        let traffic = Traffic::default();
        let version = |text: &str| VersionId {
            name: "toxicity".parse().unwrap(),
            version: text.parse().unwrap(),
        };
        for _ in 0..9 {
            traffic.count(&version("1.0.0"), "split", false);
        }
        traffic.count(&version("2.0.0"), "split", true);
        traffic.count(&version("2.0.0"), "pin", false);
        let counts = traffic.counts();
        assert_eq!(counts[&(version("1.0.0"), "split")], RequestCounts { all: 9, random: 0 });
        assert_eq!(counts[&(version("2.0.0"), "split")], RequestCounts { all: 1, random: 1 });
        assert!((share_percent(&counts, &version("2.0.0"), "split", 1) - 10.0).abs() < 1e-9);
        assert!((share_percent(&counts, &version("2.0.0"), "pin", 1) - 100.0).abs() < 1e-9);
    }
}
