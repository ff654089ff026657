//! A child process of a benchmark, which is killed when it is dropped.

use std::fs;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// The interval of polling.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The kernel reports processor time in hundredths of a second, whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// A child process, which is killed when it is dropped.
pub(super) struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    pub(super) fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start the {name}"))?;
        Ok(Self { name, child })
    }

    /// The pipes to its standard input and from its standard output.
    pub(super) fn pipes(&mut self) -> Result<(ChildStdin, ChildStdout)> {
        let pipes = self.child.stdin.take().zip(self.child.stdout.take());
        pipes.with_context(|| format!("the {} has no pipes", self.name))
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        let id = id.with_context(|| format!("the {} has no process id", self.name))?;
        kill_process(id, signal).with_context(|| format!("cannot signal the {}", self.name))
    }

    /// The exit status, if the process has exited.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for the {}", self.name))
    }

    pub(super) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            thread::sleep(POLL_INTERVAL);
        }
        bail!("the {} has not exited within {} s", self.name, limit.as_secs())
    }

    /// The processor time on all cores in seconds, without that of its children.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id()));
        let stat = stat.with_context(|| format!("the {} has exited", self.name))?;
        let ticks = find_cpu_ticks(&stat);
        Ok(ticks.context("/proc has no processor time")? as f64 / TICKS_PER_SECOND)
    }

    /// The resident memory in KiB.
    pub(super) fn resident_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()));
        let status = status.with_context(|| format!("the {} has exited", self.name))?;
        find_resident_kib(&status).context("/proc has no resident memory")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both have no effect on a process that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find_cpu_ticks(stat: &str) -> Option<u64> {
    // The second field is a name in parentheses, which may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    // Fields 14 and 15 are user and system time; the first field after the name is the third.
    let mut fields = fields.split_whitespace().skip(14 - 3);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

fn find_resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_parsed() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 300 44 0 0";
        assert_eq!(find_cpu_ticks(stat), Some(344));
        assert_eq!(find_cpu_ticks("7 (a"), None);
        let status = "Name:\tx\nVmHWM:\t    9 kB\nVmRSS:\t   1234 kB\n";
        assert_eq!(find_resident_kib(status), Some(1234));
    }

    #[test]
    fn a_running_process_is_measured() {
        let process = Process::start("sleeper", Command::new("sleep").arg("60")).unwrap();
        assert!(process.resident_kib().unwrap() > 0);
        assert!(process.cpu_seconds().unwrap() < 10.0);
    }
}
