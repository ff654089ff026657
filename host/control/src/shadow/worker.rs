//! One worker: takes a request from the queue, has the candidate asked at idle priority, and counts
//! what comes of it.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Map;

use super::compare::{Kind, compare};
use super::evidence::{Disagreement, Filled, Witness};
use super::idle::Idle;
use super::offers::{Call, Offered, Taken};
use super::report::{Findings, Outcome, Report};
use super::worst::{Severity, Worst};
use super::{Batch, Comparison};
use guesthouse_model::record;
use guesthouse_model::{Signature, Tensor};
use guesthouse_runtime::guest::{Fault, StopSignal};
use guesthouse_runtime::pool::LeasedInstance;
use guesthouse_runtime::preinit::InstanceStart;
use guesthouse_runtime::priority;
use guesthouse_runtime::version::ServableVersion;

/// How long a request may wait to be compared. After that, there was no time: versions are kept
/// alive by what waits, and would be drained no sooner.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How long a candidate's instances are kept for further requests, and with them the candidate.
const PATIENCE: Duration = Duration::from_secs(1);

/// A request to be compared.
pub(super) struct Job {
    pub(super) comparison: Comparison,
    pub(super) report: Arc<Report>,
    pub(super) offered: Instant,
}

impl Job {
    /// Let the report's breaker know how the request ended. The candidate's own learns nothing: it
    /// may serve others well.
    fn judge(&self, fault: Option<&Fault>) {
        let (breaker, now) = (self.report.breaker(), Instant::now());
        let caller = self.comparison.caller;
        match fault {
            None | Some(Fault::Rejected(_)) => breaker.record_success(caller, now),
            Some(fault) if fault.counts_against_version() => {
                if breaker.record_failure(caller, now).is_some() {
                    let id = self.comparison.candidate.id();
                    let (model, version) = (&id.name, &id.version);
                    tracing::warn!(target: "fault", %model, %version, "shadow suspended");
                }
            }
            Some(_) => {}
        }
    }
}

/// The two threads of a worker.
pub(super) struct Worker {
    jobs: Arc<Taken<Job>>,
    idle: Idle,
    /// Of the idle thread among those who wait for jobs.
    index: usize,
}

/// Rows of one batch that the candidate takes at once.
#[derive(Clone, Copy)]
struct Piece {
    /// Which batch.
    batch: usize,
    /// Its first row in the request.
    batch_first_row: usize,
    start: usize,
    count: usize,
}

/// Why there is nothing to compare.
enum Obstacle {
    /// The candidate does not take these inputs.
    Incompatible,
    /// The machine had no time or no room.
    Shed,
    /// The candidate's own.
    Fault(Fault, Option<Box<Disagreement>>),
}

/// What comes back from the idle thread.
struct Examined {
    leased: Option<LeasedInstance>,
    outcome: Result<Findings, Obstacle>,
    /// What it had of a processor.
    time: Duration,
}

impl Worker {
    pub(super) fn new(jobs: Arc<Taken<Job>>, idle: Idle, index: usize) -> Self {
        Self { jobs, idle, index }
    }

    /// Until there will be no more jobs.
    pub(super) fn work(&self) {
        let mut last: Option<Arc<ServableVersion>> = None;
        loop {
            let (bell, index) = (self.jobs.bell(), self.index);
            let patience = last.as_ref().map(|_| PATIENCE);
            match self.idle.run(move || bell.wait(index, patience)) {
                Some(Call::Take) => {}
                Some(Call::Patience) => {
                    forget(&mut last);
                    continue;
                }
                Some(Call::End) | None => return,
            }
            // Another worker may have been quicker.
            let Some(Offered { what, held }) = self.jobs.take() else { continue };
            // Lent to the other thread, but dropped here.
            let job = Arc::new(what);
            let candidate = &job.comparison.candidate;
            if last.as_ref().is_none_or(|last| last.key() != candidate.key()) {
                forget(&mut last);
                last = Some(Arc::clone(candidate));
            }
            job.report.count(self.run(&job));
            drop((job, held));
        }
    }

    fn run(&self, job: &Arc<Job>) -> Outcome {
        let Comparison { candidate, primary, batches, .. } = &job.comparison;
        if !could_take(candidate.signature(), primary.signature()) {
            return Outcome::Incompatible;
        }
        if job.offered.elapsed() > LONGEST_WAIT {
            return Outcome::Dropped;
        }
        let now = Instant::now();
        let caller = job.comparison.caller;
        let is_suspended = candidate.breaker().check(caller, now).is_err();
        if is_suspended || job.report.breaker().admit(caller, now).is_err() {
            return Outcome::Skipped;
        }
        let mut asking = Asking {
            idle: &self.idle,
            job,
            stop: StopSignal::at_deadline(now + candidate.limits().predict_time),
            time: Duration::ZERO,
        };
        let mut findings = Findings::default();
        let most = candidate.max_batch_size();
        for piece in pieces(batches.iter().map(Batch::rows), most) {
            match asking.run(piece) {
                Ok(more) => findings.add(more),
                Err(Obstacle::Incompatible) => return Outcome::Incompatible,
                Err(Obstacle::Shed) => return Outcome::Dropped,
                Err(Obstacle::Fault(fault, disagreement)) => {
                    // As for a client, one bad batch is the end of the request.
                    job.judge(Some(&fault));
                    findings.fault = Some(fault.kind());
                    if let Some(disagreement) = disagreement {
                        let severity = Severity { kind: Kind::Error, distance: 0.0 };
                        findings.worst.push(severity, *disagreement);
                    }
                    return Outcome::Compared(findings);
                }
            }
        }
        job.judge(None);
        Outcome::Compared(findings)
    }
}

/// Another candidate's turn, or nobody's: workers together have no more instances than threads.
fn forget(last: &mut Option<Arc<ServableVersion>>) {
    if let Some(last) = last.take() {
        last.shadow_pool().clear();
    }
}

/// The candidate and one request.
struct Asking<'a> {
    idle: &'a Idle,
    job: &'a Arc<Job>,
    stop: StopSignal,
    /// What it has had of a processor so far.
    time: Duration,
}

impl Asking<'_> {
    fn run(&mut self, piece: Piece) -> Result<Findings, Obstacle> {
        let candidate = &self.job.comparison.candidate;
        let pool = candidate.shadow_pool();
        // Where `init` has to run for it, that takes longer than any lock is held: there.
        let leased = match candidate.report().start {
            InstanceStart::Snapshot => {
                Some(pool.acquire(&self.stop).map_err(|fault| self.account(fault, None))?)
            }
            InstanceStart::Init(_) => None,
        };
        let (job, stop) = (Arc::clone(self.job), self.stop.clone());
        let examined = self.idle.run(move || examine(&job.comparison, piece, leased, &stop));
        // It catches what the guest's call does, so this cannot be.
        let Examined { leased, outcome, time } = examined.ok_or(Obstacle::Shed)?;
        self.time += time;
        if let Some(leased) = leased {
            let spares = match &outcome {
                Ok(_) | Err(Obstacle::Incompatible) => true,
                Err(Obstacle::Fault(fault, _)) => fault.leaves_instance_usable(),
                Err(Obstacle::Shed) => false,
            };
            pool.release(leased, spares);
        }
        outcome.map_err(|obstacle| match obstacle {
            Obstacle::Fault(fault, disagreement) => self.account(fault, disagreement),
            other => other,
        })
    }

    /// Count and log a fault, as where clients are served; tell it from what says nothing of the
    /// candidate.
    fn account(&self, fault: Fault, disagreement: Option<Box<Disagreement>>) -> Obstacle {
        let candidate = &self.job.comparison.candidate;
        if matches!(fault, Fault::Deadline) && self.time < candidate.limits().predict_time * 9 / 10
        {
            return Obstacle::Shed;
        }
        candidate.faults().count(&fault);
        if !fault.is_callers_fault() {
            let (id, request_id) = (candidate.id(), self.job.comparison.request_id.as_str());
            let (model, version) = (&id.name, &id.version);
            tracing::warn!(target: "fault", %model, %version, shadow = true, request_id,
                kind = fault.kind(), trap = fault.trap(), "{fault}");
        }
        match fault {
            Fault::Host(_) => Obstacle::Shed,
            fault => Obstacle::Fault(fault, disagreement),
        }
    }
}

/// Whether there are inputs that both take: the same ones by name and datatype, but for those that
/// the candidate can do without.
fn could_take(candidate: &Signature, primary: &Signature) -> bool {
    if candidate.inputs == primary.inputs {
        return true;
    }
    let known = primary.inputs.iter().all(|given| {
        let same_name = candidate.inputs.iter().find(|field| field.name == given.name);
        same_name.is_some_and(|field| field.datatype == given.datatype)
    });
    let given = |name: &str| primary.inputs.iter().any(|field| field.name == name);
    known && candidate.required_inputs().all(|field| given(&field.name))
}

/// Batches of so many rows each, cut into what the candidate takes at once.
fn pieces(rows: impl Iterator<Item = usize>, most: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut batch_first_row = 0;
    for (batch, rows) in rows.enumerate() {
        let cut = (0..rows).step_by(most).map(|start| {
            let count = most.min(rows - start);
            Piece { batch, batch_first_row, start, count }
        });
        pieces.extend(cut);
        batch_first_row += rows;
    }
    pieces
}

/// The rows of the piece; no copy, if they are all.
fn rows_of(tensors: &[Tensor], piece: Piece) -> Cow<'_, [Tensor]> {
    if tensors.iter().all(|tensor| tensor.rows() == piece.count as u64) {
        return Cow::Borrowed(tensors);
    }
    tensors.iter().map(|tensor| tensor.slice_rows(piece.start, piece.count)).collect()
}

/// The inputs as the candidate would have got them from the same caller; none, if it would have
/// refused them.
fn inputs_for<'a>(
    candidate: &Signature,
    primary: &Signature,
    inputs: &'a [Tensor],
) -> Option<Cow<'a, [Tensor]>> {
    if candidate.inputs == primary.inputs {
        return Some(Cow::Borrowed(inputs));
    }
    // Other limits, other defaults: through the form in which both take everything.
    let outputs = primary.inputs.clone();
    let as_outputs = Signature { inputs: Vec::new(), outputs, max_batch_size: 1 };
    let records = record::encode(&as_outputs, inputs).ok()?;
    let records: Vec<&Map<_, _>> = records.iter().collect();
    record::decode(candidate, &records).ok().map(Cow::Owned)
}

/// Ask the candidate and compare, on the idle thread.
fn examine(
    comparison: &Comparison,
    piece: Piece,
    mut leased: Option<LeasedInstance>,
    stop: &StopSignal,
) -> Examined {
    let before = priority::thread_cpu_time();
    let span = tracing::info_span!("shadow", request_id = comparison.request_id.as_str());
    let examine = || span.in_scope(|| ask(comparison, piece, &mut leased, stop));
    // A panic here is a bug of the host.
    let outcome = catch_unwind(AssertUnwindSafe(examine)).unwrap_or_else(|_panic| {
        Err(Obstacle::Fault(Fault::Host("a shadow's thread panicked".to_owned()), None))
    });
    Examined { leased, outcome, time: priority::thread_cpu_time() - before }
}

fn ask(
    comparison: &Comparison,
    piece: Piece,
    leased: &mut Option<LeasedInstance>,
    stop: &StopSignal,
) -> Result<Findings, Obstacle> {
    let Comparison { candidate, primary, batches, request_id, capture, .. } = comparison;
    let batch = &batches[piece.batch];
    let (inputs, answered) = (rows_of(&batch.inputs, piece), rows_of(&batch.outputs, piece));
    let fitting = inputs_for(candidate.signature(), primary.signature(), &inputs);
    let fitting = fitting.ok_or(Obstacle::Incompatible)?;
    let mut witness = Witness {
        request_id,
        first_row: piece.batch_first_row + piece.start,
        capture: *capture,
        inputs: Filled::inputs(primary.signature(), &inputs),
        primary: Filled::outputs(primary.signature(), &answered),
        candidate: None,
    };
    let outputs = match leased {
        Some(leased) => leased.predict(&fitting, stop),
        None => {
            let taken = candidate.shadow_pool().acquire(stop);
            taken.and_then(|taken| leased.insert(taken).predict(&fitting, stop))
        }
    };
    let outputs = outputs.map_err(|fault| {
        let row = match &fault {
            Fault::Rejected(rejections) | Fault::NonFiniteInput(rejections) => {
                rejections.first().map(|rejection| rejection.row)
            }
            _ => None,
        };
        let disagreement = Box::new(witness.of_fault(fault.kind(), row));
        Obstacle::Fault(fault, Some(disagreement))
    })?;
    witness.candidate = Some(Filled::outputs(candidate.signature(), &outputs));
    Ok(findings(&witness, comparison, piece.count))
}

fn findings(witness: &Witness<'_>, comparison: &Comparison, rows: usize) -> Findings {
    let candidate = witness.candidate.map_or(&[][..], |candidate| candidate.tensors);
    let mut worst = Worst::default();
    let compared = witness.primary.tensors.iter().enumerate().map(|(index, answered)| {
        let other = candidate.iter().find(|tensor| tensor.name == answered.name);
        let tolerance = comparison.candidate.tolerances().get(&answered.name);
        let counts = compare(answered, other, tolerance.copied().unwrap_or(0.0), |difference| {
            let severity = Severity { kind: difference.kind, distance: difference.distance };
            worst.push(severity, (index, difference));
        });
        (answered.name.clone(), counts)
    });
    let mut findings =
        Findings { rows: rows as u64, outputs: compared.collect(), ..Findings::default() };
    for (severity, (output, difference)) in worst.into_sorted() {
        findings.worst.push(severity, witness.of_difference(output, &difference));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use guesthouse_model::{Constraint, Datatype, Field};

    fn field(name: &str, datatype: Datatype, constraints: &[Constraint]) -> Field {
        Field {
            name: name.to_owned(),
            description: String::new(),
            datatype,
            row_shape: vec![],
            constraints: constraints.to_vec(),
            default: None,
        }
    }

    fn signature(inputs: &[Field]) -> Signature {
        Signature { inputs: inputs.to_vec(), outputs: vec![], max_batch_size: 8 }
    }

    fn text(most: u32) -> Field {
        let length = Constraint::Length { minimum: 0, maximum: most };
        field("text", Datatype::Bytes, &[Constraint::Text, length])
    }

    /// The inputs of one record for the primary, as the candidate gets them; none if it could not
    /// take any, or does not take these.
    fn pass(primary: &[Field], candidate: &[Field], row: Value) -> Option<Vec<Tensor>> {
        let (primary, candidate) = (signature(primary), signature(candidate));
        let inputs = record::decode(&primary, &[row.as_object().unwrap()]).unwrap();
        if !could_take(&candidate, &primary) {
            return None;
        }
        inputs_for(&candidate, &primary, &inputs).map(Cow::into_owned)
    }

    #[test]
    fn inputs_are_converted_to_the_candidates_signature() {
        let number = field("number", Datatype::Fp32, &[]);
        let optional = Field { default: Some(2_f32.to_le_bytes().to_vec()), ..number.clone() };
        let tensors = pass(&[text(9)], &[optional, text(20)], json!({"text": "ab"})).unwrap();
        let names: Vec<_> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["number", "text"]);
        assert_eq!(tensors[0].data, 2_f32.to_le_bytes());
        assert_eq!(tensors[1].data, *b"\x02\0\0\0ab");
        // The same signature, though its description may be another.
        let other_words = Field { description: "words".to_owned(), ..number.clone() };
        let row = json!({"number": 0.1});
        let same = pass(from_ref(&number), from_ref(&number), row.clone());
        assert_eq!(pass(&[number], &[other_words], row), same);
    }

    #[test]
    fn incompatible_inputs_are_not_run() {
        let row = || json!({"text": "abc"});
        let renamed = Field { name: "words".to_owned(), ..text(9) };
        let retyped = field("text", Datatype::Fp32, &[]);
        let more = [text(9), field("number", Datatype::Fp32, &[])];
        assert!(pass(&[text(9)], &[text(9)], row()).is_some());
        for candidate in [&[renamed][..], &[retyped], &more, &[text(2)]] {
            assert_eq!(pass(&[text(9)], candidate, row()), None, "{candidate:?}");
        }
        assert_eq!(pass(&more, &[text(9)], json!({"text": "abc", "number": 1})), None);
    }

    #[test]
    fn a_batch_is_split_into_its_rows() {
        let data: Vec<u8> = (0..6).collect();
        let name = "x".to_owned();
        let tensor = Tensor { name, datatype: Datatype::Uint8, shape: vec![6], data };
        let piece = |start, count| Piece { batch: 0, batch_first_row: 0, start, count };
        let all = [tensor];
        assert!(matches!(rows_of(&all, piece(0, 6)), Cow::Borrowed(_)), "nothing is copied");
        assert_eq!(rows_of(&all, piece(4, 2))[0].data, [4, 5]);
    }

    proptest! {
        /// Each row of each batch is in one piece, in order, and no piece is too large.
        #[test]
        fn every_row_is_in_exactly_one_piece(
            batches in prop::collection::vec(1_usize..40, 0..6),
            most in 1_usize..10,
        ) {
            let mut rows = Vec::new();
            for piece in pieces(batches.iter().copied(), most) {
                prop_assert!((1..=most).contains(&piece.count));
                prop_assert!(piece.start + piece.count <= batches[piece.batch]);
                let first = piece.batch_first_row + piece.start;
                rows.extend(first..first + piece.count);
            }
            prop_assert_eq!(rows, (0..batches.iter().sum()).collect::<Vec<_>>());
        }
    }
}
