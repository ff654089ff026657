//! The equipment of the benchmarks: servers with folders of their own, loads on them, and a busy
//! neighbour.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Subject;
use super::artifacts::Model;
use super::load::{self, Load, Measured, work_file};
use super::process::Process;
use super::server::{START_LIMIT, Server, Setup};
use crate::run;
use crate::workspace::Workspace;

/// Enough connections to keep every processor busy.
pub(super) const CAPACITY_CONNECTIONS: usize = 8;

/// Enough connections that no request waits for one unless the server stalls.
pub(super) const ARRIVAL_CONNECTIONS: usize = 32;

/// The maximum lifetime of a spinning process.
const SPIN_SECONDS: u64 = 600;

/// The warm-up of each short block. The server is warm already; whatever runs beside the block must
/// have started.
pub(super) const BLOCK_WARM_UP_SECONDS: f64 = 0.3;

/// A block of an open loop.
#[derive(Clone, Copy)]
pub(super) struct Arrivals {
    pub(super) rate: u32,
    pub(super) warm_up_seconds: f64,
    pub(super) seconds: f64,
}

/// The workspace and the working folder of a benchmark.
pub(super) struct Rig<'a> {
    pub(super) workspace: &'a Workspace,
    /// The duration of each measurement under load, all of its blocks together.
    pub(super) seconds: f64,
    /// The server under measurement.
    program: PathBuf,
    folder: PathBuf,
}

impl<'a> Rig<'a> {
    /// Creates the working folder of this name.
    pub(super) fn new(subject: &Subject<'a>, name: &str) -> Result<Self> {
        let Subject { workspace, program, folder_suffix, seconds } = subject.clone();
        let folder = work_file(workspace, &format!("{name}{folder_suffix}"))?;
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self { workspace, program, seconds, folder })
    }

    /// A path in the working folder.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A server with these artifacts and a state folder of this name, which is kept.
    pub(super) fn setup(&self, state: &str, config: &str, artifacts: &[&Path]) -> Result<Setup> {
        let repository = self.folder(&format!("repository-{state}"));
        let config_file = self.folder(&format!("{state}.toml"));
        let write = || {
            if repository.exists() {
                fs::remove_dir_all(&repository)?;
            }
            fs::create_dir(&repository)?;
            for artifact in artifacts {
                // Artifacts are never changed in place.
                fs::hard_link(artifact, repository.join(artifact.file_name().unwrap_or_default()))?;
            }
            fs::write(&config_file, config)
        };
        write().with_context(|| format!("cannot write to {}", self.folder.display()))?;
        let starter = self.starter().to_vec();
        Ok(Setup {
            config: config_file,
            repository,
            state: self.folder(state),
            starter,
            program: self.program.clone(),
            limit: START_LIMIT,
            environment: Vec::new(),
        })
    }

    /// What executes a server, so that it is killed if the benchmark is killed.
    fn starter(&self) -> [PathBuf; 3] {
        [self.workspace.probe_binary(), "become".into(), "--".into()]
    }

    /// A command for another server, with the same starter.
    pub(super) fn owned(&self, program: PathBuf) -> Command {
        let [probe, task, separator] = self.starter();
        let mut command = Command::new(probe);
        command.args([task, separator, program]);
        command
    }

    /// Starts a server; if it had to compile anything, starts it again.
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

    /// Runs the probe on a model with the state folder of a stopped server.
    pub(super) fn probe(&self, task: &str, model: &Model, state: &Path) -> Result<Value> {
        let mut command = Command::new(self.workspace.probe_binary());
        command.arg(task).arg("--artifact").arg(&model.artifact).arg("--state").arg(state);
        serde_json::from_str(&run::output(&mut command)?)
            .context("the output of the probe is not JSON")
    }

    /// A process that keeps one core busy at normal priority until it is dropped.
    pub(super) fn spinner(&self) -> Result<Process> {
        let mut command = Command::new(self.workspace.probe_binary());
        command.args(["spin", "--seconds", &SPIN_SECONDS.to_string()]);
        Process::start("spinner", &mut command)
    }

    /// Half of the current capacity of a server in requests per second.
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
        let capacity = load::run_without_errors(self.workspace, &load)?.requests_per_second;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
        Ok((capacity / 2.0).max(1.0) as u32)
    }

    /// Runs a block, whether requests fail or not.
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
        load::run(self.workspace, &load)
    }
}
