//! What was found of each pair of versions: counters, and the worst disagreements.
//!
//! Whoever offers a comparison finds its pair in a snapshot and touches counters only, so that it
//! never waits for somebody who reads or adds to the rest.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use semver::Version;
use serde::{Serialize, Serializer};

use super::compare::OutputCounts;
use super::evidence::Disagreement;
use super::worst::Worst;
use guesthouse_artifact::Digest;
use guesthouse_model::{ModelName, VersionId};
use guesthouse_runtime::version::Breaker;

/// Pairs that are reported of at once; beyond it, the one that was not used for longest is
/// forgotten. A model has one shadow at a time and a few versions that answer.
const MAX_PAIRS: usize = 64;

/// Two versions of one model: the one that answered, and the one that was asked as well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// The model and the version that was asked as well.
    pub candidate: VersionId,
    /// The version that answered.
    pub primary: Version,
}

/// How many comparisons ended how. A comparison is one request, with all of its rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Results {
    /// Every output within its tolerance.
    pub agreed: u64,
    /// Some output of some row was not.
    pub differed: u64,
    /// The candidate gave no answer.
    pub error: u64,
    /// Not asked: there was no time or no room for it, in the queue or on the machine.
    pub dropped: u64,
    /// Not asked: the candidate kept breaking down.
    pub skipped: u64,
    /// Not asked: the candidate does not take such inputs.
    pub incompatible: u64,
}

impl Results {
    /// By the words of the metrics.
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

/// What was counted of one pair.
#[derive(Debug, Clone, Serialize)]
pub struct PairCounts {
    /// The version that was asked as well.
    pub candidate: Version,
    /// The version that answered.
    pub primary: Version,
    /// When counting began.
    #[serde(serialize_with = "moment")]
    pub since: SystemTime,
    /// Requests of which there are two answers, or an error in place of the second.
    pub compared: u64,
    /// Rows that both have answered.
    pub rows: u64,
    /// Requests by result.
    pub results: Results,
    /// Errors by the kind of the fault.
    pub errors: BTreeMap<&'static str, u64>,
    /// Of each output of the primary, the rows that differed.
    pub outputs: BTreeMap<String, OutputCounts>,
}

/// What was found of one pair.
#[derive(Debug, Clone, Serialize)]
pub struct PairReport {
    /// The counters.
    #[serde(flatten)]
    pub counts: PairCounts,
    /// The gravest disagreements, the gravest first.
    pub worst: Vec<Disagreement>,
}

/// What was found of all pairs of one model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    /// The model.
    pub model: ModelName,
    /// By candidate and primary.
    pub comparisons: Vec<PairReport>,
}

pub(super) fn moment<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

/// How one comparison ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Dropped,
    Skipped,
    Incompatible,
    Compared(Findings),
}

/// What a comparison found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Rows with two answers.
    pub(super) rows: u64,
    /// Of the primary's outputs, in its order.
    pub(super) outputs: Vec<(String, OutputCounts)>,
    /// The kind of the fault, if the candidate gave no answer.
    pub(super) fault: Option<&'static str>,
    pub(super) worst: Worst<Disagreement>,
}

impl Findings {
    /// The same of further rows of the same request.
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

/// One pair's counters and findings.
pub(super) struct Report {
    pair: Pair,
    digests: (Digest, Digest),
    since: SystemTime,
    /// Suspends the comparing, and nothing else.
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
    fn new(pair: Pair, digests: (Digest, Digest), since: SystemTime) -> Self {
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

    /// Waits for nobody.
    pub(super) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count(&self, outcome: Outcome) {
        let findings = match outcome {
            Outcome::Compared(findings) => findings,
            Outcome::Dropped => return self.count_dropped(),
            Outcome::Skipped => {
                self.skipped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Outcome::Incompatible => {
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
        let results = Results {
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
        // A count is never left half done.
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reports of all pairs.
#[derive(Default)]
pub(super) struct Reports {
    by_pair: ArcSwap<BTreeMap<Pair, Arc<Report>>>,
    /// Grows with every use.
    clock: AtomicU64,
}

impl Reports {
    /// The report of a pair. It begins anew if a version is no longer the artifact that it was.
    pub(super) fn of(&self, pair: Pair, digests: (Digest, Digest), now: SystemTime) -> Arc<Report> {
        let known = self.by_pair.load().get(&pair).map(Arc::clone);
        let report = match known.filter(|report| report.digests == digests) {
            Some(report) => report,
            None => self.add(Arc::new(Report::new(pair, digests, now))),
        };
        report.last_used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        report
    }

    /// The report, or the one that somebody else has added meanwhile.
    fn add(&self, report: Arc<Report>) -> Arc<Report> {
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

    pub(super) fn of_model(&self, model: &ModelName) -> ModelReport {
        let reports = self.by_pair.load();
        let of_model = reports.values().filter(|report| report.pair.candidate.name == *model);
        let comparisons = of_model.map(|report| PairReport {
            counts: report.counts(),
            worst: report.lock().worst.iter().cloned().collect(),
        });
        ModelReport { model: model.clone(), comparisons: comparisons.collect() }
    }

    pub(super) fn forget(&self, model: &ModelName) {
        self.by_pair.rcu(|reports| {
            let mut reports = BTreeMap::clone(reports);
            reports.retain(|pair, _| pair.candidate.name != *model);
            reports
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::Kind;
    use super::super::worst::{KEPT, Severity};
    use super::*;

    fn pair(candidate: &str) -> Pair {
        let name = "toxicity".parse().unwrap();
        let candidate = VersionId { name, version: candidate.parse().unwrap() };
        Pair { candidate, primary: Version::new(1, 0, 0) }
    }

    fn digests() -> (Digest, Digest) {
        (Digest::from_content(b"candidate"), Digest::from_content(b"primary"))
    }

    fn report_of(reports: &Reports, candidate: &str) -> Arc<Report> {
        reports.of(pair(candidate), digests(), SystemTime::UNIX_EPOCH)
    }

    fn only(reports: &Reports) -> PairReport {
        let mut report = reports.of_model(&"toxicity".parse().unwrap());
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
            kind: Kind::Score,
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
            worst.push(Severity { kind: Kind::Score, distance: 0.5 }, disagreement(row));
        }
        Findings { rows: 8, outputs: vec![("score".to_owned(), counts)], fault, worst }
    }

    #[test]
    fn a_request_counts_as_one_result() {
        let reports = Reports::default();
        let report = report_of(&reports, "2.0.0");
        report.count(Outcome::Compared(findings(0, None)));
        report.count(Outcome::Compared(findings(3, None)));
        report.count(Outcome::Compared(findings(1, Some("trap"))));
        report.count(Outcome::Dropped);
        report.count(Outcome::Skipped);
        report.count(Outcome::Incompatible);
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
        assert_eq!((all.outputs[0].1.score, all.worst.iter().count()), (43, KEPT));
    }

    #[test]
    fn kept_examples_are_bounded() {
        let reports = Reports::default();
        for candidate in 0..2 * MAX_PAIRS {
            let report = report_of(&reports, &format!("2.{candidate}.0"));
            (0..3).for_each(|_| report.count(Outcome::Compared(findings(30, None))));
            // Still in use, so it stays.
            report_of(&reports, "2.0.0");
        }
        let report = reports.of_model(&"toxicity".parse().unwrap());
        assert_eq!(report.comparisons.len(), MAX_PAIRS);
        assert!(report.comparisons.iter().all(|pair| pair.worst.len() == KEPT));
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
        let anew = reports.of(pair("2.0.0"), other, SystemTime::UNIX_EPOCH);
        assert!(!Arc::ptr_eq(&report, &anew));
        assert_eq!(only(&reports).counts.results, Results::default());
        reports.forget(&"else".parse().unwrap());
        assert_eq!(reports.counts().len(), 1);
        reports.forget(&"toxicity".parse().unwrap());
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
        report_of(&reports, "2.0.0").count(Outcome::Compared(findings(1, None)));
        let report = serde_json::to_value(reports.of_model(&"toxicity".parse().unwrap())).unwrap();
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
