//! A server under measurement, which is found by its log and killed when it is dropped.

use std::fs::{self, File};
use std::io::ErrorKind::NotFound;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::admin::Admin;
use super::client::Client;
use super::load::work_file;
use super::log::{Log, number};
use super::process::Process;
use crate::workspace::{Profile, Workspace};

/// The usual time limit of a start. A first start compiles every version, each of which takes half
/// a minute on a busy machine.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(300);

/// The time limit of a stop, which is longer than the drain.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The interval of reading the log. Measured times are taken from the log itself.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The API key of `guesthouse serve --demo`.
pub(crate) const KEY: &str = "local-demo-key";

/// What a server serves, and how it is started.
pub(crate) struct Setup {
    pub(crate) config: PathBuf,
    pub(crate) repository: PathBuf,
    pub(crate) state: PathBuf,
    /// A program that executes the server, with its arguments; may be empty.
    pub(crate) starter: Vec<PathBuf>,
    /// The server.
    pub(crate) program: PathBuf,
    /// The time limit for each awaited log line.
    pub(crate) limit: Duration,
    /// Additional environment variables.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// A running server.
pub(crate) struct Server {
    pub(super) process: Process,
    pub(super) log: Log,
    limit: Duration,
    address: SocketAddr,
    admin_address: SocketAddr,
    grpc_address: SocketAddr,
}

impl Server {
    /// Starts a server and waits until it has loaded everything.
    pub(crate) fn start(workspace: &Workspace, setup: &Setup) -> Result<Self> {
        let mut server = Self::launch(workspace, setup)?;
        server.wait_for("repository folder read", None)?;
        Ok(server)
    }

    /// Starts a server and waits until it listens.
    pub(super) fn launch(workspace: &Workspace, setup: &Setup) -> Result<Self> {
        let state = setup.state.file_name().unwrap_or_default().to_string_lossy();
        let log = work_file(workspace, &format!("server-{state}.log"))?;
        // A new file: children of a killed server may still write to the old one.
        let output = fs::remove_file(&log)
            .or_else(|error| if error.kind() == NotFound { Ok(()) } else { Err(error) })
            .and_then(|()| File::create(&log))
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut program = setup.starter.clone();
        program.push(setup.program.clone());
        let (first, rest) = program.split_first().context("the command is empty")?;
        let mut command = Command::new(first);
        command
            .args(rest)
            .args(["--log-format", "json", "--log", "info", "serve", "--demo"])
            .arg("--config")
            .arg(&setup.config)
            .arg("--repository")
            .arg(&setup.repository)
            .arg("--state")
            .arg(&setup.state)
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(["--grpc-listen", "127.0.0.1:0"])
            .envs(setup.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output);
        let mut process = Process::start("server", &mut command)?;
        let mut log = Log::open(&log)?;
        let limit = setup.limit;
        let mut address = |message| {
            let line = wait_for(&mut process, &mut log, (message, None), limit)?;
            let address = line["address"].as_str().and_then(|address| address.parse().ok());
            address.context("the log has no address")
        };
        let [address, admin_address, grpc_address] =
            [address("listening")?, address("admin listening")?, address("grpc listening")?];
        Ok(Self { process, log, limit, address, admin_address, grpc_address })
    }

    /// The time from the start of the process until everything was loaded, as the server reports
    /// it.
    pub(super) fn start_ms(&mut self) -> Result<f64> {
        number(&self.wait_for("ready", None)?, "milliseconds")
    }

    /// Waits for the first log line with this message, and with this version if one is given.
    pub(super) fn wait_for(&mut self, message: &str, version: Option<&str>) -> Result<Value> {
        wait_for(&mut self.process, &mut self.log, (message, version), self.limit)
    }

    /// The URL of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The address of the public listener.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the gRPC listener.
    pub(crate) fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// A client of the public listener.
    pub(super) fn client(&self) -> Client {
        Client::new(self.address, KEY)
    }

    /// A URL of the admin listener.
    pub(crate) fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin_address)
    }

    /// A client of the admin API.
    pub(super) fn admin(&self) -> Admin {
        Admin::new(self.admin_address)
    }

    /// Stops the server with SIGINT and fails if it does not exit successfully. After SIGTERM it
    /// would linger for load balancers.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::INT)?;
        let status = self.process.wait(STOP_LIMIT)?;
        ensure!(
            status.success(),
            "the server failed to stop ({status}); the end of its log:\n{}",
            self.log.tail()
        );
        Ok(())
    }

    /// Kills the server.
    pub(super) fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(STOP_LIMIT)?;
        Ok(())
    }
}

fn wait_for(
    process: &mut Process,
    log: &mut Log,
    (message, version): (&str, Option<&str>),
    limit: Duration,
) -> Result<Value> {
    let start = Instant::now();
    while start.elapsed() < limit {
        // Checked first: everything that the server wrote before it exited is in the log by then.
        let ended = process.ended()?;
        if let Some(line) = log.find(message, version)? {
            return Ok(line);
        }
        if let Some(status) = ended {
            bail!("the server exited ({status}); the end of its log:\n{}", log.tail());
        }
        thread::sleep(POLL_INTERVAL);
    }
    let seconds = limit.as_secs();
    bail!(
        "the server has not logged `{message}` within {seconds} s; the end of its log:\n{}",
        log.tail()
    )
}

/// The demo models with the state folder that users have.
pub(crate) fn demonstration(workspace: &Workspace) -> Setup {
    Setup {
        config: Path::new("models/demo.toml").to_owned(),
        repository: workspace.repository(),
        state: workspace.state(),
        starter: Vec::new(),
        program: workspace.host_binary(Profile::Release),
        limit: START_LIMIT,
        environment: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_when_the_process_exits() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"message\":\"said\"}\n").unwrap();
        let mut log = Log::open(file.path()).unwrap();
        let mut process = Process::start("server", &mut Command::new("true")).unwrap();
        assert!(wait_for(&mut process, &mut log, ("said", None), START_LIMIT).is_ok());
        assert!(wait_for(&mut process, &mut log, ("unsaid", None), START_LIMIT).is_err());
    }
}
