//! What every section needs: the models, servers with folders of their own, and a busy neighbour.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::artifacts::{Model, pack_misbehave};
use crate::bench::load::{self, Load, Measured, work_file};
use crate::bench::process::Process;
use crate::bench::server::{Server, Setup};
use crate::run;
use crate::workspace::Workspace;

/// The model with the larger weights and the longer calls, if the repository has it.
const LARGE_ARTIFACT: &str = "text-direction-1.0.0.wasm";

/// Enough callers to keep every processor busy.
const CAPACITY_CONNECTIONS: usize = 8;

/// Enough that no arrival waits for a connection unless the server stalls.
const ARRIVAL_CONNECTIONS: usize = 32;

/// How long a spinning neighbour lives at most.
const SPIN_SECONDS: u64 = 600;

/// The warm-up of each short block of load. The server is warm by then; this is for whatever the
/// block is measured beside to have begun.
pub(super) const BLOCK_WARM_UP_SECONDS: f64 = 0.3;

/// A block of requests that arrive at a fixed rate.
#[derive(Clone, Copy)]
pub(super) struct Arrivals {
    pub(super) rate: u32,
    pub(super) warm_up_seconds: f64,
    pub(super) seconds: f64,
}

/// What all sections share.
pub(super) struct Bench<'a> {
    pub(super) workspace: &'a Workspace,
    /// How long each measurement under load takes, all of its blocks together.
    pub(super) seconds: f64,
    /// The healthy model, whose calls are short.
    pub(super) healthy: Model,
    /// The same guest in another version.
    pub(super) sibling: Model,
    /// A model whose calls are long; the healthy one, as long as there is no other.
    pub(super) large: Option<Model>,
    pub(super) misbehave: Model,
    folder: PathBuf,
}

impl<'a> Bench<'a> {
    /// Finds and packs everything. The programs and guests have been built.
    pub(super) fn prepare(workspace: &'a Workspace, seconds: f64) -> Result<Self> {
        let folder = work_file(workspace, "runtime")?;
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let packed = |name: &str| Model::inspect(workspace, &workspace.repository().join(name));
        let has_large = workspace.repository().join(LARGE_ARTIFACT).exists();
        Ok(Self {
            workspace,
            seconds,
            healthy: packed("toxicity-1.0.0.wasm")?,
            sibling: packed("toxicity-2.0.0.wasm")?,
            large: has_large.then(|| packed(LARGE_ARTIFACT)).transpose()?,
            misbehave: Model::inspect(workspace, &pack_misbehave(workspace, &folder, "1.0.0")?)?,
            folder,
        })
    }

    /// The models whose costs are measured.
    pub(super) fn models(&self) -> impl Iterator<Item = &Model> {
        [&self.healthy].into_iter().chain(&self.large)
    }

    /// A folder of the benchmark's own, which need not exist.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A server with these artifacts, and a state folder of this name that is kept.
    pub(super) fn setup(&self, state: &str, config: &str, artifacts: &[&Path]) -> Result<Setup> {
        let repository = self.folder(&format!("repository-{state}"));
        let config_file = self.folder(&format!("{state}.toml"));
        let write = || {
            if repository.exists() {
                fs::remove_dir_all(&repository)?;
            }
            fs::create_dir(&repository)?;
            for artifact in artifacts {
                // Nobody changes an artifact in place.
                fs::hard_link(artifact, repository.join(artifact.file_name().unwrap_or_default()))?;
            }
            fs::write(&config_file, config)
        };
        write().with_context(|| format!("cannot write to {}", self.folder.display()))?;
        // A benchmark that is killed cannot end its servers.
        let starter = vec![self.workspace.probe_binary(), "become".into(), "--".into()];
        Ok(Setup { config: config_file, repository, state: self.folder(state), starter })
    }

    /// Lets a server compile what is not compiled yet, and starts it anew, warm.
    pub(super) fn warm_server(&self, setup: &Setup) -> Result<Server> {
        let start = || Server::start(self.workspace, setup);
        let mut server = start()?;
        let is_warm = |line: &Value| line["message"] != "compiled";
        if server.log.lines()?.iter().all(is_warm) {
            return Ok(server);
        }
        server.stop()?;
        start()
    }

    /// A process that keeps one core busy at normal priority until it is dropped.
    pub(super) fn spinner(&self) -> Result<Process> {
        let mut command = Command::new(self.workspace.probe_binary());
        command.args(["spin", "--seconds", &SPIN_SECONDS.to_string()]);
        Process::start("spinner", &mut command)
    }

    /// What the probe says.
    pub(super) fn probe(&self, task: &str, model: &Model, state: &Path) -> Result<Value> {
        let mut command = Command::new(self.workspace.probe_binary());
        command.arg(task).arg("--artifact").arg(&model.artifact).arg("--state").arg(state);
        serde_json::from_str(&run::output(&mut command)?).context("the probe says no JSON")
    }

    /// Half of the requests per second that a server can answer, as it is now.
    pub(super) fn half_capacity(&self, server: &Server, model: &Model) -> Result<u32> {
        let load = Load {
            url: &server.url(&model.path()),
            connections: CAPACITY_CONNECTIONS,
            warm_up_seconds: 1.0,
            seconds: self.seconds / 5.0,
            bodies: &model.bodies,
            contains: &model.contains,
            ..Load::default()
        };
        let capacity = load::make(self.workspace, &load)?.requests_per_second;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
        Ok((capacity / 2.0).max(1.0) as u32)
    }

    /// Makes such a block, whatever becomes of the requests.
    pub(super) fn arrivals(
        &self,
        server: &Server,
        model: &Model,
        arrivals: Arrivals,
    ) -> Result<Measured> {
        let load = Load {
            url: &server.url(&model.path()),
            connections: ARRIVAL_CONNECTIONS,
            rate: Some(arrivals.rate),
            warm_up_seconds: arrivals.warm_up_seconds,
            seconds: arrivals.seconds,
            bodies: &model.bodies,
            contains: &model.contains,
            ..Load::default()
        };
        load::tolerate(self.workspace, &load)
    }
}

/// A value in what the probe says.
pub(super) fn value(report: &Value, pointer: &str) -> Result<f64> {
    let value = report.pointer(pointer).and_then(Value::as_f64);
    value.with_context(|| format!("the probe says no {pointer}: {report}"))
}
