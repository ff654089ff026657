//! Request counters by version and by the reason why the router chose it.
//!
//! A version has a counter once it has been chosen. The counters are logged, one line for each version,
//! when they have changed since they were last logged.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use guesthouse_model::VersionId;

/// After a pause of this length, traffic counts as stopped, and compiling need not spare it.
const PAUSE: Duration = Duration::from_secs(1);

/// Requests by version and the reason why the version was chosen.
#[derive(Debug, Default)]
pub struct Traffic(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    counts: Counts,
    last: Option<Instant>,
}

/// Requests by version and reason.
pub type Counts = BTreeMap<(VersionId, &'static str), Requests>;

/// A number of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// All requests.
    pub all: u64,
    /// Requests that were routed by a random draw, because they had no sticky key.
    pub random: u64,
}

impl Traffic {
    /// Count a request to the version. `is_random` says whether a random draw chose it.
    pub fn count(&self, version: &VersionId, reason: &'static str, is_random: bool) {
        // Made before the lock is taken.
        let key = (version.clone(), reason);
        let mut counted = self.lock();
        let requests = counted.counts.entry(key).or_default();
        requests.all += 1;
        requests.random += u64::from(is_random);
        counted.last = Some(Instant::now());
    }

    /// Whether a request was served within the last second.
    pub fn is_flowing(&self) -> bool {
        self.lock().last.is_some_and(|last| last.elapsed() < PAUSE)
    }

    /// The counts since the start.
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// Log the counters if they differ from `last`, and update `last`.
    pub fn log(&self, last: &mut Counts) {
        let counts = self.counts();
        if counts == *last {
            return;
        }
        for ((version, reason), requests) in &counts {
            let share = share_percent(&counts, version, reason, requests.all);
            let (model, version) = (&version.name, &version.version);
            let Requests { all: requests, random } = requests;
            tracing::info!(target: "traffic", %model, %version, reason, requests, random, share_percent = share);
        }
        *last = counts;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counted> {
        // A panic cannot leave a counter inconsistent.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The version's share of the model's requests that were routed for the same reason.
fn share_percent(counts: &Counts, version: &VersionId, reason: &str, requests: u64) -> f64 {
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
    fn shares_are_of_the_same_model_and_reason() {
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
        assert_eq!(counts[&(version("1.0.0"), "split")], Requests { all: 9, random: 0 });
        assert_eq!(counts[&(version("2.0.0"), "split")], Requests { all: 1, random: 1 });
        assert!((share_percent(&counts, &version("2.0.0"), "split", 1) - 10.0).abs() < 1e-9);
        assert!((share_percent(&counts, &version("2.0.0"), "pin", 1) - 100.0).abs() < 1e-9);
    }
}
