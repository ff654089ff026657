//! The results of each pair of versions: counters, and the gravest disagreements.
//!
//! A thread that submits a comparison looks its pair up in a snapshot and changes atomic counters only, so
//! that it never waits for a reader or for a worker.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use semver::Version;
use serde::Serialize;

use super::compare::OutputCounts;
use super::evidence::{Disagreement, serialize_rfc3339};
use super::worst::Worst;
use guesthouse_artifact::Digest;
use guesthouse_model::{ModelName, VersionId};
use guesthouse_runtime::version::Breaker;

/// The most pairs with a report. Beyond that, the report that was unused for longest is removed. A model
/// has one shadow at a time and a few versions that answer.
const MAX_PAIRS: usize = 64;

/// Two versions of one model: the primary, which answered, and the candidate, which is compared with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VersionPair {
    /// The model and the candidate.
    pub candidate: VersionId,
    /// The primary.
    pub primary: Version,
}

/// The number of comparisons by result. A comparison is one request with all of its rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ResultCounts {
    /// Every output was within its tolerance.
    pub agreed: u64,
    /// Some output of some row was not within its tolerance.
    pub differed: u64,
    /// The candidate ended with a fault.
    pub error: u64,
    /// Not run: the queue was full, or the machine had no time or no memory for it.
    pub dropped: u64,
    /// Not run: the candidate is suspended because it kept failing.
    pub skipped: u64,
    /// Not run: the candidate does not accept such inputs.
    pub incompatible: u64,
}

impl ResultCounts {
    /// The counts with their names in metrics.
    pub fn by_name(&self) -> [(&'static str, u64); 6] {
        [
            ("agreed", self.agreed),
            ("differed", self.differed),
            ("error", self.error),
            ("dropped", self.dropped),
            ("skipped", self.skipped),
            ("incompatible", self.incompatible),
        ]
    }
}

/// The counters of one pair.
#[derive(Debug, Clone, Serialize)]
pub struct PairCounts {
    /// The candidate.
    pub candidate: Version,
    /// The primary.
    pub primary: Version,
    /// When counting started.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub since: SystemTime,
    /// Requests that the candidate was run on.
    pub compared: u64,
    /// Rows that both versions have answered.
    pub rows: u64,
    /// Requests by result.
    pub results: ResultCounts,
    /// Faults of the candidate by kind.
    pub errors: BTreeMap<&'static str, u64>,
    /// The rows that differed, by output of the primary.
    pub outputs: BTreeMap<String, OutputCounts>,
}

/// The results of one pair.
#[derive(Debug, Clone, Serialize)]
pub struct PairReport {
    /// The counters.
    #[serde(flatten)]
    pub counts: PairCounts,
    /// The gravest disagreements, in order.
    pub worst: Vec<Disagreement>,
}

/// The results of all pairs of one model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    /// The model.
    pub model: ModelName,
    /// Ordered by candidate and primary.
    pub comparisons: Vec<PairReport>,
}

/// The outcome of one comparison.
#[derive(Debug)]
pub(super) enum ComparisonOutcome {
    Dropped,
    Skipped,
    Incompatible,
    Compared(Findings),
}

/// The results of one comparison.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Rows that both versions have answered.
    pub(super) rows: u64,
    /// By output of the primary, in the order of its signature.
    pub(super) outputs: Vec<(String, OutputCounts)>,
    /// The kind of the fault, if the candidate ended with one.
    pub(super) fault: Option<&'static str>,
    pub(super) worst: Worst<Disagreement>,
}

impl Findings {
    /// Add the findings of further rows of the same request.
    pub(super) fn add(&mut self, more: Self) {
        self.rows += more.rows;
        if self.outputs.is_empty() {
            self.outputs = more.outputs;
        } else {
            for ((_, counts), (_, more)) in self.outputs.iter_mut().zip(&more.outputs) {
                counts.add(more);
            }
        }
        self.fault = self.fault.or(more.fault);
        for (severity, disagreement) in more.worst.into_sorted() {
            self.worst.push(severity, disagreement);
        }
    }
}

/// The counters and findings of one pair.
pub(super) struct Report {
    pair: VersionPair,
    digests: (Digest, Digest),
    since: SystemTime,
    /// Suspends comparisons only; the candidate's own breaker is not affected.
    breaker: Breaker,
    dropped: AtomicU64,
    skipped: AtomicU64,
    incompatible: AtomicU64,
    last_used: AtomicU64,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    agreed: u64,
    differed: u64,
    rows: u64,
    errors: BTreeMap<&'static str, u64>,
    outputs: BTreeMap<String, OutputCounts>,
    worst: Worst<Disagreement>,
}

impl Report {
    fn new(pair: VersionPair, digests: (Digest, Digest), since: SystemTime) -> Self {
        Self {
            pair,
            digests,
            since,
            breaker: Breaker::default(),
            dropped: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            incompatible: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            found: Mutex::default(),
        }
    }

    pub(super) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Takes no lock.
    pub(super) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count(&self, outcome: ComparisonOutcome) {
        let findings = match outcome {
            ComparisonOutcome::Compared(findings) => findings,
            ComparisonOutcome::Dropped => return self.count_dropped(),
            ComparisonOutcome::Skipped => {
                self.skipped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            ComparisonOutcome::Incompatible => {
                self.incompatible.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        let differs = findings.outputs.iter().any(|(_, counts)| counts.differs());
        let mut found = self.lock();
        found.rows += findings.rows;
        match findings.fault {
            Some(kind) => *found.errors.entry(kind).or_default() += 1,
            None if differs => found.differed += 1,
            None => found.agreed += 1,
        }
        for (output, counts) in findings.outputs {
            found.outputs.entry(output).or_default().add(&counts);
        }
        for (severity, disagreement) in findings.worst.into_sorted() {
            found.worst.push(severity, disagreement);
        }
    }

    fn counts(&self) -> PairCounts {
        let found = self.lock();
        let results = ResultCounts {
            agreed: found.agreed,
            differed: found.differed,
            error: found.errors.values().sum(),
            dropped: self.dropped.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
            incompatible: self.incompatible.load(Ordering::Relaxed),
        };
        PairCounts {
            candidate: self.pair.candidate.version.clone(),
            primary: self.pair.primary.clone(),
            since: self.since,
            compared: results.agreed + results.differed + results.error,
            rows: found.rows,
            results,
            errors: found.errors.clone(),
            outputs: found.outputs.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        // A panic cannot leave a counter inconsistent.
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reports of all pairs.
#[derive(Default)]
pub(super) struct Reports {
    by_pair: ArcSwap<BTreeMap<VersionPair, Arc<Report>>>,
    /// A logical clock that advances with every use.
    clock: AtomicU64,
}

impl Reports {
    /// The report of a pair. A new one replaces it if a version has another artifact than before.
    pub(super) fn get_or_insert(
        &self,
        pair: VersionPair,
        digests: (Digest, Digest),
        now: SystemTime,
    ) -> Arc<Report> {
        let known = self.by_pair.load().get(&pair).map(Arc::clone);
        let report = match known.filter(|report| report.digests == digests) {
            Some(report) => report,
            None => self.insert(Arc::new(Report::new(pair, digests, now))),
        };
        report.last_used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        report
    }

    /// Insert a report; returns the one that another thread has inserted meanwhile, if any.
    fn insert(&self, report: Arc<Report>) -> Arc<Report> {
        let mut added = Arc::clone(&report);
        self.by_pair.rcu(|reports| {
            let known = reports.get(&report.pair);
            if let Some(known) = known.filter(|known| known.digests == report.digests) {
                added = Arc::clone(known);
                return Arc::clone(reports);
            }
            let mut reports = BTreeMap::clone(reports);
            if known.is_none() && reports.len() >= MAX_PAIRS {
                let idle =
                    reports.values().min_by_key(|report| report.last_used.load(Ordering::Relaxed));
                if let Some(idle) = idle.map(|report| report.pair.clone()) {
                    reports.remove(&idle);
                }
            }
            added = Arc::clone(&report);
            reports.insert(report.pair.clone(), Arc::clone(&report));
            Arc::new(reports)
        });
        added
    }

    pub(super) fn counts(&self) -> Vec<(ModelName, PairCounts)> {
        let reports = self.by_pair.load();
        let count = |report: &Arc<Report>| (report.pair.candidate.name.clone(), report.counts());
        reports.values().map(count).collect()
    }

    pub(super) fn model_report(&self, model: &ModelName) -> ModelReport {
        let reports = self.by_pair.load();
        let of_model = reports.values().filter(|report| report.pair.candidate.name == *model);
        let comparisons = of_model.map(|report| PairReport {
            counts: report.counts(),
            worst: report.lock().worst.iter().cloned().collect(),
        });
        ModelReport { model: model.clone(), comparisons: comparisons.collect() }
    }

    pub(super) fn remove(&self, model: &ModelName) {
        self.by_pair.rcu(|reports| {
            let mut reports = BTreeMap::clone(reports);
            reports.retain(|pair, _| pair.candidate.name != *model);
            reports
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::DifferenceKind;
    use super::super::worst::{MAX_KEPT, Severity};
    use super::*;

    fn pair(candidate: &str) -> VersionPair {
        let name = "toxicity".parse().unwrap();
        let candidate = VersionId { name, version: candidate.parse().unwrap() };
        VersionPair { candidate, primary: Version::new(1, 0, 0) }
    }

    fn digests() -> (Digest, Digest) {
        (Digest::from_content(b"candidate"), Digest::from_content(b"primary"))
    }

    fn report_of(reports: &Reports, candidate: &str) -> Arc<Report> {
        reports.get_or_insert(pair(candidate), digests(), SystemTime::UNIX_EPOCH)
    }

    fn only(reports: &Reports) -> PairReport {
        let mut report = reports.model_report(&"toxicity".parse().unwrap());
        assert_eq!(report.comparisons.len(), 1);
        report.comparisons.remove(0)
    }

    fn disagreement(row: usize) -> Disagreement {
        Disagreement {
            time: SystemTime::UNIX_EPOCH,
            request_id: "r".to_owned(),
            input_sha256: String::new(),
            row: Some(row),
            output: Some("score".to_owned()),
            kind: DifferenceKind::Score,
            fault: None,
            difference: Some(0.5),
            labels: None,
            captured: None,
        }
    }

    fn findings(score: u64, fault: Option<&'static str>) -> Findings {
        let counts = OutputCounts { score, largest_difference: 0.5, ..OutputCounts::default() };
        let mut worst = Worst::default();
        for row in 0..usize::try_from(score).unwrap() {
            worst.push(Severity { kind: DifferenceKind::Score, distance: 0.5 }, disagreement(row));
        }
        Findings { rows: 8, outputs: vec![("score".to_owned(), counts)], fault, worst }
    }

    #[test]
    fn a_request_counts_as_one_result() {
        let reports = Reports::default();
        let report = report_of(&reports, "2.0.0");
        report.count(ComparisonOutcome::Compared(findings(0, None)));
        report.count(ComparisonOutcome::Compared(findings(3, None)));
        report.count(ComparisonOutcome::Compared(findings(1, Some("trap"))));
        report.count(ComparisonOutcome::Dropped);
        report.count(ComparisonOutcome::Skipped);
        report.count(ComparisonOutcome::Incompatible);
        let counts = only(&reports).counts;
        assert_eq!(counts.results.by_name().map(|(_, count)| count), [1; 6]);
        assert_eq!((counts.compared, counts.rows, counts.errors["trap"]), (3, 24, 1));
        let output = counts.outputs["score"];
        assert_eq!((output.score, output.largest_difference), (4, 0.5));
    }

    #[test]
    fn differences_of_a_request_add_up() {
        let mut all = Findings::default();
        all.add(findings(1, None));
        all.add(findings(2, None));
        all.add(findings(40, Some("trap")));
        assert_eq!((all.rows, all.outputs.len(), all.fault), (24, 1, Some("trap")));
        assert_eq!((all.outputs[0].1.score, all.worst.iter().count()), (43, MAX_KEPT));
    }

    #[test]
    fn kept_examples_are_bounded() {
        let reports = Reports::default();
        for candidate in 0..2 * MAX_PAIRS {
            let report = report_of(&reports, &format!("2.{candidate}.0"));
            (0..3).for_each(|_| report.count(ComparisonOutcome::Compared(findings(30, None))));
            // Still in use, so it stays.
            report_of(&reports, "2.0.0");
        }
        let report = reports.model_report(&"toxicity".parse().unwrap());
        assert_eq!(report.comparisons.len(), MAX_PAIRS);
        assert!(report.comparisons.iter().all(|pair| pair.worst.len() == MAX_KEPT));
        let candidates: Vec<_> =
            report.comparisons.iter().map(|pair| pair.counts.candidate.minor).collect();
        let last = 2 * MAX_PAIRS as u64;
        assert!(candidates.contains(&0) && candidates.contains(&(last - 1)));
        assert!(!candidates.contains(&1));
    }

    #[test]
    fn a_new_artifact_or_a_reset_starts_a_new_report() {
        let reports = Reports::default();
        let report = report_of(&reports, "2.0.0");
        report.count_dropped();
        assert!(Arc::ptr_eq(&report, &report_of(&reports, "2.0.0")));
        let other = (Digest::from_content(b"other"), digests().1);
        let anew = reports.get_or_insert(pair("2.0.0"), other, SystemTime::UNIX_EPOCH);
        assert!(!Arc::ptr_eq(&report, &anew));
        assert_eq!(only(&reports).counts.results, ResultCounts::default());
        reports.remove(&"else".parse().unwrap());
        assert_eq!(reports.counts().len(), 1);
        reports.remove(&"toxicity".parse().unwrap());
        assert_eq!(reports.counts().len(), 0);
        // Whoever still holds it counts into nothing.
        anew.count_dropped();
        assert_eq!(reports.counts().len(), 0);
    }

    #[test]
    fn counting_drops_does_not_block() {
        let reports = Reports::default();
        let report = report_of(&reports, "2.0.0");
        let _somebody_reads = report.lock();
        report_of(&reports, "2.0.0").count_dropped();
        report_of(&reports, "2.1.0").count_dropped();
        assert_eq!(report.dropped.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_report_has_the_documented_fields() {
        let reports = Reports::default();
        report_of(&reports, "2.0.0").count(ComparisonOutcome::Compared(findings(1, None)));
        let report =
            serde_json::to_value(reports.model_report(&"toxicity".parse().unwrap())).unwrap();
        let wanted = serde_json::json!({
            "model": "toxicity",
            "comparisons": [{
                "candidate": "2.0.0",
                "primary": "1.0.0",
                "since": "1970-01-01T00:00:00.000Z",
                "compared": 1,
                "rows": 8,
                "results": {
                    "agreed": 0, "differed": 1, "error": 0,
                    "dropped": 0, "skipped": 0, "incompatible": 0,
                },
                "errors": {},
                "outputs": {
                    "score": {
                        "score": 1, "label": 0, "nan": 0, "shape": 0, "largest_difference": 0.5,
                    },
                },
                "worst": [{
                    "time": "1970-01-01T00:00:00.000Z",
                    "request_id": "r",
                    "input_sha256": "",
                    "row": 0,
                    "output": "score",
                    "kind": "score",
                    "fault": null,
                    "difference": 0.5,
                    "labels": null,
                    "captured": null,
                }],
            }],
        });
        assert_eq!(report, wanted);
    }
}
