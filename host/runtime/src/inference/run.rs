//! A batch on its thread: one call of the guest, and the delivery of its outcome.
//!
//! What one caller's rows do to a batch costs the others nothing but time: they are run again, and in
//! the end each by itself. A job is run together with others [`TRIES_TOGETHER`] times at most and
//! alone once, so that no guest keeps a thread busy for ever.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::PredictError;
use super::batch::{self, Fate};
use super::queue::Queued;
use crate::clock;
use crate::guest::{Fault, Stop};
use crate::measure::Counter;
use crate::pool::Leased;
use crate::stages::{Stage, StageTimer};
use crate::version::statistics::Execution;
use crate::version::{CallerId, Fingerprint, ServableVersion, Suspended};
use guesthouse_model::Tensor;

/// How often rows are run together with others before they are run alone. Guests say of all rows at
/// once what is wrong, so that twice is enough for any that means well.
const TRIES_TOGETHER: u8 = 3;

/// Which part of the time that callers gave a batch of several may take: then there is as much again
/// to run them one by one, if one of them has made the guest hang.
const BATCH_PART: u32 = 2;

/// What a caller has submitted.
pub(super) struct Job {
    pub(super) version: Arc<ServableVersion>,
    pub(super) caller: CallerId,
    /// Shared with whoever wants to compare the answer with another version's.
    pub(super) inputs: Arc<Vec<Tensor>>,
    /// Of the inputs, where the version broke down lately.
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) deadline: Instant,
    /// When it began to wait.
    pub(super) since: Instant,
    /// When it is too late to begin, if that is before the deadline.
    pub(super) begin: Option<BeginBy>,
    pub(super) stop: Stop,
    /// Measures the stages that it went through.
    pub(super) timer: StageTimer,
    pub(super) answer: oneshot::Sender<Result<Vec<Tensor>, PredictError>>,
    /// How often it has been run with others.
    pub(super) tries: u8,
    /// What it may have done to a batch.
    pub(super) suspicion: Option<Arc<Suspicion>>,
}

/// When it is too late to begin a job; whoever sees that first says so.
#[derive(Clone)]
pub(super) struct BeginBy {
    pub(super) latest: Instant,
    pub(super) is_decided: Arc<AtomicBool>,
}

impl BeginBy {
    /// Whether nobody has begun it or given it up before.
    pub(super) fn decide(&self) -> bool {
        !self.is_decided.swap(true, Ordering::Relaxed)
    }
}

impl Job {
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let is_late = |begin: &BeginBy| self.tries == 0 && now >= begin.latest;
        self.answer.is_closed() || now >= self.deadline || self.begin.as_ref().is_some_and(is_late)
    }

    fn rows(&self) -> u64 {
        self.inputs.first().map_or(0, Tensor::rows)
    }

    /// Whether the version keeps breaking down on these inputs.
    fn is_quarantined(&mut self, now: Instant) -> bool {
        if self.tries > 0 {
            return false;
        }
        let quarantine = self.version.quarantine();
        self.fingerprint = quarantine.fingerprint_if_needed(&self.inputs, now);
        self.fingerprint.is_some_and(|inputs| !quarantine.admits(inputs, now))
    }

    /// It has a thread; back it comes, unless it is too late for it.
    fn begin(mut self, now: Instant) -> Option<Self> {
        let mut is_late = false;
        if self.tries == 0 {
            let measured = self.version.measured();
            self.version.statistics().waited(now.saturating_duration_since(self.since));
            self.timer.record(Stage::Queue, self.since, now, &measured.queue);
            if let Some(begin) = &self.begin {
                if !begin.decide() {
                    return None;
                }
                is_late = now >= begin.latest;
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
        self.version.measured().rejections.with(&reason, Counter::count);
        // The caller may have gone in the meantime, which is its right.
        let _ = self.answer.send(Err(error));
        None
    }
}

/// A batch of several callers that came to nothing, until it is known whose fault that was. Each of
/// them holds it until it has been run alone.
pub(super) struct Suspicion {
    version: Arc<ServableVersion>,
    fault: Fault,
    /// One of them did it again. That has been accounted for.
    is_confirmed: AtomicBool,
}

impl Suspicion {
    fn tell(&self, outcome: &Result<Vec<Tensor>, Fault>) {
        if outcome.as_ref().is_err_and(|fault| !fault.is_callers()) {
            self.is_confirmed.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Suspicion {
    /// What nobody did alone has happened all the same, once.
    fn drop(&mut self) {
        if self.is_confirmed.load(Ordering::Relaxed) {
            return;
        }
        // Nobody knows whose it was, so it is held against nobody.
        report(&self.version, &self.fault);
    }
}

/// Run what has got a turn. What is to be run again comes back.
pub(super) fn run(jobs: Vec<Queued<Job>>, over: Vec<Job>) -> Vec<Queued<Job>> {
    let now = Instant::now();
    over.into_iter().for_each(|job| drop(job.begin(now)));
    let begin = |Queued { job, place, number }: Queued<Job>| {
        job.begin(now).map(|job| Queued { job, place, number })
    };
    let mut jobs: Vec<_> = jobs.into_iter().filter_map(begin).collect();
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

fn run_alone(job: Job, now: Instant) {
    let Job { version, caller, inputs, fingerprint, stop, timer, answer, suspicion, .. } = job;
    let logged_with_the_request = timer.span.enter();
    let called = Called::of(&version, now, &stop, || &inputs);
    called.tell(&timer);
    if let Some(suspicion) = &suspicion {
        suspicion.tell(&called.outcome);
    }
    account(&version, caller, called.outcome.as_ref().err());
    let now = Instant::now();
    match (&called.outcome, fingerprint) {
        (Err(fault), fingerprint) if fault.is_repeatable() => {
            let quarantine = version.quarantine();
            let fingerprint = fingerprint.unwrap_or_else(|| quarantine.fingerprint(&inputs));
            quarantine.broke_down(fingerprint, now);
        }
        (Ok(_) | Err(Fault::Rejected(_)), Some(fingerprint)) => {
            version.quarantine().succeeded(fingerprint);
        }
        _ => {}
    }
    if called.outcome.is_ok() {
        version.statistics().executed(&called.execution(Duration::ZERO), 1, clock::now());
    }
    let is_good = called.leaves_good_instance();
    let _ = answer.send(called.outcome.map_err(PredictError::Guest));
    drop(logged_with_the_request);
    // The caller has its answer; the rest is on nobody's time.
    if let Some(leased) = called.leased {
        version.pool().give_back(leased, is_good);
    }
}

fn run_together(mut jobs: Vec<Queued<Job>>, now: Instant) -> Vec<Queued<Job>> {
    let version = Arc::clone(&jobs[0].job.version);
    let rows: Vec<u64> = jobs.iter().map(|queued| queued.job.rows()).collect();
    let of_no_single_request =
        tracing::info_span!("predict", requests = jobs.len(), rows = rows.iter().sum::<u64>());
    let logged = of_no_single_request.enter();
    let stop = Stop::of_all(end_of_batch(&jobs, now), jobs.iter().map(|queued| &queued.job.stop));
    let mut called = Called::of(&version, now, &stop, || {
        let parts: Vec<_> = jobs.iter().map(|queued| &queued.job.inputs[..]).collect();
        batch::join(version.signature(), &parts)
    });
    jobs.iter().for_each(|queued| called.tell(&queued.job.timer));
    drop(logged);
    let is_good = called.leaves_good_instance();
    let outcome = std::mem::replace(&mut called.outcome, Ok(Vec::new()));
    let is_answered = outcome.is_ok();
    let begin = Instant::now();
    let (fates, fault) = batch::settle(outcome, &rows);
    if is_answered && fault.is_none() {
        let execution = called.execution(begin.elapsed());
        version.statistics().executed(&execution, jobs.len(), clock::now());
    }
    if let Some(fault) = fault {
        let (is_confirmed, version) = (AtomicBool::default(), Arc::clone(&version));
        let suspicion = Arc::new(Suspicion { version, fault, is_confirmed });
        jobs.iter_mut().for_each(|queued| queued.job.suspicion = Some(Arc::clone(&suspicion)));
    }
    let again = jobs.into_iter().zip(fates).filter_map(|(queued, fate)| meet(queued, fate));
    let again = again.collect();
    if let Some(leased) = called.leased {
        version.pool().give_back(leased, is_good);
    }
    again
}

/// A batch ends at the last deadline of its callers, or when it has taken its part of the time that
/// the most hurried of them gave.
fn end_of_batch(jobs: &[Queued<Job>], now: Instant) -> Instant {
    let jobs = || jobs.iter().map(|queued| &queued.job);
    let last = jobs().map(|job| job.deadline).max().unwrap_or(now);
    let least = jobs().map(|job| job.deadline.saturating_duration_since(job.since)).min();
    last.min(now + least.unwrap_or_default() / BATCH_PART)
}

/// Tell a caller what became of its rows, or have them run again.
fn meet(mut queued: Queued<Job>, fate: Fate) -> Option<Queued<Job>> {
    let outcome = match fate {
        Fate::Answered(outputs) => Ok(outputs),
        Fate::Rejected(rejections) => Err(Fault::Rejected(rejections)),
        Fate::NonFinite(rejections) => Err(Fault::NonFiniteInput(rejections)),
        Fate::Again | Fate::Alone => {
            queued.job.tries += 1;
            if matches!(fate, Fate::Alone) || queued.job.tries >= TRIES_TOGETHER {
                queued.place.group = None;
            }
            return Some(queued);
        }
    };
    let Job { version, caller, fingerprint, answer, .. } = queued.job;
    account(&version, caller, outcome.as_ref().err());
    if let (Ok(_), Some(fingerprint)) = (&outcome, fingerprint) {
        version.quarantine().succeeded(fingerprint);
    }
    let _ = answer.send(outcome.map_err(PredictError::Guest));
    None
}

/// A call of the guest, with what it took.
struct Called {
    leased: Option<Leased>,
    outcome: Result<Vec<Tensor>, Fault>,
    rows: u64,
    /// When the rows were put together, there was an instance, and the guest was done.
    joined: Instant,
    instantiated: Instant,
    end: Instant,
    begun: Instant,
}

impl Called {
    fn of<I: AsRef<Vec<Tensor>>>(
        version: &ServableVersion,
        begun: Instant,
        stop: &Stop,
        inputs: impl FnOnce() -> I,
    ) -> Self {
        let (mut leased, mut rows) = (None, 0);
        let (mut joined, mut instantiated) = (None, None);
        let predict = || {
            let inputs = inputs();
            rows = inputs.as_ref().first().map_or(0, Tensor::rows);
            joined = Some(Instant::now());
            let taken = version.pool().take(stop);
            instantiated = Some(Instant::now());
            leased.insert(taken?).predict(inputs.as_ref(), stop)
        };
        // A panic here is a bug of the host; it costs the batch, not the thread.
        let outcome = catch_unwind(AssertUnwindSafe(predict))
            .unwrap_or_else(|_panic| Err(Fault::Host("an inference thread panicked".to_owned())));
        let end = Instant::now();
        let (joined, instantiated) = (joined.unwrap_or(end), instantiated.unwrap_or(end));
        let measured = version.measured();
        measured.instantiate.record(instantiated.saturating_duration_since(joined));
        if leased.is_some() {
            measured.predict.record(end.saturating_duration_since(instantiated));
            measured.batch_rows.record(rows);
        }
        Self { leased, outcome, rows, joined, instantiated, end, begun }
    }

    /// Tell a request what it went through.
    fn tell(&self, timer: &StageTimer) {
        timer.record_shared(Stage::Instantiate, self.begun, self.instantiated);
        if self.leased.is_some() {
            timer.record_shared(Stage::Guest, self.instantiated, self.end);
        }
    }

    fn leaves_good_instance(&self) -> bool {
        self.outcome.as_ref().err().is_none_or(Fault::spares_instance)
    }

    fn execution(&self, output: Duration) -> Execution {
        Execution {
            rows: self.rows,
            input: self.joined.saturating_duration_since(self.begun),
            infer: self.end.saturating_duration_since(self.instantiated),
            output,
        }
    }
}

/// Log a fault where it happens, because the caller may have gone, and hold it against the caller. A
/// rejection is the caller's own fault and no news for an operator.
fn account(version: &ServableVersion, caller: CallerId, fault: Option<&Fault>) {
    let (breaker, now) = (version.breaker(), Instant::now());
    let Some(fault) = fault else { return breaker.succeeded(caller, now) };
    report(version, fault);
    match fault {
        Fault::Rejected(_) => breaker.succeeded(caller, now),
        Fault::NonFiniteInput(_) => breaker.isolate(caller, now),
        fault if fault.condemns_version() => {
            if let Some(suspended) = breaker.failed(caller, now) {
                report_suspension(version, suspended);
            }
        }
        _ => {}
    }
}

fn report_suspension(version: &ServableVersion, suspended: Suspended) {
    let (model, version) = (&version.id().name, &version.id().version);
    match suspended {
        Suspended::Version => {
            tracing::error!(target: "fault", %model, %version, "version suspended");
        }
        Suspended::Key => {
            tracing::warn!(target: "fault", %model, %version, "version suspended for an API key");
        }
        Suspended::Caller => {
            tracing::warn!(target: "fault", %model, %version, "version suspended for a caller");
        }
    }
}

fn report(version: &ServableVersion, fault: &Fault) {
    version.faults().count(fault);
    if !fault.is_callers() {
        let (model, version) = (&version.id().name, &version.id().version);
        tracing::warn!(target: "fault", %model, %version, kind = fault.kind(), trap = fault.trap(), "{fault}");
    }
}
