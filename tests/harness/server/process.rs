//! What `/proc` says about a server and its compiler processes.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use super::Server;

impl Server {
    /// The child processes that compile for the server now.
    ///
    /// # Panics
    /// `/proc` is not readable.
    pub fn compilers(&self) -> Vec<Pid> {
        let is_compiler = |process: &Path| {
            let read = |name| fs::read(process.join(name)).unwrap_or_default();
            let stat = String::from_utf8_lossy(&read("stat")).into_owned();
            // The name ends with the last parenthesis. After it come the state and the parent's
            // process id.
            let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
            let is_child = parent == Some(&*self.child.id().to_string());
            is_child && String::from_utf8_lossy(&read("cmdline")).contains("preinit-child")
        };
        let processes = fs::read_dir("/proc").expect("/proc is readable");
        let paths = processes.filter_map(|entry| Some(entry.ok()?.path()));
        let compilers = paths.filter(|path| is_compiler(path));
        let id = |path: PathBuf| path.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw);
        compilers.filter_map(id).collect()
    }

    /// Waits until the server compiles, and sends a signal to the compiler process.
    ///
    /// # Panics
    /// The server does not compile before the [deadline](crate::DEADLINE).
    pub fn kill_compiler(&self, signal: Signal) {
        self.eventually("a compiler runs", |server| {
            let compilers = server.compilers();
            compilers.into_iter().any(|compiler| kill_process(compiler, signal).is_ok())
        });
    }

    /// The number of open file descriptors of the server.
    ///
    /// # Panics
    /// `/proc` is not readable.
    pub fn open_files(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        files.expect("the server is running").count()
    }
}
