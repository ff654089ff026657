use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use guesthouse_tests::artifacts::{Misbehave, doctor, temporary_folder};
use guesthouse_tests::client::DEMO_ADMIN_KEY;
use guesthouse_tests::{Answer, Server, Setup, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;

/// More than a stop takes that waits for nothing, and less than what it must not wait for.
const PROMPT: Duration = Duration::from_secs(60);

fn toxicity(limits: &str) -> Setup {
    let mut setup = Setup::toxicity();
    setup.config.push_str(&format!("\n[limits]\n{limits}\n"));
    setup
}

/// A server whose guest computes for as long as its callers let it.
fn misbehaving(limits: &str) -> (Server, TempDir) {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 600_000);
    setup.config.push_str("predict_milliseconds_at_most = 600000\n");
    setup.config.push_str(limits);
    (Server::start(&setup), folder)
}

fn spin(server: &Server, milliseconds: &str) -> Answer {
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
fn a_terminated_server_serves_on_until_nobody_is_sent_to_it() {
    let server = Server::start(&toxicity("linger_seconds = 15"));
    assert_eq!(server.get("/readyz").status, 200);
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    server.wait_for("the word", lingers);
    let answer = server.get("/readyz");
    assert_eq!((answer.status, answer.error_code()), (503, Some("not_ready")));
    assert_eq!(server.get("/healthz").status, 200);
    // Each on a new connection; they end well before the server does.
    (0..10).for_each(|_| server.assert_healthy());
    assert_eq!(server.get("/readyz").status, 503);
    assert!(!server.lines().iter().any(drains), "it was still serving");
    let (status, lines) = server.wait_for_end();
    assert!(signalled.elapsed() >= Duration::from_secs(15), "{:?}", signalled.elapsed());
    assert!(status.success(), "{status}");
    assert!(lines.iter().any(|line| line["message"] == "stopped" && line["drained"] == true));
}

#[test]
fn whoever_stops_it_by_hand_does_not_wait() {
    let server = Server::start(&toxicity("linger_seconds = 300"));
    let signalled = Instant::now();
    server.signal(Signal::INT);
    let (status, lines) = server.wait_for_end();
    assert!(status.success() && signalled.elapsed() < PROMPT, "{status}");
    assert!(!lines.iter().any(lingers));
}

#[test]
fn a_second_signal_ends_the_lingering() {
    for second in [Signal::INT, Signal::TERM] {
        let server = Server::start(&toxicity("linger_seconds = 300"));
        let signalled = Instant::now();
        server.signal(Signal::TERM);
        server.wait_for("the word", lingers);
        server.signal(second);
        let (status, _) = server.wait_for_end();
        assert!(status.success() && signalled.elapsed() < PROMPT, "{second:?}: {status}");
    }
}

#[test]
fn two_signals_at_once_are_two_signals() {
    // Which of them the server sees first is not said; it must not lose the other.
    for _ in 0..4 {
        let server = Server::start(&toxicity("linger_seconds = 300"));
        let signalled = Instant::now();
        server.signal(Signal::TERM);
        server.signal(Signal::INT);
        let (status, _) = server.wait_for_end();
        assert!(status.success() && signalled.elapsed() < PROMPT, "{status}");
    }
}

#[test]
fn a_server_that_still_loads_stops_as_cleanly() {
    let folder = temporary_folder();
    let server = Server::start_loading(&Setup::misbehave(folder.path(), 1000));
    // As soon as it says where it listens.
    server.signal(Signal::INT);
    let (status, _) = server.wait_for_end();
    assert!(status.success(), "{status}");
}

#[test]
fn what_is_under_way_when_it_stops_is_answered() {
    let (server, _folder) = misbehaving("linger_seconds = 0\ndrain_seconds = 300\n");
    thread::scope(|scope| {
        let spinning = scope.spawn(|| spin(&server, "3000"));
        wait_until_busy(&server);
        server.signal(Signal::TERM);
        server.wait_for("the draining", drains);
        let answer = spinning.join().unwrap();
        // Its own deadline, not the server's.
        assert_eq!((answer.status, answer.error_code()), (504, Some("deadline_exceeded")));
    });
    let (status, lines) = server.wait_for_end();
    assert!(status.success(), "{status}");
    assert!(lines.iter().any(|line| line["message"] == "stopped" && line["drained"] == true));
}

#[test]
fn who_waits_for_news_of_a_deployment_does_not_hold_up_the_stop() {
    let (server, folder) = misbehaving("drain_seconds = 300\n");
    let endless = Misbehave { version: "1.1.0", ..Misbehave::default() }.pack(folder.path());
    doctor(&endless, r#""init":"well""#, r#""init":"spin""#);
    let operation = server.begin_deploy(&endless);
    let operation = operation["operation"].as_str().unwrap();
    let compiling = |line: &Value| line["message"] == "compiling, which takes some seconds";
    server.wait_for("the compiler", |line| compiling(line) && line["version"] == "1.1.0");
    let mut waiting = TcpStream::connect(server.admin_address()).unwrap();
    write!(
        waiting,
        "GET /admin/v1/operations/{operation}?wait_seconds=30 HTTP/1.1\r\nHost: x\r\n\
         X-API-Key: {DEMO_ADMIN_KEY}\r\n\r\n"
    )
    .unwrap();
    // A request on the same listener that comes later is answered, so the first one is under way.
    assert_eq!(server.model("misbehave")["stable"], "1.0.0");
    let signalled = Instant::now();
    server.signal(Signal::INT);
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("running"), "{answer}");
    let (status, _) = server.wait_for_end();
    // The wait alone would take half a minute.
    assert!(signalled.elapsed() < Duration::from_secs(20), "{:?}", signalled.elapsed());
    assert!(status.success(), "{status}");
}

#[test]
fn what_does_not_end_in_time_is_interrupted_and_told_so() {
    let (server, _folder) = misbehaving("drain_seconds = 1\n");
    let signalled = thread::scope(|scope| {
        let spinning = scope.spawn(|| spin(&server, "600000"));
        wait_until_busy(&server);
        let signalled = Instant::now();
        server.signal(Signal::INT);
        let answer = spinning.join().unwrap();
        assert_eq!((answer.status, answer.error_code()), (503, Some("not_ready")), "{answer:?}");
        assert!(answer.body["message"].is_string() && answer.body["request_id"].is_string());
        assert_eq!(answer.header("x-model-version"), Some("1.0.0"));
        assert!(signalled.elapsed() >= Duration::from_secs(1), "{:?}", signalled.elapsed());
        signalled
    });
    let (status, lines) = server.wait_for_end();
    assert!(signalled.elapsed() < PROMPT, "{:?}", signalled.elapsed());
    assert_eq!(status.code(), Some(1));
    assert!(lines.iter().any(|line| line["message"] == "stopped" && line["drained"] == false));
    assert!(lines.iter().any(|line| line["target"] == "request" && line["status"] == 503));
}
