//! What the system says of a server's process and of those in which it compiles.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use super::Server;

impl Server {
    /// The processes that compile for it now.
    ///
    /// # Panics
    /// The system does not say which processes there are.
    pub fn compilers(&self) -> Vec<Pid> {
        let is_compiler = |process: &Path| {
            let read = |name| fs::read(process.join(name)).unwrap_or_default();
            let stat = String::from_utf8_lossy(&read("stat")).into_owned();
            // After the name, which ends with the last parenthesis: the state, and the parent.
            let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
            let is_child = parent == Some(&*self.child.id().to_string());
            is_child && String::from_utf8_lossy(&read("cmdline")).contains("preinit-child")
        };
        let processes = fs::read_dir("/proc").expect("the system shows processes");
        let paths = processes.filter_map(|entry| Some(entry.ok()?.path()));
        let compilers = paths.filter(|path| is_compiler(path));
        let id = |path: PathBuf| path.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw);
        compilers.filter_map(id).collect()
    }

    /// Wait until it compiles, and end the process that does with a signal.
    ///
    /// # Panics
    /// It never compiles.
    pub fn kill_compiler(&self, signal: Signal) {
        self.until("a process that compiles", |server| {
            let compilers = server.compilers();
            compilers.into_iter().any(|compiler| kill_process(compiler, signal).is_ok())
        });
    }

    /// How many files and connections it has open.
    ///
    /// # Panics
    /// The system does not say.
    pub fn open_files(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        files.expect("the server is running").count()
    }
}
