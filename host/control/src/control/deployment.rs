//! The deployment state machine: the steps from an artifact in the store to a version that serves.
//!
//! ```text
//! Received ─contract─▶ Checked ─find─▶ Compiled ─prove─▶ Proved ─replay─▶ Compared ─publish─▶ Published
//!                         └──▶ Uncompiled ─compile─▲
//! ```
//!
//! Whatever brings an artifact goes through the same steps, with the same golden examples, the same
//! metric and the same log lines. What differs is who learns of the outcome:
//!
//! | [`Origin`] | starts in | a failure | in the history |
//! |---|---|---|---|
//! | `Request`: an upload, or a load by name of a model that was unloaded | `Received` | is returned to the caller | yes |
//! | `Folder`: a file of the repository folder, at any time or for a load by name | `Checked`, because the files of one look are checked together | is shown as a failed version, and retried if it may pass | yes, when it is not retried any more |
//! | `Restore`: a start, or a retry of what a start could not load | `Checked` | is shown as a failed version, and retried if it may pass | no |
//! | `Load`: a load by name of a version that is deployed and not loaded | `Checked` | is returned to the caller | no |
//!
//! **A restore counts as a deployment.** The host that restores may be another release, or run on another
//! machine, than the one on which the version was deployed, so the version must give its golden answers
//! again and is compared with the next lower version again, and `guesthouse_deployments_total` counts the
//! outcome. It is no new decision: the contract is not checked again and the history, which records
//! decisions, is not touched. The metric counts every run of the machine, so an artifact that is retried
//! three times counts three times.
//!
//! A change that brings a retired version back (a rollback) runs the steps from `Checked` to `Proved` alone:
//! its caller waits, and the version was compared when it was deployed.
//!
//! The caller holds the lock of the version ([`VersionLocks`](super::version_locks::VersionLocks)) while a
//! deployment runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use semver::Version;

use super::change::{ChangeOptions, ChangeOutcome, DeployReport, Replay};
use super::commit::{Attempt, Loaded, Proposal};
use super::error::ControlError;
use super::state::Control;
use crate::ledger::Change;
use guesthouse_artifact::{Artifact, Digest};
use guesthouse_model::contract::{self, Bump};
use guesthouse_model::{Signature, VersionId};
use guesthouse_runtime::load::SignatureMismatch;
use guesthouse_runtime::measure::Counter;

use crate::registry::{Failure, LoadError, LoadState, catch_panic};
use crate::rollout::{self, ModelState, Operation, Promotion};
use guesthouse_model::terminal;
use guesthouse_runtime::preinit::queue::{CompileJob, CompilePriority};
use guesthouse_runtime::store::CompiledVersion;
use guesthouse_runtime::version::ServableVersion;

/// The steps that an operator sees of an upload, in order. The first two are done before the state
/// machine starts: the artifact is received into the store, and read.
pub const DEPLOY_STEPS: [&str; 8] =
    ["store", "verify", "contract", "find", "compile", "prove", "replay", "publish"];

/// The most differences of a replay that one log line carries.
const MAX_LOGGED_DIFFERENCES: usize = 8;

/// How many entries of a model's history are searched for the same failure.
const SEARCHED_ENTRIES: usize = 100;

/// Called with the name of each step when it starts.
pub(super) type Progress<'a> = &'a (dyn Fn(&'static str) + Sync);

/// A deployment that is to be run: its artifact and its origin.
#[derive(Clone)]
pub(super) struct Plan<'a> {
    pub(super) id: VersionId,
    pub(super) digest: Digest,
    pub(super) origin: Origin<'a>,
    pub(super) urgency: CompilePriority,
    /// Whether the model is not served without it.
    pub(super) is_stable: bool,
    /// The next lower version of those that were found together with it.
    pub(super) found_below: Option<(Version, Digest)>,
}

/// Where the artifact comes from.
#[derive(Clone)]
pub(super) enum Origin<'a> {
    /// A caller asked for this deployment, and waits for the outcome.
    Request(DeploymentRequest<'a>),
    /// A file of the repository folder.
    Folder,
    /// The ledger says that the version is deployed.
    Restore,
    /// A caller loads the model by its name, and the ledger says that this version is deployed.
    Load,
}

/// A deployment that a caller asked for.
#[derive(Clone)]
pub(super) struct DeploymentRequest<'a> {
    pub(super) promotion: Promotion,
    pub(super) options: &'a ChangeOptions,
    pub(super) progress: Progress<'a>,
    /// The artifact, which a dry run does not put into the store.
    pub(super) artifact: Arc<Artifact>,
}

/// How far a deployment has come.
pub(super) enum State {
    /// The artifact is a guest of this host.
    Received,
    /// The version number keeps its promise about the signature.
    Checked,
    /// There is no compiled form; making one is a job of this size.
    Uncompiled(CompileJob),
    /// The compiled form is in the store.
    Compiled(Arc<Artifact>, CompiledVersion),
    /// The version gives its own golden answers, and has warm instances.
    Proved(ServableVersion),
    /// The version has been compared with the next lower one, if there is one.
    Compared(ServableVersion, Option<Replay>),
    /// Requests can reach the version. The answer is for whoever asked for the deployment.
    Published(Option<ChangeOutcome>),
}

/// Why a deployment has left its thread.
pub(super) enum Progressed {
    /// It has to wait for the compiler; resume it in [`State::Uncompiled`].
    Waits(CompileJob),
    /// It is over.
    Ended(Result<Option<ChangeOutcome>, ControlError>),
}

/// One run of the state machine.
pub(super) struct Deployment<'a> {
    control: &'a Control,
    plan: &'a Plan<'a>,
    /// How far the version was loaded before this run.
    before: Option<LoadState>,
    started: Instant,
    is_compiled_now: bool,
}

impl<'a> Plan<'a> {
    /// A version that the ledger says is deployed.
    pub(super) fn recorded(
        id: VersionId,
        state: &ModelState,
        origin: Origin<'a>,
        urgency: CompilePriority,
    ) -> Option<Self> {
        let digest = state.versions.get(&id.version)?.digest;
        let is_stable = state.routing.stable.as_ref() == Some(&id.version);
        Some(Self { id, digest, origin, urgency, is_stable, found_below: None })
    }

    fn report_step(&self, step: &'static str) {
        if let Origin::Request(request) = &self.origin {
            (request.progress)(step);
        }
    }

    fn operation(&self) -> Operation {
        let promotion = match &self.origin {
            Origin::Request(request) => request.promotion,
            Origin::Folder | Origin::Restore | Origin::Load => Promotion::No,
        };
        Operation::Deploy { version: self.id.version.clone(), digest: self.digest, promotion }
    }

    fn report(&self, replay: Option<Replay>) -> DeployReport {
        DeployReport { version: self.id.version.clone(), digest: self.digest, replay }
    }
}

impl<'a> Deployment<'a> {
    /// A deployment whose version the caller has locked.
    pub(super) fn new(control: &'a Control, plan: &'a Plan<'a>) -> Self {
        let before = control.registry.load_state(&plan.id);
        Self { control, plan, before, started: Instant::now(), is_compiled_now: false }
    }

    /// Run from this state until the compiler is needed, or to the end. The outcome is counted, logged
    /// and shown.
    pub(super) fn advance(&mut self, state: State) -> Progressed {
        self.is_compiled_now = matches!(state, State::Uncompiled(_));
        let mut outcome = self.step(state);
        let outcome = loop {
            match outcome {
                Ok(State::Uncompiled(job)) => return Progressed::Waits(job),
                Ok(State::Published(answer)) => break Ok(answer),
                Ok(state) => outcome = self.step(state),
                Err(error) => break Err(error),
            }
        };
        self.conclude(&outcome);
        Progressed::Ended(outcome)
    }

    /// Run from this state to the end, on this thread.
    pub(super) fn run(&mut self, mut state: State) -> Result<Option<ChangeOutcome>, ControlError> {
        loop {
            match self.advance(state) {
                Progressed::Waits(job) => state = State::Uncompiled(job),
                Progressed::Ended(outcome) => return outcome,
            }
        }
    }

    /// Load the version for a change that publishes it: from `Checked` to `Proved`.
    fn load(&self) -> Result<ServableVersion, ControlError> {
        let mut state = State::Checked;
        loop {
            match self.step(state)? {
                State::Proved(version) => return Ok(version),
                next => state = next,
            }
        }
    }

    /// Do one step.
    fn step(&self, state: State) -> Result<State, ControlError> {
        let (plan, loader) = (self.plan, &self.control.loader);
        Ok(match state {
            State::Received => self.check()?,
            State::Checked => {
                plan.report_step("find");
                let artifact = self.artifact()?;
                match loader.find(&artifact)? {
                    Some(compiled) => State::Compiled(artifact, compiled),
                    None => {
                        plan.report_step("compile");
                        let length = artifact.size_bytes() as u64;
                        State::Uncompiled(loader.job(&plan.id.name, length, plan.urgency)?)
                    }
                }
            }
            State::Uncompiled(job) => match loader.compile(|| self.artifact(), job) {
                Err(error) if error.is_not_small(job) => State::Uncompiled(loader.as_large(job)),
                outcome => {
                    let (compiled, artifact) = outcome?;
                    State::Compiled(artifact, compiled)
                }
            },
            State::Compiled(artifact, compiled) => {
                plan.report_step("prove");
                State::Proved(loader.activate(&artifact, &compiled)?)
            }
            State::Proved(version) => {
                plan.report_step("replay");
                let replay = catch_panic(|| Ok(self.replay(&version)))?;
                State::Compared(version, replay)
            }
            State::Compared(version, replay) => {
                plan.report_step("publish");
                State::Published(self.publish(version, replay)?)
            }
            State::Published(answer) => State::Published(answer),
        })
    }

    /// The artifact. It is read from the store, unless it was just uploaded.
    fn artifact(&self) -> Result<Arc<Artifact>, LoadError> {
        match &self.plan.origin {
            Origin::Request(request) => Ok(Arc::clone(&request.artifact)),
            _ => Ok(Arc::new(self.control.loader.store.artifact(self.plan.digest)?)),
        }
    }

    /// Check a requested deployment against what is deployed.
    fn check(&self) -> Result<State, ControlError> {
        let (control, plan) = (self.control, self.plan);
        let Origin::Request(request) = &plan.origin else { return Ok(State::Checked) };
        let DeploymentRequest { options, artifact, .. } = request;
        // The previous holder of the lock may have been a repetition of this request.
        if let Some(answer) = control.stored_answer(options)? {
            return Ok(State::Published(Some(answer)));
        }
        plan.report_step("contract");
        let state = control.registry.state(&plan.id.name);
        options.check_revision(&state)?;
        let operation = plan.operation();
        let is_ready = |_: &Version| true;
        rollout::apply(&state, &operation, &control.rules(&plan.id.name, &state, &is_ready))?;
        let signature = artifact.signature().ok_or(LoadError::Signature(SignatureMismatch))?;
        control.check_contract(&state, &plan.id, signature)?;
        if control.is_loaded(&plan.id) {
            // It is deployed already, and only its promotion may be new. If it is undeployed before that is
            // decided, it is loaded below.
            let proposal =
                Proposal { model: &plan.id.name, operation: &operation, options, may_lack: false };
            let mut loaded = Loaded::new(None, plan.report(None));
            if let Attempt::Made(answer) = control.try_commit(&proposal, &mut loaded)? {
                return Ok(State::Published(Some(answer)));
            }
        }
        if !options.dry_run {
            control.loader.store.keep_artifact(artifact)?;
            control.registry.set_load_state(&plan.id, LoadState::Loading);
        }
        Ok(State::Checked)
    }

    /// How the version answers the golden examples of the next lower one. Differences refuse nothing:
    /// a new version may answer otherwise, and operators should know that it does.
    fn replay(&self, version: &ServableVersion) -> Option<Replay> {
        let (of, digest) = self.lower()?;
        let artifact = self.control.loader.store.artifact(digest).ok()?;
        let differences = version.replay(artifact.golden(), &artifact.descriptor().tolerances);
        let differences: Vec<_> = differences.iter().map(|line| terminal::reason(line)).collect();
        let (model, number) = (&version.id().name, &version.id().version);
        let (examples, different) = (artifact.golden().len(), differences.len());
        let shown = differences.iter().take(MAX_LOGGED_DIFFERENCES).cloned().collect::<Vec<_>>();
        let shown = (different > 0).then(|| shown.join("; "));
        tracing::info!(
            %model, version = %number, before = %of, examples, different, differences = shown,
            "replayed the golden examples of the version before"
        );
        Some(Replay { of, examples, differences })
    }

    /// The next lower version that is deployed, or was found together with this one and has not failed.
    fn lower(&self) -> Option<(Version, Digest)> {
        let plan = self.plan;
        let state = self.control.registry.state(&plan.id.name);
        let (lower, _) = state.neighbours(&plan.id.version);
        let deployed =
            lower.and_then(|lower| Some((lower.clone(), state.versions.get(lower)?.digest)));
        let has_failed = |version: &Version| {
            let id = VersionId { name: plan.id.name.clone(), version: version.clone() };
            matches!(self.control.registry.load_state(&id), Some(LoadState::Failed(_)))
        };
        let found = plan.found_below.clone().filter(|(version, _)| !has_failed(version));
        deployed.max(found)
    }

    /// Make the deployment durable and let requests reach the version.
    fn publish(
        &self,
        version: ServableVersion,
        replay: Option<Replay>,
    ) -> Result<Option<ChangeOutcome>, ControlError> {
        let (control, plan) = (self.control, self.plan);
        let folder = ChangeOptions::for_host("repository");
        let options = match &plan.origin {
            Origin::Request(request) => request.options,
            Origin::Folder => &folder,
            Origin::Restore | Origin::Load => {
                // If it was undeployed in the meantime, it is dropped.
                control.registry.insert_loaded(version);
                self.log_ready();
                return Ok(None);
            }
        };
        let version = (!options.dry_run).then_some(version);
        let loaded = Loaded::new(version, plan.report(replay));
        let answer = control.commit(&plan.id.name, &plan.operation(), options, Some(loaded))?;
        if !options.dry_run {
            self.log_ready();
        }
        Ok(Some(answer))
    }

    /// Count the outcome, and log, show or record a failure.
    fn conclude(&self, outcome: &Result<Option<ChangeOutcome>, ControlError>) {
        let (control, plan) = (self.control, self.plan);
        control.count_deployment(outcome.is_ok());
        if let Err(error) = outcome {
            control.conclude_failure(plan, error);
        }
        if matches!(plan.origin, Origin::Request(_))
            && matches!(control.registry.load_state(&plan.id), Some(LoadState::Loading))
        {
            // Nothing remains of a deployment that was refused or found nothing to do. It may be a
            // version that a start has yet to load, and has left to this deployment.
            control.registry.reset_load_state(&plan.id, self.before.clone());
            control.is_load_due.store(true, Ordering::Relaxed);
        }
    }

    fn log_ready(&self) {
        let (model, version) = (&self.plan.id.name, &self.plan.id.version);
        let from = if self.is_compiled_now { "compiled" } else { "store" };
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(%model, %version, from, milliseconds, "version ready");
    }
}

impl Control {
    /// Deploy an artifact that somebody has sent. The caller has put it into the store, unless it is a
    /// dry run. Runs golden examples on this thread, so its stack must be as large as guests may use.
    ///
    /// # Errors
    /// [`ControlError`]; the history says so as well, unless it is a dry run.
    pub fn deploy(
        &self,
        artifact: Artifact,
        promotion: Promotion,
        options: &ChangeOptions,
        progress: Progress<'_>,
    ) -> Result<ChangeOutcome, ControlError> {
        let (id, digest, artifact) = (artifact.id().clone(), artifact.digest(), Arc::new(artifact));
        let origin = Origin::Request(DeploymentRequest { promotion, options, progress, artifact });
        let urgency = CompilePriority::Operator;
        let plan = Plan { id, digest, origin, urgency, is_stable: true, found_below: None };
        // No file is removed from here on, and nobody else loads this version.
        let _files = self.hold_files();
        let _lock = self.locks.lock(&plan.id);
        let answer = Deployment::new(self, &plan).run(State::Received)?;
        Ok(answer.expect("a requested deployment is published by a change"))
    }

    /// Load a version by name that is deployed and not loaded.
    pub(super) fn load_if_needed(&self, id: &VersionId) -> Result<(), ControlError> {
        let _files = self.hold_files();
        let _lock = self.locks.lock(id);
        let state = self.registry.state(&id.name);
        let plan = Plan::recorded(id.clone(), &state, Origin::Load, CompilePriority::Operator);
        let Some(plan) = plan.filter(|_| !self.is_loaded(id)) else { return Ok(()) };
        self.on_guest_stack(|| Deployment::new(self, &plan).run(State::Checked).map(drop))
    }

    /// Load a version that a change brings into use; none if it is loaded already or not deployed any
    /// more. The caller has locked it.
    pub(super) fn load_for_change(
        &self,
        id: &VersionId,
    ) -> Result<Option<ServableVersion>, ControlError> {
        let state = self.registry.state(&id.name);
        let plan = Plan::recorded(id.clone(), &state, Origin::Load, CompilePriority::Operator);
        let Some(plan) = plan.filter(|_| !self.is_loaded(id)) else { return Ok(None) };
        self.on_guest_stack(|| Deployment::new(self, &plan).load().map(Some))
    }

    /// Run on a thread whose stack is as large as guests may use: golden examples run on it.
    pub(super) fn on_guest_stack<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, ControlError> + Send,
    ) -> Result<T, ControlError> {
        let stack = self.loader.engines.thread_stack_bytes();
        let builder = thread::Builder::new().name("load".to_owned()).stack_size(stack);
        thread::scope(|scope| match builder.spawn_scoped(scope, work).map(ScopedJoinHandle::join) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_panic)) => Err(LoadError::Panicked("it does not say why".to_owned()).into()),
            Err(error) => Err(LoadError::Panicked(format!("no thread: {error}")).into()),
        })
    }

    /// Whether the version's number keeps what it promises, after the next lower version and before
    /// the next higher one.
    pub(super) fn check_contract(
        &self,
        state: &ModelState,
        id: &VersionId,
        signature: &Signature,
    ) -> Result<(), ControlError> {
        let (lower, higher) = state.neighbours(&id.version);
        if let Some(lower) = lower
            && let Some(old) = self.signature(state, id, lower)
        {
            check_bump((lower, &old), (&id.version, signature))?;
        }
        if let Some(higher) = higher
            && let Some(new) = self.signature(state, id, higher)
        {
            check_bump((&id.version, signature), (higher, &new))?;
        }
        Ok(())
    }

    /// The signature of another version of the model.
    fn signature(&self, state: &ModelState, id: &VersionId, other: &Version) -> Option<Signature> {
        let other = VersionId { name: id.name.clone(), version: other.clone() };
        if let Some(LoadState::Loaded(version)) = self.registry.load_state(&other) {
            return Some(version.signature().clone());
        }
        let digest = state.versions.get(&other.version)?.digest;
        match self.loader.store.artifact(digest) {
            Ok(artifact) => artifact.signature().cloned(),
            Err(error) => {
                let (model, version) = (&other.name, &other.version);
                let reason = crate::registry::error_chain(&error);
                tracing::warn!(%model, %version, reason, "cannot be compared with: its artifact is lost");
                None
            }
        }
    }

    fn count_deployment(&self, is_success: bool) {
        self.loader.meters.outcomes.with(&is_success, Counter::count);
    }

    /// A file of the folder was refused before its deployment could start, and is shown as such.
    pub(super) fn refuse(&self, plan: &Plan<'_>, error: &ControlError) {
        self.count_deployment(false);
        self.conclude_failure(plan, error);
    }

    /// A file of the folder was refused because another artifact has its version.
    pub(super) fn refuse_conflict(&self, plan: &Plan<'_>, error: &ControlError) {
        self.count_deployment(false);
        self.record_failure(plan, error);
    }

    fn conclude_failure(&self, plan: &Plan<'_>, error: &ControlError) {
        let (model, version) = (&plan.id.name, &plan.id.version);
        let failure = error.failure();
        let (step, reason) = (failure.step, &*failure.reason);
        match &plan.origin {
            Origin::Request(request) if request.options.dry_run => {}
            Origin::Request(_) => {
                tracing::error!(%model, %version, step, reason, "failed to deploy a version");
                self.record_failure(plan, error);
            }
            Origin::Load => {
                tracing::error!(%model, %version, step, reason, "failed to load a version");
            }
            Origin::Folder | Origin::Restore => {
                if self.show_failed(&plan.id, failure).is_none() {
                    self.record_failure(plan, error);
                }
            }
        }
    }

    /// Show a version that cannot serve, with the reason in the log. What is loaded stays loaded. After
    /// a failure that may pass, the version is tried again at the time that is returned.
    fn show_failed(&self, id: &VersionId, failure: Failure) -> Option<Instant> {
        let retry_at = self.retries.note(id, failure.cause, Instant::now());
        let failure = Failure { retry_at, ..failure };
        // Before the line is logged, so that its readers find the version in this state.
        self.registry.set_load_state(id, LoadState::Failed(failure.clone()));
        let (model, version) = (&id.name, &id.version);
        let (step, reason) = (failure.step, &*failure.reason);
        let wait =
            retry_at.map(|time| time.saturating_duration_since(Instant::now()).as_secs_f32());
        tracing::error!(%model, %version, step, reason, retry_in_seconds = wait, "failed to load a version");
        retry_at
    }

    /// Write a failed deployment into the history, unless the version is deployed all the same.
    fn record_failure(&self, plan: &Plan<'_>, error: &ControlError) {
        let (model, version) = (&plan.id.name, &plan.id.version);
        let state = self.registry.state(model);
        if state.versions.get(version).is_some_and(|deployed| deployed.digest == plan.digest) {
            return;
        }
        let reason = error.failure().reason;
        let author = match &plan.origin {
            Origin::Request(request) => request.options.author.clone(),
            // The same file may be found again at each start.
            _ if self.is_recorded(plan, &reason) => return,
            _ => ChangeOptions::for_host("repository").author,
        };
        let routing = state.routing;
        let change = Change {
            author,
            operation: "deploy",
            model: model.clone(),
            version: Some(version.clone()),
            digest: Some(plan.digest),
            status: None,
            error: Some(reason.to_string()),
            before: routing.clone(),
            after: routing,
        };
        let mut writer = self.lock_writer();
        let noted = self.reconcile(&mut writer).and_then(|()| self.ledger.record_failure(&change));
        writer.is_uncertain |= noted.is_err();
        match noted {
            Ok(entry) => self.publish_head(entry.revision, entry.hash),
            Err(error) => {
                let reason = crate::registry::error_chain(&error);
                tracing::error!(%model, %version, reason, "cannot write down that a deployment failed");
            }
        }
    }

    /// Whether the last that the history says of this artifact is that it failed for this reason.
    fn is_recorded(&self, plan: &Plan<'_>, reason: &str) -> bool {
        let entries = self.ledger.history(Some(&plan.id.name), None, SEARCHED_ENTRIES);
        let entries = entries.unwrap_or_default();
        let last = entries.iter().find(|entry| entry.digest == Some(plan.digest));
        last.is_some_and(|entry| entry.error.as_deref() == Some(reason))
    }
}

/// Whether the step between two version numbers is as large as the one between their signatures.
fn check_bump(
    (old, was): (&Version, &Signature),
    (new, is): (&Version, &Signature),
) -> Result<(), ControlError> {
    let changes = contract::changes(was, is);
    let promised = Bump::between(old, new);
    if promised >= Some(contract::required_bump(&changes)) {
        return Ok(());
    }
    let broken = changes.into_iter().filter(|change| Some(change.bump) > promised).collect();
    Err(ControlError::Contract { old: old.clone(), new: new.clone(), changes: broken })
}
