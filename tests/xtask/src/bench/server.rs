//! A server under measurement: started, found by its log, and ended whatever happens.
//!
//! The log goes to a file, as where servers run: with a pipe, this program would have to read along
//! and take time from the processors it measures with.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::load::work_file;
use crate::workspace::{Profile, Workspace};

/// How long a server may take until it is ready. A first start compiles every version, which
/// takes half a minute each on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(300);

/// How long a server may take to end; longer than it waits for requests under way.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How often the log or the process is looked at. The times that count are the server's own.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How much of the log of a server that failed is shown.
const TAIL_LINES: usize = 20;

/// A running server that has loaded everything.
pub(crate) struct Server {
    process: Process,
    log: PathBuf,
    ready: Ready,
}

/// What a server says of its start.
#[derive(Debug, PartialEq)]
struct Ready {
    address: SocketAddr,
    milliseconds: f64,
}

impl Server {
    /// Starts the release build with the demonstration models and waits until it is ready.
    pub(crate) fn start(workspace: &Workspace) -> Result<Self> {
        let log = work_file(workspace, "server.log")?;
        let output =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = Command::new(workspace.host_binary(Profile::Release))
            .args(["--log-format", "json", "--log", "info"])
            .args(["serve", "--demo", "--config", "models/demo.toml"])
            .arg("--repository")
            .arg(workspace.repository())
            .arg("--state")
            .arg(workspace.state())
            .args(["--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn();
        let mut process = Process(child.context("cannot start the server")?);
        let ready = wait_until_ready(&mut process, &log)
            .with_context(|| format!("the end of the server's log:\n{}", tail(&log)))?;
        Ok(Self { process, log, ready })
    }

    /// From the start of the process until everything was loaded, as the server measured it.
    pub(crate) fn start_ms(&self) -> f64 {
        self.ready.milliseconds
    }

    /// The URL of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.ready.address)
    }

    /// Ends the server as an operator would, and fails if it does not end well.
    pub(crate) fn stop(mut self) -> Result<()> {
        let process = i32::try_from(self.process.0.id()).ok().and_then(Pid::from_raw);
        let process = process.context("the server's process has no number")?;
        kill_process(process, Signal::TERM).context("cannot end the server")?;
        let status = self.process.wait(STOP_LIMIT)?;
        ensure!(
            status.success(),
            "the server failed to end ({status}); the end of its log:\n{}",
            tail(&self.log)
        );
        Ok(())
    }
}

/// A process that is gone when this is.
struct Process(Child);

impl Process {
    fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            thread::sleep(POLL_INTERVAL);
        }
        bail!("the server has not ended after {} s", limit.as_secs())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both do nothing to a process that has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until_ready(process: &mut Process, log: &Path) -> Result<Ready> {
    let start = Instant::now();
    while start.elapsed() < START_LIMIT {
        if let Some(status) = process.0.try_wait()? {
            bail!("the server ended before it was ready ({status})");
        }
        let text = fs::read_to_string(log)?;
        if let Some(ready) = find_ready(&text) {
            return Ok(ready);
        }
        thread::sleep(POLL_INTERVAL);
    }
    bail!("the server is not ready after {} s", START_LIMIT.as_secs())
}

/// What a log says of the start, as soon as it has said all of it.
fn find_ready(log: &str) -> Option<Ready> {
    let mut address = None;
    // The last line may be half written and no JSON yet.
    for line in log.lines().flat_map(serde_json::from_str::<Value>) {
        match line["message"].as_str() {
            Some("listening") => address = line["address"].as_str()?.parse().ok(),
            Some("ready") => {
                // Integers of more than 64 bits are strings in the log, whatever their value.
                let milliseconds = match &line["milliseconds"] {
                    Value::String(text) => text.parse().ok()?,
                    number => number.as_f64()?,
                };
                return Some(Ready { address: address?, milliseconds });
            }
            _ => {}
        }
    }
    None
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_says_when_and_where_a_server_is_ready() {
        let listening = r#"{"message":"listening","address":"127.0.0.1:4"}"#;
        let half = r#"{"message":"ready","mill"#;
        assert_eq!(find_ready(&format!("{listening}\n{half}")), None);
        for milliseconds in [r#""80""#, "80"] {
            let ready = format!(r#"{{"message":"ready","milliseconds":{milliseconds}}}"#);
            let found = find_ready(&format!("no JSON\n{listening}\n{ready}\n{half}")).unwrap();
            let address = "127.0.0.1:4".parse().unwrap();
            assert_eq!(found, Ready { address, milliseconds: 80.0 });
        }
    }
}
