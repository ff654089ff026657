use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use guesthouse_tests::artifacts::{Misbehave, replace_bytes, temporary_folder};
use guesthouse_tests::client::DEMO_ADMIN_KEY;
use guesthouse_tests::{HttpResponse, Server, Setup, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;

fn toxicity(limits: &str) -> Setup {
    let mut setup = Setup::toxicity();
    setup.config.push_str(&format!("\n[limits]\n{limits}\n"));
    setup
}

/// A server whose guest computes until its request is cancelled.
fn misbehaving(limits: &str) -> (Server, TempDir) {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 600_000);
    setup.config.push_str("predict_milliseconds_at_most = 600000\n");
    setup.config.push_str(limits);
    (Server::start(&setup), folder)
}

fn spin(server: &Server, milliseconds: &str) -> HttpResponse {
    let body = json!({"action": "spin"}).to_string();
    let time = [("X-Request-Timeout-Ms", milliseconds)];
    server.send("POST", "/models/misbehave/predict", &time, body.as_bytes())
}

fn wait_until_busy(server: &Server) {
    server.wait_for_metric(r#"model="misbehave",version="1.0.0",state="busy"} 1"#);
}

fn lingers(line: &Value) -> bool {
    line["message"] == "not ready any more, still serving"
}

fn drains(line: &Value) -> bool {
    line["message"] == "draining"
}

#[test]
fn after_sigterm_the_server_is_not_ready_but_serves() {
    let server = Server::start(&toxicity("linger_seconds = 3600"));
    assert_eq!(server.get("/readyz").status, 200);
    server.signal(Signal::TERM);
    server.wait_for("the log line", lingers);
    let answer = server.get("/readyz");
    assert_eq!((answer.status, answer.error_code()), (503, Some("not_ready")));
    assert_eq!(server.get("/healthz").status, 200);
    (0..10).for_each(|_| server.assert_healthy());
    assert_eq!(server.get("/readyz").status, 503);
    assert!(!server.lines().iter().any(drains), "the server was draining");
}

#[test]
fn the_server_drains_after_the_linger_time() {
    let server = Server::start(&toxicity("linger_seconds = 2"));
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    let (status, lines) = server.wait_for_end();
    assert!(signalled.elapsed() >= Duration::from_secs(2), "{:?}", signalled.elapsed());
    assert!(status.success(), "{status}");
    let index = |wanted: fn(&Value) -> bool| lines.iter().position(wanted);
    assert!(index(lingers).is_some() && index(lingers) < index(drains), "{lines:#?}");
    assert!(lines.iter().any(|line| line["message"] == "stopped" && line["drained"] == true));
}

#[test]
fn sigint_skips_the_linger_time() {
    let server = Server::start(&toxicity("linger_seconds = 3600"));
    server.signal(Signal::INT);
    let (status, lines) = server.wait_for_end();
    assert!(status.success(), "{status}");
    assert!(!lines.iter().any(lingers));
}

#[test]
fn a_second_signal_ends_the_linger_time() {
    for second in [Signal::INT, Signal::TERM] {
        let server = Server::start(&toxicity("linger_seconds = 3600"));
        server.signal(Signal::TERM);
        server.wait_for("the log line", lingers);
        server.signal(second);
        let (status, _) = server.wait_for_end();
        assert!(status.success(), "{second:?}: {status}");
    }
}

#[test]
fn two_simultaneous_signals_both_count() {
    // The order in which the server sees the signals is not defined; it must not lose one.
    for _ in 0..4 {
        let server = Server::start(&toxicity("linger_seconds = 3600"));
        server.signal(Signal::TERM);
        server.signal(Signal::INT);
        let (status, _) = server.wait_for_end();
        assert!(status.success(), "{status}");
    }
}

#[test]
fn a_loading_server_stops_cleanly() {
    let folder = temporary_folder();
    let server = Server::start_loading(&Setup::misbehave(folder.path(), 1000));
    // As soon as it listens.
    server.signal(Signal::INT);
    let (status, _) = server.wait_for_end();
    assert!(status.success(), "{status}");
}

#[test]
fn requests_in_progress_complete_during_the_drain() {
    let (server, _folder) = misbehaving("linger_seconds = 0\ndrain_seconds = 3600\n");
    thread::scope(|scope| {
        let spinning = scope.spawn(|| spin(&server, "3000"));
        wait_until_busy(&server);
        server.signal(Signal::TERM);
        server.wait_for("the drain", drains);
        let answer = spinning.join().unwrap();
        // The deadline of the request, not of the drain.
        assert_eq!((answer.status, answer.error_code()), (504, Some("deadline_exceeded")));
    });
    let (status, lines) = server.wait_for_end();
    assert!(status.success(), "{status}");
    assert!(lines.iter().any(|line| line["message"] == "stopped" && line["drained"] == true));
}

#[test]
fn a_long_poll_does_not_delay_the_shutdown() {
    // Less than the long poll asks for: if the drain waited for it, the drain would time out.
    let (server, folder) = misbehaving("drain_seconds = 20\n");
    let endless = Misbehave { version: "1.1.0", ..Misbehave::default() }.pack(folder.path());
    replace_bytes(&endless, r#""init":"well""#, r#""init":"spin""#);
    let operation = server.begin_deploy(&endless);
    let operation = operation["operation"].as_str().unwrap();
    let compiling = |line: &Value| line["message"] == "compiling, which takes some seconds";
    server.wait_for("the compiler being started", |line| {
        compiling(line) && line["version"] == "1.1.0"
    });
    let mut waiting = TcpStream::connect(server.admin_address()).unwrap();
    write!(
        waiting,
        "GET /admin/v1/operations/{operation}?wait_seconds=30 HTTP/1.1\r\nHost: x\r\n\
         X-API-Key: {DEMO_ADMIN_KEY}\r\n\r\n"
    )
    .unwrap();
    // A later request on the same listener is answered, so the first one is in progress.
    assert_eq!(server.model("misbehave")["stable"], "1.0.0");
    server.signal(Signal::INT);
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("running"), "{answer}");
    let (status, lines) = server.wait_for_end();
    assert!(status.success(), "{status}");
    assert!(lines.iter().any(|line| line["message"] == "stopped" && line["drained"] == true));
}

#[test]
fn requests_over_the_drain_limit_get_503() {
    let (server, _folder) = misbehaving("drain_seconds = 1\n");
    thread::scope(|scope| {
        let spinning = scope.spawn(|| spin(&server, "600000"));
        wait_until_busy(&server);
        let signalled = Instant::now();
        server.signal(Signal::INT);
        let answer = spinning.join().unwrap();
        assert_eq!((answer.status, answer.error_code()), (503, Some("not_ready")), "{answer:?}");
        assert!(answer.body["message"].is_string() && answer.body["request_id"].is_string());
        assert_eq!(answer.header("x-model-version"), Some("1.0.0"));
        assert!(signalled.elapsed() >= Duration::from_secs(1), "{:?}", signalled.elapsed());
    });
    let (status, lines) = server.wait_for_end();
    assert_eq!(status.code(), Some(1));
    assert!(lines.iter().any(|line| line["message"] == "stopped" && line["drained"] == false));
    assert!(lines.iter().any(|line| line["target"] == "request" && line["status"] == 503));
}
