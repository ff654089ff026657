//! The one place where what is served changes.

use semver::Version;

use super::ask::{Answer, Ask, Changed, ControlError, DeployReport};
use super::turns::Turn;
use super::{Control, Head};
use crate::ledger::{Author, Change};
use crate::rollout::{self, Decision, ModelState, Operation, Outcome, Refusal, Rules};
use guesthouse_model::{ModelName, VersionId};
use guesthouse_runtime::version::ServableVersion;

/// How often a change is decided again because a version that it needs was not loaded. Each time,
/// somebody else has made another change meanwhile.
const MAX_ATTEMPTS: usize = 16;

/// A change that may be made.
pub(super) struct Proposal<'a> {
    pub(super) model: &'a ModelName,
    pub(super) operation: &'a Operation,
    pub(super) ask: &'a Ask,
    /// Whether it may bring into use what is not loaded, because that is loaded later.
    pub(super) may_lack: bool,
}

/// What has been loaded for a change, to be published together with it.
#[derive(Default)]
pub(super) struct Loaded {
    /// None for a trial that is not to change anything.
    pub(super) version: Option<ServableVersion>,
    /// What a deployment has found out.
    pub(super) report: Option<DeployReport>,
    /// Further versions that are brought into use.
    pub(super) others: Vec<ServableVersion>,
}

/// A change that is about to be written down.
struct Decided {
    change: Change,
    next: ModelState,
    /// For who asks for the same again.
    answer: String,
}

/// What came of trying to make a change.
pub(super) enum Attempt {
    /// It is made, or there was nothing to do.
    Made(Answer),
    /// This version has to be loaded before.
    Load(Version),
}

impl Loaded {
    /// A version that was deployed.
    pub(super) fn new(version: Option<ServableVersion>, report: DeployReport) -> Self {
        Self { version, report: Some(report), others: Vec::new() }
    }

    fn has(&self, version: &Version) -> bool {
        self.version.iter().chain(&self.others).any(|loaded| loaded.id().version == *version)
    }

    fn take(&mut self) -> Vec<ServableVersion> {
        self.version.take().into_iter().chain(self.others.drain(..)).collect()
    }
}

impl Control {
    /// Make a change, and load what it brings into use and is not loaded. `loaded` is the version that
    /// it is about, if that has just been loaded.
    pub(super) fn commit(
        &self,
        model: &ModelName,
        operation: &Operation,
        ask: &Ask,
        loaded: Option<Loaded>,
    ) -> Result<Answer, ControlError> {
        let proposal = Proposal { model, operation, ask, may_lack: false };
        let mut loaded = loaded.unwrap_or_default();
        let outcome = self.commit_or_load(&proposal, &mut loaded);
        // What was loaded and is to be is not thrown away because the change was refused.
        loaded.take().into_iter().for_each(|version| self.registry.offer(version));
        outcome
    }

    fn commit_or_load(
        &self,
        proposal: &Proposal<'_>,
        loaded: &mut Loaded,
    ) -> Result<Answer, ControlError> {
        // Nobody else loads these versions until the change is made, or removes their files.
        let mut turns: Vec<Turn<'_>> = Vec::new();
        let mut loading = None;
        let mut missing = None;
        for _ in 0..MAX_ATTEMPTS {
            let version = match self.try_commit(proposal, loaded)? {
                Attempt::Made(answer) => return Ok(answer),
                Attempt::Load(version) => version,
            };
            let id = VersionId { name: proposal.model.clone(), version };
            loading.get_or_insert_with(|| self.begin_loading());
            match self.turns.try_take(&id) {
                Some(turn) => turns.push(turn),
                None => {
                    // Somebody loads it, and may wait for one of those: all over again.
                    loaded.others.clear();
                    turns.clear();
                    turns.push(self.turns.take(&id));
                }
            }
            loaded.others.extend(self.load_deployed(&id)?);
            missing = Some(id.version);
        }
        Err(missing.map_or(ControlError::UnknownModel, |version| Refusal::NotReady(version).into()))
    }

    /// Make a change, if everything that it brings into use is loaded. Whether it is allowed and what
    /// it needs is decided under the lock, whatever was seen before.
    pub(super) fn try_commit(
        &self,
        proposal: &Proposal<'_>,
        loaded: &mut Loaded,
    ) -> Result<Attempt, ControlError> {
        let Proposal { model, operation, ask, may_lack } = *proposal;
        let mut head = self.lock_head();
        self.make_sure(&mut head)?;
        // Whoever asks twice at once has been answered by now.
        if let Some(answer) = self.answer_of(ask)? {
            return Ok(Attempt::Made(answer));
        }
        let state = self.registry.state(model);
        ask.check_revision(&state)?;
        let is_ready = |version: &Version| {
            let id = VersionId { name: model.clone(), version: version.clone() };
            // A trial says what would be: what is missing would be loaded.
            ask.dry_run || may_lack || loaded.has(version) || self.is_loaded(&id)
        };
        let rules = Rules { revision: head.revision + 1, ..self.rules(model, &state, &is_ready) };
        let outcome = match rollout::decide(&state, operation, &rules)? {
            Decision::Apply(outcome) => outcome,
            Decision::Load(version) => return Ok(Attempt::Load(version)),
        };
        let is_changed = outcome.state != state;
        let changed = Changed {
            model: model.clone(),
            revision: if ask.dry_run { state.revision } else { outcome.state.revision },
            changed: is_changed,
            dry_run: ask.dry_run,
            status: outcome.status,
            before: state.routing.clone(),
            after: outcome.state.routing.clone(),
            deploy: loaded.report.clone(),
        };
        let answer = serde_json::to_string(&changed).expect("an answer is JSON");
        if !is_changed && let Some(request) = &ask.request {
            // Asked again later, when there is something to do, it is still the same request.
            self.ledger.remember(request, &answer)?;
        }
        if !ask.dry_run && is_changed {
            let change = describe(proposal, &state, &outcome);
            let decided = Decided { change, next: outcome.state, answer };
            self.write_down(&mut head, proposal, decided, loaded)?;
        }
        Ok(Attempt::Made(Answer::Now(Box::new(changed))))
    }

    /// Make a change durable, and then let it hold.
    fn write_down(
        &self,
        head: &mut Head,
        proposal: &Proposal<'_>,
        decided: Decided,
        loaded: &mut Loaded,
    ) -> Result<(), ControlError> {
        let Decided { change, next, answer } = decided;
        let (model, request) = (proposal.model, proposal.ask.request.as_ref());
        let entry = match self.ledger.commit(&change, &next, request, &answer) {
            Ok(entry) => entry,
            Err(error) => {
                // It may be in the ledger all the same; then it has to hold, version included.
                head.is_unsure = true;
                if self.ledger.models().is_ok_and(|held| held.get(model) == Some(&next)) {
                    self.registry.decide(model, next, loaded.take());
                }
                return Err(error.into());
            }
        };
        head.revision = entry.revision;
        self.show_head(entry.revision, entry.hash);
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

/// A change for the history.
fn describe(proposal: &Proposal<'_>, state: &ModelState, outcome: &Outcome) -> Change {
    let Proposal { model, operation, ask, .. } = *proposal;
    let version = match operation {
        Operation::Adopt { .. } => outcome.state.routing.stable.clone(),
        _ => operation.version(state),
    };
    let digest = version.as_ref().and_then(|version| {
        let held = outcome.state.versions.get(version).or(state.versions.get(version));
        held.map(|deployed| deployed.digest)
    });
    Change {
        author: ask.author.clone(),
        operation: operation.as_str(),
        model: model.clone(),
        version,
        digest,
        status: Some(outcome.status.as_str()),
        error: None,
        before: state.routing.clone(),
        after: outcome.state.routing.clone(),
    }
}
