use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::{HttpResponse, Server, Setup};
use serde_json::{Value, json};

/// The duration of the request that is running when its version is replaced.
const LONG: Duration = Duration::from_secs(20);

fn ask(server: &Server, path: &str) -> HttpResponse {
    server.post(&format!("/models/misbehave/{path}"), &json!({"action": "echo"}))
}

/// The state of a version as the admin API shows it.
fn state(server: &Server, version: &str) -> Value {
    let model = server.model("misbehave");
    let versions = model["versions"].as_array().unwrap();
    let found = versions.iter().find(|shown| shown["version"] == version);
    found.map(|shown| shown["state"].clone()).unwrap_or_default()
}

fn unloaded(line: &Value) -> bool {
    line["message"] == "unloaded" && line["version"] == "1.0.0"
}

/// A server that keeps no replaced versions loaded, with versions 1.0.0 and 1.1.0.
fn server(folder: &Path) -> Server {
    let mut setup = Setup::misbehave(folder, 5000);
    setup.config.push_str("[models.misbehave]\nparked_versions = 0\n");
    let server = Server::start(&setup);
    let next = Misbehave { version: "1.1.0", ..Misbehave::default() }.pack(folder);
    assert_eq!(server.deploy(&next)["state"], "done");
    server
}

#[test]
fn a_replaced_version_drains_and_can_be_rolled_back_to() {
    let folder = temporary_folder();
    let server = server(folder.path());
    assert_eq!(ask(&server, "predict").body["model_version"], "1.0.0");

    thread::scope(|scope| {
        let long = scope.spawn(|| {
            let begun = Instant::now();
            let body = json!({"action": "spin"}).to_string();
            let milliseconds = LONG.as_millis().to_string();
            let time = [("X-Request-Timeout-Ms", milliseconds.as_str())];
            let path = "/models/misbehave/predict";
            let answer = server.send("POST", path, &time, body.as_bytes());
            (answer, begun.elapsed())
        });
        let busy = r#"model="misbehave",version="1.0.0",state="busy"} 1"#;
        server.wait_for_metric(busy);
        let promote = json!({"version": "1.1.0"});
        let promoted = server.admin("POST", "models/misbehave/promote", &promote);
        assert_eq!((promoted.status, &promoted.body["status"]), (200, &json!("Promoted")));
        assert_eq!(state(&server, "1.0.0"), "draining");
        assert_eq!(state(&server, "1.1.0"), "ready");
        let answer = ask(&server, "predict");
        assert_eq!((answer.status, &answer.body["model_version"]), (200, &json!("1.1.0")));
        let answer = ask(&server, "versions/1.0.0/predict");
        assert_eq!((answer.status, answer.error_code()), (404, Some("not_found")), "{answer:?}");
        assert!(!long.is_finished() && !server.lines().iter().any(unloaded));

        let (answer, took) = long.join().unwrap();
        assert_eq!((answer.status, answer.error_code()), (504, Some("deadline_exceeded")));
        assert_eq!(answer.header("x-model-version"), Some("1.0.0"));
        assert!(took >= LONG, "{took:?}");
    });
    server.wait_for("1.0.0 being unloaded", unloaded);
    assert_eq!(state(&server, "1.0.0"), "retired");
    let answer = ask(&server, "versions/1.0.0/predict");
    assert_eq!((answer.status, answer.error_code()), (404, Some("not_found")));

    let back = server.admin("POST", "models/misbehave/rollback", &json!({}));
    assert_eq!((back.status, &back.body["status"]), (200, &json!("RolledBack")), "{back:?}");
    assert_eq!(state(&server, "1.0.0"), "ready");
    let answer = ask(&server, "predict");
    assert_eq!((answer.status, &answer.body["model_version"]), (200, &json!("1.0.0")));
}

#[test]
fn a_draining_version_can_be_rolled_back_to() {
    let folder = temporary_folder();
    let server = server(folder.path());
    thread::scope(|scope| {
        let long = scope.spawn(|| {
            let body = json!({"action": "spin"}).to_string();
            let time = [("X-Request-Timeout-Ms", "20000")];
            server.send("POST", "/models/misbehave/predict", &time, body.as_bytes())
        });
        let busy = r#"model="misbehave",version="1.0.0",state="busy"} 1"#;
        server.wait_for_metric(busy);
        let promote = json!({"version": "1.1.0"});
        assert_eq!(server.admin("POST", "models/misbehave/promote", &promote).status, 200);
        assert_eq!(state(&server, "1.0.0"), "draining");
        let back = server.admin("POST", "models/misbehave/rollback", &json!({}));
        assert_eq!(back.status, 200, "{back:?}");
        let answer = ask(&server, "predict");
        assert_eq!((answer.status, &answer.body["model_version"]), (200, &json!("1.0.0")));
        assert_eq!(state(&server, "1.0.0"), "ready");
        assert_eq!(long.join().unwrap().status, 504);
    });
    // The drained version is unloaded; the one that was loaded meanwhile stays.
    server.wait_for("the drained 1.0.0 being unloaded", unloaded);
    assert_eq!(state(&server, "1.0.0"), "ready");
    assert_eq!(ask(&server, "versions/1.0.0/predict").status, 200);
}
