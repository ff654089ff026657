//! What a server has had of the processors, by the kernel's account.

use std::fs::{self, DirEntry};
use std::io;
use std::time::Duration;

use crate::Server;

/// How long a tick of the kernel's account is: a hundred a second, on every Linux.
const TICK: Duration = Duration::from_millis(10);

impl Server {
    /// The time of its threads whose names begin like that, those left out that have ended.
    ///
    /// # Panics
    /// The system does not say.
    pub fn thread_time(&self, name: &str) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let of_thread = |thread: io::Result<DirEntry>| {
            let path = thread.ok()?.path();
            let is_it = fs::read_to_string(path.join("comm")).ok()?.starts_with(name);
            let time = fs::read_to_string(path.join("schedstat")).ok()?;
            let nanoseconds = time.split(' ').next()?.parse().ok()?;
            is_it.then(|| Duration::from_nanos(nanoseconds))
        };
        threads.expect("the server is running").filter_map(of_thread).sum()
    }

    /// The time of all its threads, those included that have ended, but not of its children.
    ///
    /// # Panics
    /// The system does not say.
    pub fn process_time(&self) -> Duration {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let text = text.expect("the server is running");
        // After the name, which may have spaces in it; user and system time are fields 14 and 15.
        let (_, fields) = text.rsplit_once(") ").expect("there is a name");
        let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u32>());
        TICK * ticks.map(|ticks| ticks.expect("a number")).sum::<u32>()
    }
}
