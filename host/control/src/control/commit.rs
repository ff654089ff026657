//! Changes of what is served, other than the loading that they may need: the one place where the
//! registry and the ledger change together.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use semver::Version;

use super::change::{ChangeOptions, ChangeOutcome, ChangeReport, DeployReport};
use super::error::ControlError;
use super::state::{Control, Writer};
use super::version_locks::VersionLock;
use crate::ledger::{Author, Change, IdempotencyLookup};
use crate::rollout::{self, Decision, ModelState, Operation, RolloutError, Rules, Transition};
use guesthouse_model::{ModelName, VersionId};
use guesthouse_runtime::version::ServableVersion;

/// How often a change is decided again because a version that it needs was not loaded. Each repetition
/// means that somebody else has made another change meanwhile.
const MAX_ATTEMPTS: usize = 16;

/// A change that may be made.
pub(super) struct Proposal<'a> {
    pub(super) model: &'a ModelName,
    pub(super) operation: &'a Operation,
    pub(super) options: &'a ChangeOptions,
    /// Whether it may use versions that are not loaded, because they are loaded later.
    pub(super) may_lack: bool,
}

/// Versions that have been loaded for a change, to be published together with it.
#[derive(Default)]
pub(super) struct Loaded {
    /// The version that is deployed. None in a dry run.
    pub(super) version: Option<ServableVersion>,
    /// What its deployment has found out.
    pub(super) report: Option<DeployReport>,
    /// Further versions that the change uses.
    pub(super) others: Vec<ServableVersion>,
}

/// A change that is about to become durable.
struct Decided {
    change: Change,
    next: ModelState,
    /// The answer that is stored for a repetition of the request.
    answer: String,
}

/// The outcome of an attempt to make a change.
pub(super) enum Attempt {
    /// It is made, or there was nothing to do.
    Made(ChangeOutcome),
    /// This version has to be loaded first.
    Load(Version),
}

impl Loaded {
    /// A version that was just deployed.
    pub(super) fn new(version: Option<ServableVersion>, report: DeployReport) -> Self {
        Self { version, report: Some(report), others: Vec::new() }
    }

    fn contains(&self, version: &Version) -> bool {
        self.version.iter().chain(&self.others).any(|loaded| loaded.id().version == *version)
    }

    fn take(&mut self) -> Vec<ServableVersion> {
        self.version.take().into_iter().chain(self.others.drain(..)).collect()
    }
}

impl Control {
    /// Apply the splits of the configuration file, if they are not those of the last time.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn configure(
        &self,
        splits: BTreeMap<ModelName, BTreeMap<Version, u32>>,
    ) -> Result<(), ControlError> {
        let known = self.registry.states().into_iter();
        let removed =
            known.filter(|(name, state)| state.configured.is_some() && !splits.contains_key(name));
        let removed: Vec<_> = removed.map(|(name, _)| (name, None)).collect();
        let configured = splits.into_iter().map(|(name, split)| (name, Some(split)));
        for (model, split) in configured.chain(removed) {
            self.configure_model(&model, &Operation::Configure { split })?;
        }
        Ok(())
    }

    /// The versions of the split are loaded first, unless the server is still starting. A version that
    /// cannot be loaded is left to the router, which gives its share to others.
    fn configure_model(
        &self,
        model: &ModelName,
        operation: &Operation,
    ) -> Result<(), ControlError> {
        let options = ChangeOptions::for_host("configuration");
        if !self.registry.snapshot().loading {
            match self.commit(model, operation, &options, None) {
                Err(ControlError::Load(error)) => {
                    let reason = error.failure().reason;
                    tracing::error!(%model, %reason, "a split names a version that cannot be loaded");
                }
                outcome => return outcome.map(drop),
            }
        }
        let proposal = Proposal { model, operation, options: &options, may_lack: true };
        self.try_commit(&proposal, &mut Loaded::default())?;
        self.is_load_due.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Make a change. The versions that it uses are loaded first, if they are not.
    ///
    /// # Errors
    /// [`ControlError`]; then nothing has changed.
    pub fn change(
        &self,
        model: &ModelName,
        operation: &Operation,
        options: &ChangeOptions,
    ) -> Result<ChangeOutcome, ControlError> {
        if let Some(answer) = self.stored_answer(options)? {
            return Ok(answer);
        }
        if self.registry.state(model).versions.is_empty() {
            return Err(ControlError::UnknownModel);
        }
        self.commit(model, operation, options, None)
    }

    /// The answer to the same request, if it was made before. The change that it reports has taken
    /// effect.
    pub(super) fn stored_answer(
        &self,
        options: &ChangeOptions,
    ) -> Result<Option<ChangeOutcome>, ControlError> {
        if options.request.is_some() {
            self.reconcile(&mut self.lock_writer())?;
        }
        self.look_up_answer(options)
    }

    fn look_up_answer(
        &self,
        options: &ChangeOptions,
    ) -> Result<Option<ChangeOutcome>, ControlError> {
        let Some(request) = &options.request else { return Ok(None) };
        match self.ledger.look_up(request)? {
            IdempotencyLookup::New => Ok(None),
            IdempotencyLookup::Answered(answer) => Ok(Some(ChangeOutcome::Replayed(answer))),
            IdempotencyLookup::Mismatch => Err(ControlError::IdempotencyMismatch),
        }
    }

    /// Make a change, and load the versions that it uses and that are not loaded. `loaded` is the version
    /// that it deploys.
    pub(super) fn commit(
        &self,
        model: &ModelName,
        operation: &Operation,
        options: &ChangeOptions,
        loaded: Option<Loaded>,
    ) -> Result<ChangeOutcome, ControlError> {
        let proposal = Proposal { model, operation, options, may_lack: false };
        let mut loaded = loaded.unwrap_or_default();
        let outcome = self.commit_or_load(&proposal, &mut loaded);
        // A version that should be loaded is kept, even if the change was refused.
        loaded.take().into_iter().for_each(|version| self.registry.insert_loaded(version));
        outcome
    }

    fn commit_or_load(
        &self,
        proposal: &Proposal<'_>,
        loaded: &mut Loaded,
    ) -> Result<ChangeOutcome, ControlError> {
        // Until the change is made, nobody else loads these versions or removes their files.
        let mut locks: Vec<VersionLock<'_>> = Vec::new();
        let mut files = None;
        let mut missing = None;
        for _ in 0..MAX_ATTEMPTS {
            let version = match self.try_commit(proposal, loaded)? {
                Attempt::Made(answer) => return Ok(answer),
                Attempt::Load(version) => version,
            };
            let id = VersionId { name: proposal.model.clone(), version };
            files.get_or_insert_with(|| self.hold_files());
            match self.locks.try_lock(&id) {
                Some(lock) => locks.push(lock),
                None => {
                    // Whoever loads it may wait for one of those that are locked here: start over.
                    loaded.others.clear();
                    locks.clear();
                    locks.push(self.locks.lock(&id));
                }
            }
            loaded.others.extend(self.load_for_change(&id)?);
            missing = Some(id.version);
        }
        Err(missing
            .map_or(ControlError::UnknownModel, |version| RolloutError::NotReady(version).into()))
    }

    /// Make a change, if every version that it uses is loaded. Whether it is allowed, and which versions
    /// it needs, is decided under the lock of the writer, whatever was seen before.
    pub(super) fn try_commit(
        &self,
        proposal: &Proposal<'_>,
        loaded: &mut Loaded,
    ) -> Result<Attempt, ControlError> {
        let Proposal { model, operation, options, may_lack } = *proposal;
        let mut writer = self.lock_writer();
        self.reconcile(&mut writer)?;
        // The same request may have been answered while this one waited for the lock.
        if let Some(answer) = self.look_up_answer(options)? {
            return Ok(Attempt::Made(answer));
        }
        let state = self.registry.state(model);
        options.check_revision(&state)?;
        let is_ready = |version: &Version| {
            let id = VersionId { name: model.clone(), version: version.clone() };
            // A dry run reports what would be, and a missing version would be loaded.
            options.dry_run || may_lack || loaded.contains(version) || self.is_loaded(&id)
        };
        let rules = Rules { revision: writer.revision + 1, ..self.rules(model, &state, &is_ready) };
        let transition = match rollout::decide(&state, operation, &rules)? {
            Decision::Apply(transition) => transition,
            Decision::Load(version) => return Ok(Attempt::Load(version)),
        };
        let is_changed = transition.state != state;
        let changed = ChangeReport {
            model: model.clone(),
            revision: if options.dry_run { state.revision } else { transition.state.revision },
            changed: is_changed,
            dry_run: options.dry_run,
            status: transition.status,
            before: state.routing.clone(),
            after: transition.state.routing.clone(),
            deploy: loaded.report.clone(),
        };
        let answer = serde_json::to_string(&changed).expect("an answer is JSON");
        if !is_changed && let Some(request) = &options.request {
            // A repetition gets the same answer, even if there is something to do by then.
            self.ledger.remember(request, &answer)?;
        }
        if !options.dry_run && is_changed {
            let change = describe(proposal, &state, &transition);
            let decided = Decided { change, next: transition.state, answer };
            self.apply(&mut writer, proposal, decided, loaded)?;
        }
        Ok(Attempt::Made(ChangeOutcome::Made(Box::new(changed))))
    }

    /// Make a change durable, and then effective.
    fn apply(
        &self,
        writer: &mut Writer,
        proposal: &Proposal<'_>,
        decided: Decided,
        loaded: &mut Loaded,
    ) -> Result<(), ControlError> {
        let Decided { change, next, answer } = decided;
        let (model, request) = (proposal.model, proposal.options.request.as_ref());
        let entry = match self.ledger.commit(&change, &next, request, &answer) {
            Ok(entry) => entry,
            Err(error) => {
                // The ledger may have it all the same; then it takes effect with its version.
                writer.is_uncertain = true;
                if self.ledger.models().is_ok_and(|held| held.get(model) == Some(&next)) {
                    self.registry.decide(model, next, loaded.take());
                }
                return Err(error.into());
            }
        };
        writer.revision = entry.revision;
        self.publish_head(entry.revision, entry.hash);
        self.registry.decide(model, next, loaded.take());
        log(&change, entry.revision);
        Ok(())
    }
}

fn log(change: &Change, revision: u64) {
    let Change { author: Author { actor, .. }, operation, model, status, .. } = change;
    let version = change.version.as_ref().map(tracing::field::display);
    let actor = guesthouse_model::terminal::printable(actor);
    tracing::info!(target: "change", revision, %actor, operation, %model, version, status, "changed");
}

/// The change as the history records it.
fn describe(proposal: &Proposal<'_>, state: &ModelState, transition: &Transition) -> Change {
    let Proposal { model, operation, options, .. } = *proposal;
    let version = match operation {
        Operation::Adopt { .. } => transition.state.routing.stable.clone(),
        _ => operation.version(state),
    };
    let digest = version.as_ref().and_then(|version| {
        let held = transition.state.versions.get(version).or(state.versions.get(version));
        held.map(|deployed| deployed.digest)
    });
    Change {
        author: options.author.clone(),
        operation: operation.as_str(),
        model: model.clone(),
        version,
        digest,
        status: Some(transition.status.as_str()),
        error: None,
        before: state.routing.clone(),
        after: transition.state.routing.clone(),
    }
}
