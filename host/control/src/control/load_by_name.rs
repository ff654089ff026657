//! Loading and unloading a model as a whole, by its name, as clients of the Open Inference Protocol do.
//! Both are made of the deployments and changes that operators make one by one: the rules are the same,
//! and so are the entries in the history.

use semver::Version;

use super::change::ChangeOptions;
use super::error::ControlError;
use super::state::Control;
use crate::registry::{LoadError, VersionState};
use crate::rollout::{self, ModelState, Operation, Promotion};
use guesthouse_artifact::Digest;
use guesthouse_model::{ModelName, VersionId};

impl Control {
    /// Make sure that the model is served. Versions of it that the repository folder has by now are
    /// deployed, also if they failed before; the version that gets the traffic is loaded if it is not; and a
    /// model that was unloaded gets back the version that it had last.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn load_model(
        &self,
        model: &ModelName,
        options: &ChangeOptions,
    ) -> Result<(), ControlError> {
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
            (Some(version), _) => {
                Err(rollout::RolloutError::UnknownVersion(version.clone()).into())
            }
            (None, Some(digest)) => self.bring_back(*digest, options),
            (None, None) => Err(self.why_not_loaded(model)),
        }
    }

    /// Why a model of which nothing was ever deployed is not served.
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

    fn bring_back(&self, digest: Digest, options: &ChangeOptions) -> Result<(), ControlError> {
        let artifact = self.loader.store.artifact(digest)?;
        self.on_guest_stack(|| {
            self.deploy(artifact, Promotion::Yes, options, &|_step| {}).map(drop)
        })
    }

    /// Undeploy all versions of a model, the stable one last. If the rules keep one of them (it is a
    /// candidate, a shadow, or the target of a rollback), all of them stay.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn unload_model(
        &self,
        model: &ModelName,
        options: &ChangeOptions,
    ) -> Result<(), ControlError> {
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
            self.commit(model, &Operation::Undeploy { version }, options, None)?;
        }
        Ok(())
    }
}

/// All versions, with the one last that comes back when the model is loaded again.
fn last_stable(state: &ModelState) -> Vec<Version> {
    let mut versions: Vec<_> = state.versions.keys().cloned().collect();
    versions.sort_by_key(|version| state.routing.stable.as_ref() == Some(version));
    versions
}
