//! What several sections need: versions of one model that differ in their numbers, servers that have
//! them deployed, and the state to begin with.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use semver::Version;

use super::expected::State;
use crate::bench::admin::{Admin, Mutation, parse_version};
use crate::bench::artifacts::{Model, pack_misbehave, pack_renumbered};
use crate::bench::load::Load;
use crate::bench::rig::Rig;
use crate::bench::server::{Server, Setup};
use crate::run;
use crate::workspace::Workspace;

/// The model that is asked.
pub(super) const TOXICITY: &str = "toxicity";

/// The version of it that all others are copies of.
const SOURCE: &str = "1.0.0";

/// The model that is changed where nobody asks.
pub(super) const MISBEHAVE: &str = "misbehave";

/// The state folder that most sections share, so that each version is compiled once.
const STATE: &str = "state-versions";

/// What all sections share.
pub(super) struct Bench<'a> {
    pub(super) rig: Rig<'a>,
    pub(super) is_long: bool,
    /// Whether the state folder has been emptied: what an earlier build left may not be understood.
    emptied: OnceCell<()>,
}

impl<'a> Bench<'a> {
    /// The programs and guests have been built.
    pub(super) fn prepare(workspace: &'a Workspace, seconds: f64, is_long: bool) -> Result<Self> {
        let rig = Rig::new(workspace, "versions", seconds)?;
        Ok(Self { rig, is_long, emptied: OnceCell::new() })
    }

    /// Versions of the model that is asked; their signatures, weights and answers are the same.
    pub(super) fn toxicity(&self, versions: &[Version]) -> Result<Vec<Model>> {
        let numbers: Vec<String> = versions.iter().map(Version::to_string).collect();
        let (folder, source) = (self.rig.folder("artifacts"), (TOXICITY, SOURCE));
        pack_renumbered(self.rig.workspace, source, &numbers, &folder)
    }

    /// Deployments of as many versions of the model that is changed, each a minor step.
    pub(super) fn misbehave(&self, count: u64) -> Result<Vec<Mutation>> {
        let folder = self.rig.folder(".");
        let pack = |minor| {
            let version = Version::new(1, minor, 0).to_string();
            let artifact = pack_misbehave(self.rig.workspace, &folder, &version)?;
            Mutation::deploy(&Model::inspect(self.rig.workspace, &artifact)?)
        };
        (0..count).map(pack).collect()
    }

    /// What servers with the shared state have, beside a configuration.
    pub(super) fn setup(&self, config: &str) -> Result<Setup> {
        self.rig.setup(STATE, config, &[])
    }

    /// A server with this configuration that has these versions of the model that is asked, the first
    /// of them stable and nothing else going on.
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

    /// The same, in a line of progress.
    pub(super) fn start(&self, section: &str, config: &str, models: &[Model]) -> Result<Server> {
        let what = format!("{section}: start, and deploy what is not deployed");
        run::step(&what, || self.server(config, models))
    }
}

/// Deploys what is not deployed, in this order.
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

/// Ends whatever an earlier section has begun.
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
    ensure!(is_reset, "the server cannot be brought back to where it began: {is:?}");
    Ok(())
}

/// A load that names no version: whoever is live answers.
pub(super) fn unpinned<'a>(url: &'a str, model: &'a Model) -> Load<'a> {
    Load { url, bodies: &model.bodies, contains: &model.contains, ..Load::default() }
}

/// Where requests go that name no version.
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
