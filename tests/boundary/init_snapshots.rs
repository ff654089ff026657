use std::path::Path;

use guesthouse_tests::artifacts::{Misbehave, temporary_folder, toxicity};
use guesthouse_tests::{HttpResponse, Server, Setup};
use serde_json::json;

fn setup(folder: &Path, misbehave: &Misbehave, config: &str) -> Setup {
    let output = folder.join("misbehave.wasm");
    let packed = misbehave.try_pack(folder, &output);
    let (stdout, error) = (String::from_utf8(packed.stdout), String::from_utf8(packed.stderr));
    let stdout = stdout.unwrap();
    assert!(packed.status.success(), "{}", error.unwrap());
    assert!(stdout.contains("init will run in each instance"), "{stdout}");
    Setup {
        artifacts: vec![toxicity("1.0.0"), output],
        config: format!("default_model = \"toxicity\"\n{config}"),
        ..Setup::default()
    }
}

fn ask(server: &Server, action: &str) -> HttpResponse {
    server.post("/models/misbehave/predict", &json!({ "action": action }))
}

fn assert_no_snapshot(server: &Server, reason: &str) {
    let line = server.wait_for("the warning", |line| {
        line["message"] == "no snapshot: init runs in each instance"
    });
    assert_eq!((&line["level"], &line["model"]), (&json!("WARN"), &json!("misbehave")));
    assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
    let version = server.send("GET", "/models/misbehave/versions/1.0.0", &[], b"");
    assert_eq!(version.body["snapshot"], false);
}

#[test]
fn an_init_that_uses_a_clock_or_stream_is_not_snapshotted() {
    for (init, reason) in [("time", "wasi:clocks/wall-clock"), ("echo", "wasi:cli/stdout")] {
        let folder = temporary_folder();
        let misbehave = Misbehave { init, ..Misbehave::default() };
        let config = "[models.misbehave]\nisolation = \"fresh\"\n";
        let server = Server::start(&setup(folder.path(), &misbehave, config));
        assert_no_snapshot(&server, reason);
        assert!((0..20).all(|_| ask(&server, "count").body["done"] == "1"));
        assert_eq!(ask(&server, "panic").error_code(), Some("model_failure"));
        assert_eq!(ask(&server, "echo").status, 200);
        server.assert_healthy();
    }
}

#[test]
fn a_composed_component_is_snapshotted() {
    let folder = temporary_folder();
    let composed = Misbehave { composed: true, init: "slow", ..Misbehave::default() };
    let setup = Setup {
        artifacts: vec![composed.pack(folder.path())],
        state: Some(folder.path().join("state")),
        config: "[limits]\nthreads_per_version = 1\n".to_owned(),
        ..Setup::default()
    };
    for _ in 0..2 {
        let server = Server::start(&setup);
        let version = server.send("GET", "/models/misbehave/versions/1.0.0", &[], b"");
        assert_eq!(version.body["snapshot"], true);
        let counts: Vec<_> = (0..3).map(|_| ask(&server, "count").body["done"].clone()).collect();
        assert_eq!(counts, ["1", "2", "3"]);
        assert_eq!(ask(&server, "panic").error_code(), Some("model_failure"));
        assert_eq!(ask(&server, "count").body["done"], "1");
        server.stop();
    }
}

#[test]
fn a_version_without_a_snapshot_is_loaded_again() {
    let folder = temporary_folder();
    let misbehave = Misbehave { init: "time", ..Misbehave::default() };
    let mut setup = setup(folder.path(), &misbehave, "[limits]\nthreads_per_version = 1\n");
    setup.state = Some(folder.path().join("state"));
    setup.artifacts.retain(|artifact| artifact.starts_with(folder.path()));
    for _ in 0..2 {
        let server = Server::start(&setup);
        assert_no_snapshot(&server, "wasi:clocks/wall-clock");
        let counts: Vec<_> = (0..3).map(|_| ask(&server, "count").body["done"].clone()).collect();
        assert_eq!(counts, ["1", "2", "3"]);
        assert_eq!(ask(&server, "panic").error_code(), Some("model_failure"));
        assert_eq!(ask(&server, "count").body["done"], "1");
        server.stop();
    }
}

#[test]
fn a_slow_init_per_instance_fails_only_short_timeouts() {
    let folder = temporary_folder();
    let misbehave = Misbehave { init: "late", ..Misbehave::default() };
    // Every trap leaves the next request without an instance until a new one is ready.
    let server = Server::start(&setup(folder.path(), &misbehave, ""));
    let body = json!({"action": "panic"}).to_string();
    let mut late = 0;
    for _ in 0..20 {
        let short = [("X-Request-Timeout-Ms", "20")];
        let answer = server.send("POST", "/models/misbehave/predict", &short, body.as_bytes());
        match (answer.status, answer.error_code()) {
            (504, Some("deadline_exceeded")) => late += 1,
            (500, Some("model_failure")) | (503, Some("not_ready")) => {}
            _ => panic!("{answer:?}"),
        }
        server.assert_healthy();
    }
    assert!(late > 0, "no request timed out during init");
    server.eventually("the version recovers", |server| ask(server, "echo").status == 200);
}

#[test]
fn a_slow_snapshotted_init_does_not_block_others() {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 5000);
    let slow = Misbehave { version: "2.0.0", init: "slow", ..Misbehave::default() };
    setup.artifacts.push(slow.pack(folder.path()));
    let server = Server::start_loading(&setup);
    server.wait_until_healthy();
    loop {
        server.assert_healthy();
        let path = "/models/misbehave/versions/2.0.0/predict";
        let answer = server.post(path, &json!({"action": "echo"}));
        match answer.error_code() {
            None => break,
            code => assert_eq!((answer.status, code), (503, Some("not_ready")), "{answer:?}"),
        }
    }
    assert_eq!(ask(&server, "echo").body["model_version"], "2.0.0");
}
