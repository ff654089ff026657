use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::{Server, Setup, Signal};

/// The watchdog interval: two pings in this time.
const WATCHDOG: Duration = Duration::from_millis(400);

/// The socket of a service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        Self(socket)
    }

    /// The next message, whatever it is.
    fn receive(&self) -> io::Result<String> {
        let mut buffer = [0; 256];
        let length = self.0.recv(&mut buffer)?;
        Ok(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    /// The next message that is no ping.
    fn next(&self) -> String {
        loop {
            let message = self.receive().unwrap();
            if message.trim() != "WATCHDOG=1" {
                return message;
            }
        }
    }

    /// Whether a ping arrives.
    fn is_pinged(&self) -> bool {
        self.receive().is_ok_and(|message| message.trim() == "WATCHDOG=1")
    }
}

fn setup(folder: &Path, socket: &Path) -> Setup {
    let environment = [
        ("NOTIFY_SOCKET", socket.display().to_string()),
        ("WATCHDOG_USEC", WATCHDOG.as_micros().to_string()),
    ];
    Setup {
        artifacts: vec![Misbehave::default().pack(folder)],
        state: Some(folder.join("state")),
        environment: environment.map(|(name, value)| (name.to_owned(), value)).into(),
        ..Setup::default()
    }
}

#[test]
fn the_service_manager_learns_the_state_of_the_server() {
    let folder = temporary_folder();
    let socket = folder.path().join("notify");
    let manager = Manager::listen(&socket);
    // The messages are read while the server starts: few of them fit into the socket.
    let server = Server::start_loading(&setup(folder.path(), &socket));
    assert_eq!(manager.next().trim(), "READY=1");
    assert_eq!(server.get("/readyz").status, 200);
    assert!((0..3).all(|_| manager.is_pinged()), "the server does not ping");

    server.signal(Signal::HUP);
    let reloading = manager.next();
    let mut lines = reloading.lines();
    assert_eq!(lines.next(), Some("RELOADING=1"));
    assert!(lines.next().is_some_and(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading}");
    assert_eq!(manager.next().trim(), "READY=1");

    server.signal(Signal::TERM);
    assert_eq!(manager.next().trim(), "STOPPING=1");
    assert!(server.wait_for_end().0.success());
}

#[test]
fn a_start_ends_without_a_version_that_serves() {
    let folder = temporary_folder();
    let socket = folder.path().join("notify");
    let manager = Manager::listen(&socket);
    let setup = Setup { artifacts: Vec::new(), ..setup(folder.path(), &socket) };
    let server = Server::start_loading(&setup);
    // A server without versions waits for deployments, so its start must not time out.
    assert_eq!(manager.next().trim(), "READY=1");
    assert_eq!(server.get("/readyz").status, 503);
    assert_eq!(server.deploy(&Misbehave::default().pack(folder.path()))["state"], "done");
    assert_eq!(server.get("/readyz").status, 200);
    server.signal(Signal::TERM);
    assert_eq!(manager.next().trim(), "STOPPING=1", "the server is ready once");
}
