use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

const CANARY: &str = "canary9f3a";

fn ask(server: &Server) {
    assert_eq!(server.post("/v1/predict", &json!({ "text": CANARY })).status, 200);
}

#[test]
fn requests_are_not_captured_by_default() {
    let server = Server::start(&Setup::toxicity());
    ask(&server);
    let folder = server.state().join("captures");
    assert!(server.metrics().contains("guesthouse_captured_requests_total{outcome=\"written\"} 0"));
    assert!(!folder.exists());
}

#[test]
fn captured_requests_are_readable_by_the_owner_only() {
    let setup = with_share(Setup::toxicity(), 1.0);
    let server = Server::start(&setup);
    ask(&server);
    let refused = server.post("/v1/predict", &json!({"text": ""}));
    assert_eq!(refused.status, 422);
    server.wait_for_metric("guesthouse_captured_requests_total{outcome=\"written\"} 1");
    let file = server.state().join("captures/capture.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert_eq!(lines[0]["request"], json!({ "text": CANARY }));
    assert_eq!((&lines[0]["model"], &lines[0]["version"]), (&json!("toxicity"), &json!("1.0.0")));
    assert_eq!(lines[0]["response"]["request_id"], lines[0]["request_id"]);
    assert!(!text.contains("local-demo-key"), "{text}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let (_, log) = server.stop();
    assert!(!log.iter().any(|line| line.to_string().contains(CANARY)));
}

/// Adds `capture_share` to the demo configuration.
fn with_share(mut setup: Setup, share: f64) -> Setup {
    let section = "[models.toxicity]\n";
    assert!(setup.config.contains(section), "{}", setup.config);
    setup.config = setup.config.replace(section, &format!("{section}capture_share = {share:?}\n"));
    setup
}
