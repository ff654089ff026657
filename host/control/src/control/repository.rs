//! Loading and unloading a model as a whole, by its name: what the Open Inference Protocol's clients ask
//! for. Both are made of the changes that operators make one by one, by the same rules, and stand in the
//! history as those.

use std::thread::{self, ScopedJoinHandle};

use semver::Version;

use super::{Ask, Control, ControlError};
use crate::registry::{LoadError, VersionState};
use crate::rollout::{self, ModelState, Operation, Promotion};
use guesthouse_artifact::Digest;
use guesthouse_model::{ModelName, VersionId};

impl Control {
    /// See to it that the model is served: what the repository folder has of it by now is deployed, and
    /// what failed of that is tried again; what traffic goes to is loaded if it is not; and of a model that
    /// was unloaded the version comes back that was there last.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn load_model(&self, model: &ModelName, ask: &Ask) -> Result<(), ControlError> {
        if let Err(error) = self.deploy_from_folder(model) {
            return Err(LoadError::Panicked(format!("no thread: {error}")).into());
        }
        let state = self.registry.state(model);
        let target = state.routing.stable.as_ref().or(state.versions.keys().next_back());
        match (target, state.withdrawn.last()) {
            (Some(version), _) if state.versions.contains_key(version) => {
                let id = VersionId { name: model.clone(), version: version.clone() };
                self.load_if_needed(&id)
            }
            // A split can name a version that never came.
            (Some(version), _) => Err(rollout::Refusal::UnknownVersion(version.clone()).into()),
            (None, Some(digest)) => self.bring_back(*digest, ask),
            (None, None) => Err(self.why_not_loaded(model)),
        }
    }

    /// What keeps a model from being served of which nothing was ever deployed.
    fn why_not_loaded(&self, model: &ModelName) -> ControlError {
        let snapshot = self.registry.snapshot();
        let versions = snapshot.models.get(model).into_iter().flat_map(|model| &model.versions);
        let mut failures = versions.filter_map(|(_, state)| match state {
            VersionState::Failed(failure) => Some(failure.clone()),
            _ => None,
        });
        // The highest version is the one that was wanted.
        failures.next_back().map_or(ControlError::UnknownModel, ControlError::NotLoaded)
    }

    /// Golden examples run there: a guest may use all of its call stack.
    fn bring_back(&self, digest: Digest, ask: &Ask) -> Result<(), ControlError> {
        let artifact = self.loader.store.artifact(digest)?;
        let stack = self.loader.engines.thread_stack_bytes();
        let thread = thread::Builder::new().name("load".to_owned()).stack_size(stack);
        let panicked = |reason: String| LoadError::Panicked(reason).into();
        thread::scope(|scope| {
            let deploy = || self.deploy(artifact, Promotion::Yes, ask, &|_step| {}).map(drop);
            match thread.spawn_scoped(scope, deploy).map(ScopedJoinHandle::join) {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_panic)) => Err(panicked("it does not say why".to_owned())),
                Err(error) => Err(panicked(format!("no thread: {error}"))),
            }
        })
    }

    /// Undeploy all versions of a model, the stable one last. Where the rules do not let one of them go
    /// (it is a candidate, a shadow, or what a rollback goes back to), all of them stay.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn unload_model(&self, model: &ModelName, ask: &Ask) -> Result<(), ControlError> {
        let state = self.registry.state(model);
        if state.versions.is_empty() && state.withdrawn.is_empty() {
            return Err(ControlError::UnknownModel);
        }
        let versions = last_stable(&state);
        let is_ready = |_: &Version| true;
        let mut trial = state.clone();
        for version in &versions {
            let operation = Operation::Undeploy { version: version.clone() };
            let rules = self.rules(model, &trial, &is_ready);
            trial = rollout::apply(&trial, &operation, &rules)?.state;
        }
        for version in versions {
            self.commit(model, &Operation::Undeploy { version }, ask, None)?;
        }
        Ok(())
    }
}

/// All versions, the one last that comes back when the model is loaded again.
fn last_stable(state: &ModelState) -> Vec<Version> {
    let mut versions: Vec<_> = state.versions.keys().cloned().collect();
    versions.sort_by_key(|version| state.routing.stable.as_ref() == Some(version));
    versions
}
