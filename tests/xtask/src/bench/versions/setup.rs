//! What several sections need: versions of a model that differ in their numbers only, servers with
//! these versions, and their initial state.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use semver::Version;

use super::expected::State;
use crate::bench::Subject;
use crate::bench::admin::{Admin, Mutation, parse_version};
use crate::bench::artifacts::{Model, pack_misbehave, pack_renumbered};
use crate::bench::load::Load;
use crate::bench::rig::Rig;
use crate::bench::server::{Server, Setup};
use crate::run;

/// The model that answers requests.
pub(super) const TOXICITY: &str = "toxicity";

/// The version that is copied.
const SOURCE: &str = "1.0.0";

/// The model that is changed without load.
pub(super) const MISBEHAVE: &str = "misbehave";

/// The state folder that most sections share, so that each version is compiled once.
const STATE: &str = "state-versions";

/// What all sections share.
pub(crate) struct Bench<'a> {
    pub(super) rig: Rig<'a>,
    pub(super) is_long: bool,
    /// Set when the state folder has been emptied: an earlier build may have left an incompatible
    /// one.
    emptied: OnceCell<()>,
}

impl<'a> Bench<'a> {
    /// Programs and guests have been built.
    pub(crate) fn prepare(subject: &Subject<'a>, is_long: bool) -> Result<Self> {
        Ok(Self { rig: Rig::new(subject, "versions")?, is_long, emptied: OnceCell::new() })
    }

    /// Versions of the model that answers requests, with equal signatures, weights and responses.
    pub(super) fn toxicity(&self, versions: &[Version]) -> Result<Vec<Model>> {
        let numbers: Vec<String> = versions.iter().map(Version::to_string).collect();
        let (folder, source) = (self.rig.folder("artifacts"), (TOXICITY, SOURCE));
        pack_renumbered(self.rig.workspace, source, &numbers, &folder)
    }

    /// Deployments of this many versions of the other model, each a minor step.
    pub(super) fn misbehave(&self, count: u64) -> Result<Vec<Mutation>> {
        let folder = self.rig.folder(".");
        let pack = |minor| {
            let version = Version::new(1, minor, 0).to_string();
            let artifact = pack_misbehave(self.rig.workspace, &folder, &version)?;
            Mutation::deploy(&Model::inspect(self.rig.workspace, &artifact)?)
        };
        (0..count).map(pack).collect()
    }

    /// A server with the shared state folder.
    pub(super) fn setup(&self, config: &str) -> Result<Setup> {
        self.rig.setup(STATE, config, &[])
    }

    /// Starts a server with this configuration and these versions, of which the first is stable;
    /// there are no candidates and no shadow.
    pub(super) fn server(&self, config: &str, models: &[Model]) -> Result<Server> {
        let setup = self.setup(config)?;
        if self.emptied.get().is_none() {
            empty(&setup.state)?;
            let _ = self.emptied.set(());
        }
        let server = Server::start(self.rig.workspace, &setup)?;
        deploy(&server.admin(), models)?;
        reset(&server.admin(), models)?;
        Ok(server)
    }

    /// The same as a step with progress.
    pub(super) fn start(&self, section: &str, config: &str, models: &[Model]) -> Result<Server> {
        let what = format!("{section}: start and deploy");
        run::step(&what, || self.server(config, models))
    }
}

/// Deploys the versions that are not deployed, in this order.
pub(super) fn deploy(admin: &Admin, models: &[Model]) -> Result<()> {
    for model in models {
        let deployment = Mutation::deploy(model)?;
        let state = State::from_model(admin.model(&model.name)?.as_ref())?;
        let deployed = state.versions.get(&parse_version(&model.version)?);
        if deployed != Some(&model.digest) {
            admin.make(&model.name, &deployment)?;
        }
    }
    Ok(())
}

/// Ends candidates and shadows of an earlier section.
fn reset(admin: &Admin, models: &[Model]) -> Result<()> {
    let first = models.first().context("there is no version")?;
    let (model, version) = (&first.name, parse_version(&first.version)?);
    let state = || State::from_model(admin.model(model)?.as_ref());
    if state()?.shadow.is_some() {
        admin.make(model, &Mutation::Shadow(None))?;
    }
    if !state()?.candidates.is_empty() {
        admin.make(model, &Mutation::Rollback(None))?;
    }
    if state()?.stable.as_ref() != Some(&version) {
        admin.make(model, &Mutation::Rollback(Some(version.clone())))?;
    }
    let is = state()?;
    let is_reset = is.stable == Some(version) && is.candidates.is_empty() && is.shadow.is_none();
    ensure!(is_reset, "the server cannot be reset: {is:?}");
    Ok(())
}

/// A load without a version in its path.
pub(super) fn unpinned<'a>(url: &'a str, model: &'a Model) -> Load<'a> {
    Load { url, bodies: &model.bodies, contains: &model.contains, ..Load::default() }
}

/// The path for predictions without a version.
pub(super) fn predict_path(model: &str) -> String {
    format!("/models/{model}/predict")
}

/// Removes a state folder.
pub(super) fn empty(state: &Path) -> Result<()> {
    if state.exists() {
        fs::remove_dir_all(state).context("cannot empty the state folder")?;
    }
    Ok(())
}
