//! A worker receives a comparison from the queue, runs the candidate at idle priority, and counts the
//! result.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Map;

use super::compare::{DifferenceKind, compare};
use super::comparison::{ComparedBatch, Comparison};
use super::evidence::{Disagreement, Evidence, NamedTensors};
use super::idle_thread::IdleThread;
use super::queue::{QueueReceiver, Queued, Wakeup};
use super::report::{ComparisonOutcome, Findings, Report};
use super::worst::{Severity, Worst};
use guesthouse_model::record;
use guesthouse_model::{Signature, Tensor};
use guesthouse_runtime::guest::{Fault, StopSignal};
use guesthouse_runtime::pool::LeasedInstance;
use guesthouse_runtime::preinit::InstanceStart;
use guesthouse_runtime::priority;
use guesthouse_runtime::version::ServableVersion;

/// How long a comparison may wait in the queue before it is dropped. It keeps its versions loaded
/// meanwhile, and so delays their draining.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// How long the instances of a candidate, and with them the candidate, are kept for further comparisons.
const KEEP_INSTANCES: Duration = Duration::from_secs(1);

/// A comparison in the queue.
pub(super) struct Job {
    pub(super) comparison: Comparison,
    pub(super) report: Arc<Report>,
    pub(super) queued: Instant,
}

impl Job {
    /// Report the end of the request to the breaker of the comparison. The candidate's own breaker
    /// is not involved: its other requests may succeed.
    fn report_to_breaker(&self, fault: Option<&Fault>) {
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
    jobs: Arc<QueueReceiver<Job>>,
    idle: IdleThread,
    /// The index of its idle thread among the waiters of the queue.
    index: usize,
}

/// Consecutive rows of one batch that the candidate processes in one call.
#[derive(Clone, Copy)]
struct Chunk {
    /// The index of the batch.
    batch: usize,
    /// The index of the batch's first row in the request.
    batch_first_row: usize,
    start: usize,
    count: usize,
}

/// Why a chunk cannot be compared.
enum NotCompared {
    /// The candidate does not accept these inputs.
    Incompatible,
    /// The machine had no time or no memory.
    Shed,
    /// The candidate ended with a fault.
    Fault(Fault, Option<Box<Disagreement>>),
}

/// What the idle thread returns.
struct ChunkResult {
    leased: Option<LeasedInstance>,
    outcome: Result<Findings, NotCompared>,
    /// The processor time that it used.
    time: Duration,
}

impl Worker {
    pub(super) fn new(jobs: Arc<QueueReceiver<Job>>, idle: IdleThread, index: usize) -> Self {
        Self { jobs, idle, index }
    }

    /// Process jobs until the queue is closed.
    pub(super) fn run(&self) {
        let mut last: Option<Arc<ServableVersion>> = None;
        loop {
            let (notifier, index) = (self.jobs.notifier(), self.index);
            let timeout = last.as_ref().map(|_| KEEP_INSTANCES);
            match self.idle.run(move || notifier.wait(index, timeout)) {
                Some(Wakeup::Ready) => {}
                Some(Wakeup::TimedOut) => {
                    release_instances(&mut last);
                    continue;
                }
                Some(Wakeup::Closed) | None => return,
            }
            // Another worker may have been quicker.
            let Some(Queued { item, reservation }) = self.jobs.try_receive() else { continue };
            // The idle thread uses it, and it is dropped here.
            let job = Arc::new(item);
            let candidate = &job.comparison.candidate;
            if last.as_ref().is_none_or(|last| last.key() != candidate.key()) {
                release_instances(&mut last);
                last = Some(Arc::clone(candidate));
            }
            job.report.count(self.compare(&job));
            drop((job, reservation));
        }
    }

    fn compare(&self, job: &Arc<Job>) -> ComparisonOutcome {
        let Comparison { candidate, primary, batches, .. } = &job.comparison;
        if !is_compatible(candidate.signature(), primary.signature()) {
            return ComparisonOutcome::Incompatible;
        }
        if job.queued.elapsed() > MAX_WAIT {
            return ComparisonOutcome::Dropped;
        }
        let now = Instant::now();
        let caller = job.comparison.caller;
        let is_suspended = candidate.breaker().check(caller, now).is_err();
        if is_suspended || job.report.breaker().admit(caller, now).is_err() {
            return ComparisonOutcome::Skipped;
        }
        let mut call = CandidateCall {
            idle: &self.idle,
            job,
            stop: StopSignal::at_deadline(now + candidate.limits().predict_time),
            time: Duration::ZERO,
        };
        let mut findings = Findings::default();
        let max_rows = candidate.max_batch_size();
        for chunk in chunks(batches.iter().map(ComparedBatch::rows), max_rows) {
            match call.run(chunk) {
                Ok(more) => findings.add(more),
                Err(NotCompared::Incompatible) => return ComparisonOutcome::Incompatible,
                Err(NotCompared::Shed) => return ComparisonOutcome::Dropped,
                Err(NotCompared::Fault(fault, disagreement)) => {
                    // The request ends with its first failed batch, as it does for a client.
                    job.report_to_breaker(Some(&fault));
                    findings.fault = Some(fault.kind());
                    if let Some(disagreement) = disagreement {
                        let severity = Severity { kind: DifferenceKind::Error, distance: 0.0 };
                        findings.worst.push(severity, *disagreement);
                    }
                    return ComparisonOutcome::Compared(findings);
                }
            }
        }
        job.report_to_breaker(None);
        ComparisonOutcome::Compared(findings)
    }
}

/// Drop the instances of a candidate, so that all workers together have no more instances than threads.
fn release_instances(last: &mut Option<Arc<ServableVersion>>) {
    if let Some(last) = last.take() {
        last.shadow_pool().clear();
    }
}

/// One request to the candidate.
struct CandidateCall<'a> {
    idle: &'a IdleThread,
    job: &'a Arc<Job>,
    stop: StopSignal,
    /// The processor time used so far.
    time: Duration,
}

impl CandidateCall<'_> {
    fn run(&mut self, chunk: Chunk) -> Result<Findings, NotCompared> {
        let candidate = &self.job.comparison.candidate;
        let pool = candidate.shadow_pool();
        // An instance that runs `init` is made by the idle thread, because it takes long.
        let leased = match candidate.report().start {
            InstanceStart::Snapshot => {
                Some(pool.acquire(&self.stop).map_err(|fault| self.record_fault(fault, None))?)
            }
            InstanceStart::Init(_) => None,
        };
        let (job, stop) = (Arc::clone(self.job), self.stop.clone());
        let result = self.idle.run(move || compare_chunk(&job.comparison, chunk, leased, &stop));
        // The work catches its panics, so there is always a result.
        let ChunkResult { leased, outcome, time } = result.ok_or(NotCompared::Shed)?;
        self.time += time;
        if let Some(leased) = leased {
            let spares = match &outcome {
                Ok(_) | Err(NotCompared::Incompatible) => true,
                Err(NotCompared::Fault(fault, _)) => fault.leaves_instance_usable(),
                Err(NotCompared::Shed) => false,
            };
            pool.release(leased, spares);
        }
        outcome.map_err(|reason| match reason {
            NotCompared::Fault(fault, disagreement) => self.record_fault(fault, disagreement),
            other => other,
        })
    }

    /// Count and log a fault, as for clients. A fault that is not the candidate's own becomes
    /// [`NotCompared::Shed`].
    fn record_fault(&self, fault: Fault, disagreement: Option<Box<Disagreement>>) -> NotCompared {
        let candidate = &self.job.comparison.candidate;
        if matches!(fault, Fault::Deadline) && self.time < candidate.limits().predict_time * 9 / 10
        {
            return NotCompared::Shed;
        }
        candidate.faults().count(&fault);
        if !fault.is_callers_fault() {
            let (id, request_id) = (candidate.id(), self.job.comparison.request_id.as_str());
            let (model, version) = (&id.name, &id.version);
            tracing::warn!(target: "fault", %model, %version, shadow = true, request_id,
                kind = fault.kind(), trap = fault.trap(), "{fault}");
        }
        match fault {
            Fault::Host(_) => NotCompared::Shed,
            fault => NotCompared::Fault(fault, disagreement),
        }
    }
}

/// Whether there are inputs that both versions accept: names and datatypes are the same, except for
/// inputs that are optional for the candidate.
fn is_compatible(candidate: &Signature, primary: &Signature) -> bool {
    if candidate.inputs == primary.inputs {
        return true;
    }
    let is_known = primary.inputs.iter().all(|given| {
        let same_name = candidate.inputs.iter().find(|field| field.name == given.name);
        same_name.is_some_and(|field| field.datatype == given.datatype)
    });
    let is_given = |name: &str| primary.inputs.iter().any(|field| field.name == name);
    is_known && candidate.required_inputs().all(|field| is_given(&field.name))
}

/// Split batches with these numbers of rows into chunks of at most `max_rows` rows.
fn chunks(rows: impl Iterator<Item = usize>, max_rows: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut batch_first_row = 0;
    for (batch, rows) in rows.enumerate() {
        let cut = (0..rows).step_by(max_rows).map(|start| {
            let count = max_rows.min(rows - start);
            Chunk { batch, batch_first_row, start, count }
        });
        chunks.extend(cut);
        batch_first_row += rows;
    }
    chunks
}

/// The rows of the chunk. Nothing is copied if they are all rows.
fn chunk_rows(tensors: &[Tensor], chunk: Chunk) -> Cow<'_, [Tensor]> {
    if tensors.iter().all(|tensor| tensor.rows() == chunk.count as u64) {
        return Cow::Borrowed(tensors);
    }
    tensors.iter().map(|tensor| tensor.slice_rows(chunk.start, chunk.count)).collect()
}

/// The inputs as the candidate would have got them from the same caller; none if it would have rejected
/// them.
fn convert_inputs<'a>(
    candidate: &Signature,
    primary: &Signature,
    inputs: &'a [Tensor],
) -> Option<Cow<'a, [Tensor]>> {
    if candidate.inputs == primary.inputs {
        return Some(Cow::Borrowed(inputs));
    }
    // The candidate has other limits or defaults, so the inputs take the way through their JSON form.
    let outputs = primary.inputs.clone();
    let as_outputs = Signature { inputs: Vec::new(), outputs, max_batch_size: 1 };
    let records = record::encode(&as_outputs, inputs).ok()?;
    let records: Vec<&Map<_, _>> = records.iter().collect();
    record::decode(candidate, &records).ok().map(Cow::Owned)
}

/// Run the candidate on a chunk and compare the outputs. Runs on the idle thread.
fn compare_chunk(
    comparison: &Comparison,
    chunk: Chunk,
    mut leased: Option<LeasedInstance>,
    stop: &StopSignal,
) -> ChunkResult {
    let before = priority::thread_cpu_time();
    let span = tracing::info_span!("shadow", request_id = comparison.request_id.as_str());
    let run = || span.in_scope(|| run_and_compare(comparison, chunk, &mut leased, stop));
    // A panic here is a bug of the host.
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_panic| {
        Err(NotCompared::Fault(Fault::Host("a shadow's thread panicked".to_owned()), None))
    });
    ChunkResult { leased, outcome, time: priority::thread_cpu_time() - before }
}

fn run_and_compare(
    comparison: &Comparison,
    chunk: Chunk,
    leased: &mut Option<LeasedInstance>,
    stop: &StopSignal,
) -> Result<Findings, NotCompared> {
    let Comparison { candidate, primary, batches, request_id, capture, .. } = comparison;
    let batch = &batches[chunk.batch];
    let (inputs, answered) = (chunk_rows(&batch.inputs, chunk), chunk_rows(&batch.outputs, chunk));
    let converted = convert_inputs(candidate.signature(), primary.signature(), &inputs);
    let converted = converted.ok_or(NotCompared::Incompatible)?;
    let mut evidence = Evidence {
        request_id,
        first_row: chunk.batch_first_row + chunk.start,
        capture: *capture,
        inputs: NamedTensors::inputs(primary.signature(), &inputs),
        primary: NamedTensors::outputs(primary.signature(), &answered),
        candidate: None,
    };
    let outputs = match leased {
        Some(leased) => leased.predict(&converted, stop),
        None => {
            let taken = candidate.shadow_pool().acquire(stop);
            taken.and_then(|taken| leased.insert(taken).predict(&converted, stop))
        }
    };
    let outputs = outputs.map_err(|fault| {
        let row = match &fault {
            Fault::Rejected(rejections) | Fault::NonFiniteInput(rejections) => {
                rejections.first().map(|rejection| rejection.row)
            }
            _ => None,
        };
        let disagreement = Box::new(evidence.fault(fault.kind(), row));
        NotCompared::Fault(fault, Some(disagreement))
    })?;
    evidence.candidate = Some(NamedTensors::outputs(candidate.signature(), &outputs));
    Ok(findings(&evidence, comparison, chunk.count))
}

fn findings(evidence: &Evidence<'_>, comparison: &Comparison, rows: usize) -> Findings {
    let candidate = evidence.candidate.map_or(&[][..], |candidate| candidate.tensors);
    let mut worst = Worst::default();
    let compared = evidence.primary.tensors.iter().enumerate().map(|(index, answered)| {
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
        findings.worst.push(severity, evidence.difference(output, &difference));
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

    /// The inputs of one record for the primary, as the candidate gets them; none if it does not accept
    /// them.
    fn pass(primary: &[Field], candidate: &[Field], row: Value) -> Option<Vec<Tensor>> {
        let (primary, candidate) = (signature(primary), signature(candidate));
        let inputs = record::decode(&primary, &[row.as_object().unwrap()]).unwrap();
        if !is_compatible(&candidate, &primary) {
            return None;
        }
        convert_inputs(&candidate, &primary, &inputs).map(Cow::into_owned)
    }

    #[test]
    fn inputs_are_converted_to_the_signature_of_the_candidate() {
        let number = field("number", Datatype::Fp32, &[]);
        let optional = Field { default: Some(2_f32.to_le_bytes().to_vec()), ..number.clone() };
        let tensors = pass(&[text(9)], &[optional, text(20)], json!({"text": "ab"})).unwrap();
        let names: Vec<_> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["number", "text"]);
        assert_eq!(tensors[0].data[..], 2_f32.to_le_bytes());
        assert_eq!(tensors[1].data[..], *b"\x02\0\0\0ab");
        // The same signature, though its description may be another.
        let other_words = Field { description: "words".to_owned(), ..number.clone() };
        let row = json!({"number": 0.1});
        let same = pass(from_ref(&number), from_ref(&number), row.clone());
        assert_eq!(pass(&[number], &[other_words], row), same);
    }

    #[test]
    fn a_candidate_never_gets_inputs_it_does_not_accept() {
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
    fn chunk_rows_are_borrowed_if_they_are_all() {
        let data: Vec<u8> = (0..6).collect();
        let name = "x".to_owned();
        let tensor = Tensor { name, datatype: Datatype::Uint8, shape: vec![6], data: data.into() };
        let chunk = |start, count| Chunk { batch: 0, batch_first_row: 0, start, count };
        let all = [tensor];
        assert!(matches!(chunk_rows(&all, chunk(0, 6)), Cow::Borrowed(_)), "nothing is copied");
        assert_eq!(chunk_rows(&all, chunk(4, 2))[0].data[..], [4, 5]);
    }

    proptest! {
        /// Each row of each batch is in one chunk, in order, and no chunk is too large.
        #[test]
        fn every_row_is_in_one_chunk(
            batches in prop::collection::vec(1_usize..40, 0..6),
            most in 1_usize..10,
        ) {
            let mut rows = Vec::new();
            for chunk in chunks(batches.iter().copied(), most) {
                prop_assert!((1..=most).contains(&chunk.count));
                prop_assert!(chunk.start + chunk.count <= batches[chunk.batch]);
                let first = chunk.batch_first_row + chunk.start;
                rows.extend(first..first + chunk.count);
            }
            prop_assert_eq!(rows, (0..batches.iter().sum()).collect::<Vec<_>>());
        }
    }
}
