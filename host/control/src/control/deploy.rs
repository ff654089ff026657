//! Deploying one artifact.

use std::sync::atomic::Ordering;

use semver::Version;

use super::Control;
use super::ask::{Answer, Ask, ControlError, DeployReport, Replay};
use super::commit::{Attempt, Loaded, Proposal};
use crate::ledger::Change;
use crate::registry::Slot;
use crate::rollout::{ModelState, Operation, Promotion};
use guesthouse_artifact::{Artifact, Digest};
use guesthouse_model::contract::{self, Bump};
use guesthouse_model::{Signature, VersionId};
use guesthouse_runtime::measure::Counter;
use guesthouse_runtime::preinit::queue::CompilePriority;
use guesthouse_runtime::version::ServableVersion;

/// Whom a deployment tells how far it is: the name of the step that begins.
pub(super) type Progress<'a> = &'a dyn Fn(&'static str);

impl Control {
    /// Check an artifact, load it, prove it, and make it a version that is served to who asks for it.
    /// The caller has put it into the store, unless it is a trial.
    ///
    /// # Errors
    /// [`ControlError`]; the history says so as well, if there is a version at all.
    pub fn deploy(
        &self,
        artifact: Artifact,
        promotion: Promotion,
        ask: &Ask,
        progress: Progress<'_>,
    ) -> Result<Answer, ControlError> {
        let (id, digest) = (artifact.id().clone(), artifact.digest());
        let outcome = self.try_deploy(artifact, promotion, ask, progress);
        self.loader.meters.outcomes.with(&outcome.is_ok(), Counter::count);
        if let Err(error) = &outcome
            && !ask.dry_run
        {
            self.note_failure(&id, digest, ask, error);
        }
        outcome
    }

    fn try_deploy(
        &self,
        artifact: Artifact,
        promotion: Promotion,
        ask: &Ask,
        progress: Progress<'_>,
    ) -> Result<Answer, ControlError> {
        if let Some(answer) = self.answered(ask)? {
            return Ok(answer);
        }
        let (id, digest) = (artifact.id().clone(), artifact.digest());
        // Nothing is collected from here on, and nobody else loads this version.
        let _loading = self.begin_loading();
        let _turn = self.turns.take(&id);
        // The one who was waited for may have been this very request.
        if let Some(answer) = self.answered(ask)? {
            return Ok(answer);
        }
        let state = self.registry.state(&id.name);
        ask.check_revision(&state)?;
        let operation = Operation::Deploy { version: id.version.clone(), digest, promotion };
        let is_ready = |_: &Version| true;
        crate::rollout::apply(&state, &operation, &self.rules(&id.name, &state, &is_ready))?;
        progress("contract");
        let signature = artifact.signature().ok_or(crate::registry::LoadError::Signature)?;
        self.check_contract(&state, &id, signature)?;
        let mut report = DeployReport { version: id.version.clone(), digest, replay: None };
        if self.is_loaded(&id) {
            // It was deployed before; only its promotion may be new. If it is undeployed before that is
            // decided, it is loaded below.
            let proposal =
                Proposal { model: &id.name, operation: &operation, ask, may_lack: false };
            let mut loaded = Loaded::new(None, report.clone());
            if let Attempt::Made(answer) = self.try_commit(&proposal, &mut loaded)? {
                return Ok(answer);
            }
        }
        let before = self.registry.slot(&id);
        if !ask.dry_run {
            self.loader.store.keep_artifact(&artifact)?;
            self.registry.set_slot(&id, Slot::Loading);
        }
        let loaded = self.load(artifact, progress);
        let version = loaded.inspect_err(|_| self.give_up(&id, before.clone()))?;
        progress("replay");
        report.replay = self.replay(&state, &version);
        progress("publish");
        let version = (!ask.dry_run).then_some(version);
        let outcome = self.commit(&id.name, &operation, ask, Some(Loaded::new(version, report)));
        // In a trial, or if the change was refused, nothing remains of it.
        if matches!(self.registry.slot(&id), Some(Slot::Loading)) {
            self.give_up(&id, before);
        }
        outcome
    }

    /// A version is as it was before somebody tried to deploy it.
    fn give_up(&self, id: &VersionId, before: Option<Slot>) {
        self.registry.reset_slot(id, before);
        // It may be one that a start has yet to load, and has left to this deployment.
        self.is_missing.store(true, Ordering::Relaxed);
    }

    fn load(
        &self,
        artifact: Artifact,
        progress: Progress<'_>,
    ) -> Result<ServableVersion, ControlError> {
        progress("find");
        let compiled = match self.loader.find(&artifact)? {
            Some(compiled) => compiled,
            None => {
                progress("compile");
                self.loader.compile(&artifact, CompilePriority::Operator)?
            }
        };
        progress("prove");
        Ok(self.loader.activate(artifact, &compiled)?)
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
            check_step((lower, &old), (&id.version, signature))?;
        }
        if let Some(higher) = higher
            && let Some(new) = self.signature(state, id, higher)
        {
            check_step((&id.version, signature), (higher, &new))?;
        }
        Ok(())
    }

    /// The signature of another version of the model.
    fn signature(&self, state: &ModelState, id: &VersionId, other: &Version) -> Option<Signature> {
        let other = VersionId { name: id.name.clone(), version: other.clone() };
        if let Some(Slot::Loaded(version)) = self.registry.slot(&other) {
            return Some(version.signature().clone());
        }
        let digest = state.versions.get(&other.version)?.digest;
        match self.loader.store.artifact(digest) {
            Ok(artifact) => artifact.signature().cloned(),
            Err(error) => {
                let (model, version) = (&other.name, &other.version);
                let reason = crate::registry::chain(&error);
                tracing::warn!(%model, %version, reason, "cannot be compared with: its artifact is lost");
                None
            }
        }
    }

    /// How the version answers the golden examples of the next lower one.
    fn replay(&self, state: &ModelState, version: &ServableVersion) -> Option<Replay> {
        let (lower, _) = state.neighbours(&version.id().version);
        let of = lower?.clone();
        let artifact = self.loader.store.artifact(state.versions.get(&of)?.digest).ok()?;
        let tolerances = &artifact.descriptor().tolerances;
        let differences = version.replay(artifact.golden(), tolerances);
        let differences: Vec<_> =
            differences.iter().map(|line| guesthouse_model::terminal::reason(line)).collect();
        let (model, number) = (&version.id().name, &version.id().version);
        let examples = artifact.golden().len();
        tracing::info!(
            %model, version = %number, before = %of, examples, different = differences.len(),
            "replayed the golden examples of the version before"
        );
        Some(Replay { of, examples, differences })
    }

    fn note_failure(&self, id: &VersionId, digest: Digest, ask: &Ask, error: &ControlError) {
        let failure = error.failure();
        let (model, version) = (&id.name, &id.version);
        let (step, reason) = (failure.step, &*failure.reason);
        tracing::error!(%model, %version, step, reason, "failed to deploy a version");
        let state = self.registry.state(model);
        if state.versions.get(version).is_some_and(|deployed| deployed.digest == digest) {
            // It is there, whatever else failed.
            return;
        }
        let routing = state.routing;
        let change = Change {
            author: ask.author.clone(),
            operation: "deploy",
            model: model.clone(),
            version: Some(version.clone()),
            digest: Some(digest),
            status: None,
            error: Some(reason.to_owned()),
            before: routing.clone(),
            after: routing,
        };
        let mut head = self.lock_head();
        let noted = self.make_sure(&mut head).and_then(|()| self.ledger.note_failure(&change));
        head.is_unsure |= noted.is_err();
        match noted {
            Ok(entry) => self.show_head(entry.revision, entry.hash),
            Err(error) => {
                let reason = crate::registry::chain(&error);
                tracing::error!(%model, %version, reason, "cannot write down that a deployment failed");
            }
        }
    }
}

/// Whether the step between two numbers is as large as the one between their signatures.
fn check_step(
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
