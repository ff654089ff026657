use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::client::{send, send_raw};
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

#[test]
fn every_request_is_one_line_with_its_id() {
    let server = Server::start(&Setup::toxicity());
    let body = json!({"text": "You are nice", "request_id": "log-1"});
    assert_eq!(server.post("/v1/predict", &body).status, 200);
    let line = server.wait_for("log-1", |line| line["request_id"] == "log-1");
    assert_eq!(line["target"], "request");
    assert_eq!(line["route"], "/{major}/predict");
    assert_eq!((&line["model"], &line["version"]), (&json!("toxicity"), &json!("1.0.0")));
    assert_eq!((&line["status"], &line["caller"]), (&json!(200), &json!("demo")));
    assert_eq!((&line["reason"], &line["rows"]), (&json!("range"), &json!(1)));
    assert!(line["latency_ms"].as_f64().unwrap() > 0.0);
    let long = json!({"text": "", "request_id": "log-2"});
    assert_eq!(server.post("/v1/predict", &long).status, 422);
    let line = server.wait_for("log-2", |line| line["request_id"] == "log-2");
    assert_eq!((&line["status"], &line["error_code"]), (&json!(422), &json!("unacceptable_input")));
    let lines = server.lines();
    assert_eq!(lines.iter().filter(|line| line["request_id"] == "log-1").count(), 1);
}

#[test]
fn what_a_guest_logs_and_its_faults_carry_the_request_id() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::misbehave(folder.path(), 5000));
    let body = json!({"action": "panic", "request_id": "fault-1"});
    assert_eq!(server.post("/models/misbehave/predict", &body).status, 500);
    for target in ["guest", "fault", "request"] {
        server.wait_for(target, |line| {
            let id = line["request_id"].as_str().or(line["span"]["request_id"].as_str());
            line["target"] == target && id == Some("fault-1")
        });
    }
}

#[test]
fn nothing_that_a_caller_sends_reaches_the_log_but_its_request_id() {
    const CANARY: &str = "canary9f3a";
    let server = Server::start(&Setup::toxicity());
    let text = json!({ "text": CANARY }).to_string();
    let json = ("Content-Type", "application/json");
    let key = ("X-API-Key", "local-demo-key");
    let canary_path = format!("/models/{CANARY}/versions/{CANARY}/predict?q={CANARY}");
    let unknown = json!({ CANARY: 1 }).to_string();
    let batch = json!({"texts": [CANARY, 1]}).to_string();
    let malformed = format!("{{{CANARY}");
    for (path, headers, body) in [
        ("/v1/predict", vec![json, key], text.as_str()),
        ("/v1/predict", vec![json, key], &unknown),
        ("/v1/predict", vec![json, key], &malformed),
        ("/v1/batch_predict", vec![json, key], &batch),
        ("/v1/predict", vec![json, ("X-API-Key", CANARY)], &text),
        ("/v1/predict", vec![json, key, ("User-Agent", CANARY), ("X-Custom", CANARY)], &text),
        ("/v1/predict", vec![("Content-Type", CANARY), key], &text),
        (&canary_path, vec![json, key], &text),
        (&format!("/{CANARY}"), vec![json, key], &text),
    ] {
        send("POST", &server.url(path), &headers, body.as_bytes());
    }
    let (_, lines) = server.stop();
    assert!(lines.iter().filter(|line| line["target"] == "request").count() >= 9);
    for line in &lines {
        let line = line.to_string();
        assert!(!line.contains(CANARY), "{line}");
        assert!(!line.contains("local-demo-key"), "{line}");
    }
}

/// More lines than wait anywhere: in the server, in the pipe, in the test.
const FLOOD: usize = 12_000;

/// Refused requests over one connection, each one line of the log.
fn flood(server: &Server) {
    let request = format!("GET /models HTTP/1.1\r\nHost: {}\r\n\r\n", server.address());
    let last = request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    for _ in 0..FLOOD / 100 {
        let answers =
            send_raw(server.address(), format!("{}{last}", request.repeat(99)).as_bytes());
        assert_eq!(answers.matches("HTTP/1.1 401").count(), 100);
    }
}

#[test]
fn a_log_that_nobody_reads_stalls_nothing() {
    let server = Server::start(&Setup::toxicity());
    server.stall_log(true);
    flood(&server);
    server.assert_healthy();
    assert!(server.stop_unread().success());
}

#[test]
fn lines_that_nobody_read_in_time_are_counted() {
    let server = Server::start(&Setup::toxicity());
    server.stall_log(true);
    flood(&server);
    server.stall_log(false);
    let wanted = json!({"text": "You are nice", "request_id": "after-the-stall"});
    let written = |line: &Value| line["request_id"] == "after-the-stall";
    // Lines are still dropped until the queue has been read.
    while !server.lines().iter().any(written) {
        assert_eq!(server.post("/v1/predict", &wanted).status, 200);
    }
    let (status, lines) = server.stop();
    assert!(status.success());
    let dropped = lines.iter().rev().find_map(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("log lines were dropped").then(|| line["lines"].as_u64())
    });
    let requests = lines.iter().filter(|line| line["route"] == "/models").count();
    assert!(dropped.flatten() >= Some((FLOOD - requests) as u64), "{dropped:?}, {requests}");
    assert!(requests < FLOOD);
}
