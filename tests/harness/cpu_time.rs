//! CPU time of a server, as the kernel accounts it.

use std::fs::{self, DirEntry};
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::{DEMO_KEY, Server};

/// The length of one clock tick: Linux reports 100 per second to user space.
const TICK: Duration = Duration::from_millis(10);

impl Server {
    /// Sends a prediction and disconnects as soon as a guest runs.
    ///
    /// # Panics
    /// The server does not accept the connection, or no guest runs.
    pub fn disconnect_while_running(&self, path: &str, body: &Value) {
        let (body, before) = (body.to_string(), self.thread_time("inference"));
        let mut connection = TcpStream::connect(self.address()).expect("the server accepts");
        write!(
            connection,
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {DEMO_KEY}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("the server reads");
        let enough = Duration::from_millis(50);
        self.eventually("the guest runs", |server| {
            server.thread_time("inference") > before + enough
        });
    }

    /// The CPU time of the server's running threads whose names start with `name`.
    ///
    /// # Panics
    /// `/proc` is not readable.
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

    /// The CPU time of all threads of the server, including those that have exited. Child processes
    /// are not included.
    ///
    /// # Panics
    /// `/proc` is not readable.
    pub fn process_time(&self) -> Duration {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let text = text.expect("the server is running");
        // The name may contain spaces. After it, user and system time are fields 14 and 15.
        let (_, fields) = text.rsplit_once(") ").expect("a name in parentheses");
        let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u32>());
        TICK * ticks.map(|ticks| ticks.expect("a number")).sum::<u32>()
    }
}
