use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use guesthouse_tests::{DEADLINE, DEMO_KEY, Server, Setup};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::Value;

/// Connections that send half of a request head.
fn half_sent_heads(server: &Server, count: usize) -> Vec<TcpStream> {
    let open = |_| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: half").unwrap();
        stream
    };
    (0..count).map(open).collect()
}

/// A connection that is idle after one response.
fn idle(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: idle\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece).unwrap();
        assert_ne!(count, 0, "the connection is closed");
        answer.extend_from_slice(&piece[..count]);
    }
    stream
}

fn setup(limits: &str) -> Setup {
    let mut setup = Setup::toxicity();
    setup.config.push_str(&format!("\n[limits]\n{limits}\n"));
    setup
}

#[test]
fn silent_connections_time_out_and_make_room() {
    let server = Server::start(&setup("connections = 8\nhead_seconds = 1\nidle_seconds = 1"));
    let silent = half_sent_heads(&server, 32);
    // Answered when the connections before it have timed out.
    assert_eq!(server.get("/healthz").status, 200);
    for mut stream in silent {
        let mut rest = Vec::new();
        // The server closes the connection normally or with a reset.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    }
    let mut idle = idle(&server);
    assert_eq!(idle.read(&mut [0; 16]).unwrap(), 0, "an idle connection is closed");
    server.assert_healthy();
}

/// Sends one byte at a time until the server responds or closes; returns the response.
fn drip(stream: &mut TcpStream, bytes: &[u8]) -> String {
    // The read timeout is the pause between two bytes.
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut answer = Vec::new();
    for byte in bytes.iter().cycle() {
        // Writing fails if the server has closed the connection, which reading reports.
        let _ = stream.write_all(&[*byte]);
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => break,
        }
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn slow_heads_and_bodies_time_out_and_block_nobody() {
    let server = Server::start(&setup("head_seconds = 1\nbody_seconds = 2"));
    let connect = || TcpStream::connect(server.address()).unwrap();
    let head = format!(
        "POST /v1/predict HTTP/1.1\r\nHost: a\r\nX-API-Key: {DEMO_KEY}\r\nConnection: close\r\n"
    );
    std::thread::scope(|scope| {
        let mut dripping = Vec::new();
        for _ in 0..8 {
            dripping.push(scope.spawn(|| {
                let mut stream = connect();
                stream.write_all(head.as_bytes()).unwrap();
                drip(&mut stream, b"X-Long: aaaaaaaa\r\n")
            }));
            for length in ["Content-Length: 100000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"] {
                let (head, connect) = (&head, &connect);
                dripping.push(scope.spawn(move || {
                    let mut stream = connect();
                    stream.write_all(format!("{head}{length}").as_bytes()).unwrap();
                    drip(&mut stream, b"1\r\n \r\n")
                }));
            }
        }
        while !dripping.iter().all(|thread| thread.is_finished()) {
            server.assert_healthy();
        }
        for (number, answer) in dripping.into_iter().enumerate() {
            let answer = answer.join().unwrap();
            if number % 3 == 0 {
                assert!(answer.is_empty(), "{answer}");
            } else {
                assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
            }
        }
    });
    server.assert_healthy();
}

#[test]
fn closed_connections_leak_no_file_descriptors() {
    let server = Server::start(&setup("connections = 64\nhead_seconds = 60"));
    let files = server.open_files();
    for round in 0..3000 {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let sent: &[u8] = match round % 4 {
            0 => b"",
            1 => b"GET /healthz HTTP/1.1\r\nHost: half",
            2 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            // Closed before the response arrives.
            _ => b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
        };
        stream.write_all(sent).unwrap();
    }
    server.assert_healthy();
    server.eventually("the files are closed", |server| server.open_files() <= files + 4);
    assert!(server.stop().0.success(), "requests were left to drain");
}

#[test]
fn a_client_that_reads_no_responses_is_disconnected() {
    let server = Server::start(&setup("body_seconds = 1"));
    let mut caller = TcpStream::connect(server.address()).unwrap();
    caller.set_write_timeout(Some(DEADLINE)).unwrap();
    // The server reads requests as long as it has room for their responses.
    let requests = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    let error = loop {
        if let Err(error) = caller.write_all(&requests) {
            break error;
        }
    };
    let cut_off = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    assert!(cut_off.contains(&error.kind()), "{error}");
    server.assert_healthy();
    assert!(server.stop().0.success(), "requests were left to drain");
}

#[test]
fn a_lack_of_file_descriptors_is_logged_once() {
    let server = Server::start(&Setup::toxicity());
    server.limit_open_files(Some(3));
    let mut caller = TcpStream::connect(server.address()).unwrap();
    caller.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let refused = |line: &Value| line["message"] == "cannot accept connections";
    server.wait_for("the log line", refused);
    server.limit_open_files(None);
    let mut answer = String::new();
    caller.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.lines().iter().filter(|line| refused(line)).count(), 1);
}

#[test]
fn more_connections_than_the_soft_file_limit_are_served() {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    let server = Server::start(&setup("head_seconds = 60"));
    let _silent = half_sent_heads(&server, 1100);
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn idle_connections_do_not_delay_the_shutdown() {
    // Longer than `DEADLINE`: a stop that waits for either fails the test.
    let server = Server::start(&setup("drain_seconds = 3600\nhead_seconds = 3600"));
    let _half_sent = half_sent_heads(&server, 8);
    let _silent = TcpStream::connect(server.address()).unwrap();
    let mut half_sent_second = idle(&server);
    half_sent_second.write_all(b"GET /healthz HTTP/1.1\r\nHost: half").unwrap();
    let _idle = idle(&server);
    let (status, _) = server.stop();
    assert!(status.success(), "requests were left to drain");
}
