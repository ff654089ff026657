//! A batch on its thread: one call of the guest, and the delivery of its outcome.
//!
//! If one caller's rows make a batch fail, the other callers lose only time: their rows run again,
//! in the end each caller's alone. A job shares at most [`MAX_BATCH_ATTEMPTS`] batches and then
//! runs alone once, so that no guest occupies a thread for ever.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::PredictError;
use super::batch::{self, PartOutcome};
use super::queue::QueuedJob;
use crate::clock;
use crate::guest::{Fault, StopSignal};
use crate::measure::Counter;
use crate::pool::LeasedInstance;
use crate::stages::{Stage, StageTimer};
use crate::version::statistics::Execution;
use crate::version::{CallerId, InputFingerprint, ServableVersion, SuspensionScope};
use guesthouse_model::Tensor;

/// How many batches a job shares before it runs alone. A guest names all rows that it rejects at
/// once, so two attempts suffice for well-behaved guests.
const MAX_BATCH_ATTEMPTS: u8 = 3;

/// The divisor of the callers' remaining time that a shared batch may use. The other half remains
/// to run the jobs one by one if one of them has made the guest hang.
const BATCH_TIME_SHARE: u32 = 2;

/// A job that has been submitted and not answered.
pub(super) struct PendingJob {
    pub(super) version: Arc<ServableVersion>,
    pub(super) caller: CallerId,
    /// Shared, because a shadow comparison may need them after the response.
    pub(super) inputs: Arc<Vec<Tensor>>,
    /// The fingerprint of the inputs, if the version has failed recently.
    pub(super) fingerprint: Option<InputFingerprint>,
    pub(super) deadline: Instant,
    /// When it was submitted.
    pub(super) since: Instant,
    /// When the job must have started, if that is before its deadline.
    pub(super) start_deadline: Option<StartDeadline>,
    pub(super) stop: StopSignal,
    /// Measures its stages.
    pub(super) timer: StageTimer,
    pub(super) answer: oneshot::Sender<Result<Vec<Tensor>, PredictError>>,
    /// How many shared batches it has been in.
    pub(super) attempts: u8,
    /// The fault of its last shared batch, until it is known whether this job caused it.
    pub(super) pending_fault: Option<Arc<PendingFault>>,
}

/// The time by which a job must start. The waiting caller and the thread race for the decision: the
/// first to claim it either times the job out or starts it.
#[derive(Clone)]
pub(super) struct StartDeadline {
    pub(super) latest: Instant,
    pub(super) is_claimed: Arc<AtomicBool>,
}

impl StartDeadline {
    /// Claim the decision; false if the other side already has.
    pub(super) fn claim(&self) -> bool {
        !self.is_claimed.swap(true, Ordering::Relaxed)
    }
}

impl PendingJob {
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        let is_late = |start: &StartDeadline| self.attempts == 0 && now >= start.latest;
        self.answer.is_closed()
            || now >= self.deadline
            || self.start_deadline.as_ref().is_some_and(is_late)
    }

    fn rows(&self) -> u64 {
        self.inputs.first().map_or(0, Tensor::rows)
    }

    /// Whether the version keeps failing on these inputs.
    fn is_quarantined(&mut self, now: Instant) -> bool {
        if self.attempts > 0 {
            return false;
        }
        let quarantine = self.version.quarantine();
        self.fingerprint = quarantine.fingerprint_if_needed(&self.inputs, now);
        self.fingerprint.is_some_and(|inputs| !quarantine.admits(inputs, now))
    }

    /// Start the job on this thread. Returns `None` after rejecting a job that must not run any
    /// more.
    fn start(mut self, now: Instant) -> Option<Self> {
        let mut is_late = false;
        if self.attempts == 0 {
            let metrics = self.version.metrics();
            self.version.statistics().record_queue_wait(now.saturating_duration_since(self.since));
            self.timer.record(Stage::Queue, self.since, now, &metrics.queue);
            if let Some(start_deadline) = &self.start_deadline {
                if !start_deadline.claim() {
                    return None;
                }
                is_late = now >= start_deadline.latest;
            }
        }
        if self.answer.is_closed() {
            return None;
        }
        let (reason, error) = if now >= self.deadline {
            ("expired", PredictError::Expired)
        } else if is_late {
            ("queue_timeout", PredictError::QueueTimeout)
        } else if self.is_quarantined(now) {
            ("quarantined", PredictError::Quarantined)
        } else {
            return Some(self);
        };
        self.version.metrics().rejections.with(&reason, Counter::count);
        // The caller may have disconnected in the meantime.
        let _ = self.answer.send(Err(error));
        None
    }
}

/// The fault of a shared batch, until it is known which job caused it. Each job of the batch holds
/// it until it has run alone.
pub(super) struct PendingFault {
    version: Arc<ServableVersion>,
    fault: Fault,
    /// Whether one of the jobs failed alone as well. That fault has then been recorded by itself.
    is_confirmed: AtomicBool,
}

impl PendingFault {
    fn confirm_if_repeated(&self, outcome: &Result<Vec<Tensor>, Fault>) {
        if outcome.as_ref().is_err_and(|fault| !fault.is_callers_fault()) {
            self.is_confirmed.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for PendingFault {
    /// Log a fault that no job repeated alone.
    fn drop(&mut self) {
        if self.is_confirmed.load(Ordering::Relaxed) {
            return;
        }
        // The cause is unknown, so it does not count against any caller.
        log_fault(&self.version, &self.fault);
    }
}

/// Run the jobs of one turn as a batch. Returns the jobs that have to run again.
pub(super) fn run(
    jobs: Vec<QueuedJob<PendingJob>>,
    expired: Vec<PendingJob>,
) -> Vec<QueuedJob<PendingJob>> {
    let now = Instant::now();
    expired.into_iter().for_each(|job| drop(job.start(now)));
    let start = |QueuedJob { job, entry, number }: QueuedJob<PendingJob>| {
        job.start(now).map(|job| QueuedJob { job, entry, number })
    };
    let mut jobs: Vec<_> = jobs.into_iter().filter_map(start).collect();
    match (jobs.pop(), jobs.is_empty()) {
        (None, _) => {}
        (Some(only), true) => run_alone(only.job, now),
        (Some(last), false) => {
            jobs.push(last);
            return run_together(jobs, now);
        }
    }
    Vec::new()
}

fn run_alone(job: PendingJob, now: Instant) {
    let PendingJob {
        version, caller, inputs, fingerprint, stop, timer, answer, pending_fault, ..
    } = job;
    let request_span = timer.span.enter();
    let call = GuestCall::run(&version, now, &stop, || &inputs);
    call.report_times(&timer);
    if let Some(pending_fault) = &pending_fault {
        pending_fault.confirm_if_repeated(&call.outcome);
    }
    record_outcome(&version, caller, call.outcome.as_ref().err());
    let now = Instant::now();
    match (&call.outcome, fingerprint) {
        (Err(fault), fingerprint) if fault.is_deterministic() => {
            let quarantine = version.quarantine();
            let fingerprint = fingerprint.unwrap_or_else(|| quarantine.fingerprint(&inputs));
            quarantine.record_failure(fingerprint, now);
        }
        (Ok(_) | Err(Fault::Rejected(_)), Some(fingerprint)) => {
            version.quarantine().record_success(fingerprint);
        }
        _ => {}
    }
    if call.outcome.is_ok() {
        version.statistics().record_execution(&call.execution(Duration::ZERO), 1, clock::now());
    }
    let is_good = call.leaves_instance_usable();
    let _ = answer.send(call.outcome.map_err(PredictError::Guest));
    drop(request_span);
    // The caller has its outputs; releasing the instance does not delay it.
    if let Some(leased) = call.leased {
        version.pool().release(leased, is_good);
    }
}

fn run_together(mut jobs: Vec<QueuedJob<PendingJob>>, now: Instant) -> Vec<QueuedJob<PendingJob>> {
    let version = Arc::clone(&jobs[0].job.version);
    let rows: Vec<u64> = jobs.iter().map(|queued| queued.job.rows()).collect();
    let batch_span =
        tracing::info_span!("predict", requests = jobs.len(), rows = rows.iter().sum::<u64>());
    let logged = batch_span.enter();
    let stop = StopSignal::until_all_cancel(
        batch_deadline(&jobs, now),
        jobs.iter().map(|queued| &queued.job.stop),
    );
    let mut call = GuestCall::run(&version, now, &stop, || {
        let parts: Vec<_> = jobs.iter().map(|queued| &queued.job.inputs[..]).collect();
        batch::join(version.signature(), &parts)
    });
    jobs.iter().for_each(|queued| call.report_times(&queued.job.timer));
    drop(logged);
    let is_good = call.leaves_instance_usable();
    let outcome = std::mem::replace(&mut call.outcome, Ok(Vec::new()));
    let is_answered = outcome.is_ok();
    let split_start = Instant::now();
    let (outcomes, fault) = batch::part_outcomes(outcome, &rows);
    if is_answered && fault.is_none() {
        let execution = call.execution(split_start.elapsed());
        version.statistics().record_execution(&execution, jobs.len(), clock::now());
    }
    if let Some(fault) = fault {
        let (is_confirmed, version) = (AtomicBool::default(), Arc::clone(&version));
        let pending_fault = Arc::new(PendingFault { version, fault, is_confirmed });
        jobs.iter_mut()
            .for_each(|queued| queued.job.pending_fault = Some(Arc::clone(&pending_fault)));
    }
    let retries =
        jobs.into_iter().zip(outcomes).filter_map(|(queued, outcome)| deliver(queued, outcome));
    let retries = retries.collect();
    if let Some(leased) = call.leased {
        version.pool().release(leased, is_good);
    }
    retries
}

/// The deadline of a shared batch: the last of its jobs' deadlines, or earlier when it has used its
/// share of the shortest time that a job was given.
fn batch_deadline(jobs: &[QueuedJob<PendingJob>], now: Instant) -> Instant {
    let jobs = || jobs.iter().map(|queued| &queued.job);
    let last = jobs().map(|job| job.deadline).max().unwrap_or(now);
    let least = jobs().map(|job| job.deadline.saturating_duration_since(job.since)).min();
    last.min(now + least.unwrap_or_default() / BATCH_TIME_SHARE)
}

/// Deliver a job's part of the outcome to its caller; or return the job, if it has to run again.
fn deliver(
    mut queued: QueuedJob<PendingJob>,
    outcome: PartOutcome,
) -> Option<QueuedJob<PendingJob>> {
    let outcome = match outcome {
        PartOutcome::Answered(outputs) => Ok(outputs),
        PartOutcome::Rejected(rejections) => Err(Fault::Rejected(rejections)),
        PartOutcome::NonFinite(rejections) => Err(Fault::NonFiniteInput(rejections)),
        PartOutcome::Again | PartOutcome::Alone => {
            queued.job.attempts += 1;
            if matches!(outcome, PartOutcome::Alone) || queued.job.attempts >= MAX_BATCH_ATTEMPTS {
                queued.entry.batch_key = None;
            }
            return Some(queued);
        }
    };
    let PendingJob { version, caller, fingerprint, answer, .. } = queued.job;
    record_outcome(&version, caller, outcome.as_ref().err());
    if let (Ok(_), Some(fingerprint)) = (&outcome, fingerprint) {
        version.quarantine().record_success(fingerprint);
    }
    let _ = answer.send(outcome.map_err(PredictError::Guest));
    None
}

/// A finished call of the guest, with its measurements.
struct GuestCall {
    leased: Option<LeasedInstance>,
    outcome: Result<Vec<Tensor>, Fault>,
    rows: u64,
    /// When the inputs had been joined, the instance had been acquired, and the guest had returned.
    joined: Instant,
    instantiated: Instant,
    end: Instant,
    started: Instant,
}

impl GuestCall {
    fn run<I: AsRef<Vec<Tensor>>>(
        version: &ServableVersion,
        started: Instant,
        stop: &StopSignal,
        inputs: impl FnOnce() -> I,
    ) -> Self {
        let (mut leased, mut rows) = (None, 0);
        let (mut joined, mut instantiated) = (None, None);
        let predict = || {
            let inputs = inputs();
            rows = inputs.as_ref().first().map_or(0, Tensor::rows);
            joined = Some(Instant::now());
            let taken = version.pool().acquire(stop);
            instantiated = Some(Instant::now());
            leased.insert(taken?).predict(inputs.as_ref(), stop)
        };
        // A panic is a bug of the host. It fails the batch, but the thread survives.
        let outcome = catch_unwind(AssertUnwindSafe(predict))
            .unwrap_or_else(|_panic| Err(Fault::Host("an inference thread panicked".to_owned())));
        let end = Instant::now();
        let (joined, instantiated) = (joined.unwrap_or(end), instantiated.unwrap_or(end));
        let metrics = version.metrics();
        metrics.instantiate.record(instantiated.saturating_duration_since(joined));
        if leased.is_some() {
            metrics.predict.record(end.saturating_duration_since(instantiated));
            metrics.batch_rows.record(rows);
        }
        Self { leased, outcome, rows, joined, instantiated, end, started }
    }

    /// Record the stages of the call for one of its requests.
    fn report_times(&self, timer: &StageTimer) {
        timer.record_shared(Stage::Instantiate, self.started, self.instantiated);
        if self.leased.is_some() {
            timer.record_shared(Stage::Guest, self.instantiated, self.end);
        }
    }

    fn leaves_instance_usable(&self) -> bool {
        self.outcome.as_ref().err().is_none_or(Fault::leaves_instance_usable)
    }

    fn execution(&self, output: Duration) -> Execution {
        Execution {
            rows: self.rows,
            input: self.joined.saturating_duration_since(self.started),
            infer: self.end.saturating_duration_since(self.instantiated),
            output,
        }
    }
}

/// Log a fault here, because the caller may have disconnected, and record the outcome in the
/// breaker. A rejection is the caller's own fault and nothing that an operator has to know.
fn record_outcome(version: &ServableVersion, caller: CallerId, fault: Option<&Fault>) {
    let (breaker, now) = (version.breaker(), Instant::now());
    let Some(fault) = fault else { return breaker.record_success(caller, now) };
    log_fault(version, fault);
    match fault {
        Fault::Rejected(_) => breaker.record_success(caller, now),
        Fault::NonFiniteInput(_) => breaker.isolate(caller, now),
        fault if fault.counts_against_version() => {
            if let Some(suspended) = breaker.record_failure(caller, now) {
                log_suspension(version, suspended);
            }
        }
        _ => {}
    }
}

fn log_suspension(version: &ServableVersion, suspended: SuspensionScope) {
    let (model, version) = (&version.id().name, &version.id().version);
    match suspended {
        SuspensionScope::Version => {
            tracing::error!(target: "fault", %model, %version, "version suspended");
        }
        SuspensionScope::Key => {
            tracing::warn!(target: "fault", %model, %version, "version suspended for an API key");
        }
        SuspensionScope::Caller => {
            tracing::warn!(target: "fault", %model, %version, "version suspended for a caller");
        }
    }
}

fn log_fault(version: &ServableVersion, fault: &Fault) {
    version.faults().count(fault);
    if !fault.is_callers_fault() {
        let (model, version) = (&version.id().name, &version.id().version);
        tracing::warn!(target: "fault", %model, %version, kind = fault.kind(), trap = fault.trap(), "{fault}");
    }
}
