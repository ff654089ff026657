use std::collections::BTreeSet;
use std::net::TcpStream;

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::book::{self, Page};
use guesthouse_tests::client::{send, send_raw};
use guesthouse_tests::{Server, Setup};
use serde_json::json;

/// The value of a series; its labels may be in any order.
fn value(page: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let line = page.lines().find(|line| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']));
        rest.is_some_and(|rest| labels.iter().all(|label| rest.contains(label)))
    })?;
    line.rsplit_once(' ')?.1.parse().ok()
}

/// Waits until a series has this value; returns the page.
fn wait_for(server: &Server, name: &str, labels: &[&str], wanted: f64) -> String {
    let mut page = String::new();
    server.eventually(name, |server| {
        page = server.metrics();
        value(&page, name, labels) == Some(wanted)
    });
    page
}

#[test]
fn requests_are_counted_and_timed_by_version_and_status() {
    let server = Server::start(&Setup::toxicity());
    for _ in 0..3 {
        assert_eq!(server.post("/v1/predict", &json!({"text": "You are nice"})).status, 200);
    }
    assert_eq!(server.post("/v2/predict", &json!({"text": ""})).status, 422);
    let first = [r#"version="1.0.0""#, r#"role="stable""#];
    let answered = [first[0], first[1], r#"code="200""#, r#"route="/{major}/predict""#];
    let second = [r#"version="2.0.0""#, r#"role="candidate""#, r#"code="422""#];
    wait_for(&server, "guesthouse_requests_total", &answered, 3.0);
    let page = wait_for(&server, "guesthouse_requests_total", &second, 1.0);
    assert_eq!(value(&page, "guesthouse_request_duration_seconds_count", &first), Some(3.0));
    assert!(value(&page, "guesthouse_request_duration_seconds_sum", &first) > Some(0.0));
    for stage in ["queue", "instantiate", "predict", "encode"] {
        let name = format!("guesthouse_{stage}_duration_seconds");
        assert_eq!(value(&page, &format!("{name}_count"), &first[..1]), Some(3.0), "{stage}");
        let all = [first[0], r#"le="+Inf""#];
        assert_eq!(value(&page, &format!("{name}_bucket"), &all), Some(3.0), "{stage}");
    }
    let errors = [r#"listener="public""#, r#"error_code="unacceptable_input""#];
    assert_eq!(value(&page, "guesthouse_http_errors_total", &errors), Some(1.0));
}

#[test]
fn gauges_show_connections_limits_and_the_process() {
    let server = Server::start(&Setup::toxicity());
    let idle = TcpStream::connect(server.address()).unwrap();
    let open = [r#"listener="public""#];
    // The idle connection and the one of the request.
    let page = wait_for(&server, "guesthouse_connections_open", &open, 2.0);
    drop(idle);
    wait_for(&server, "guesthouse_connections_open", &open, 1.0);
    assert!(value(&page, "guesthouse_connections_accepted_total", &open) >= Some(2.0));
    let version = [r#"version="2.0.0""#];
    assert_eq!(value(&page, "guesthouse_split_weight_ratio", &version), Some(0.1));
    assert_eq!(value(&page, "guesthouse_queue_depth", &version), Some(0.0));
    assert_eq!(value(&page, "guesthouse_requests_in_flight", &version), Some(0.0));
    assert!(value(&page, "guesthouse_concurrency_limit", &version) > Some(0.0));
    let memory = [version[0], r#"state="idle""#];
    assert!(value(&page, "guesthouse_instance_memory_bytes", &memory) > Some(1e6));
    assert_eq!(value(&page, "guesthouse_bodies_in_flight_bytes", &[]), Some(0.0));
    assert_eq!(value(&page, "guesthouse_ready", &[]), Some(1.0));
    assert!(value(&page, "process_resident_memory_bytes", &[]) > Some(1e6));
    assert!(value(&page, "process_cpu_seconds_total", &[]) > Some(0.0));
    assert!(value(&page, "process_start_time_seconds", &[]) > Some(1.6e9));
    let proved = [r#"step="prove""#, r#"outcome="succeeded""#];
    assert_eq!(value(&page, "guesthouse_deploy_steps_total", &proved), Some(2.0));
}

#[test]
fn authentication_failures_are_counted_by_reason() {
    let server = Server::start(&Setup::toxicity());
    send("GET", &server.url("/models"), &[], b"");
    send("GET", &server.url("/models"), &[("X-API-Key", "canary9f3a")], b"");
    let admin = format!("http://{}/admin/v1/status", server.admin_address());
    send("GET", &admin, &[("X-API-Key", "canary9f3a")], b"");
    let name = "guesthouse_auth_failures_total";
    wait_for(&server, name, &[r#"reason="missing""#], 1.0);
    let page = wait_for(&server, name, &[r#"reason="unknown""#], 2.0);
    assert!(!page.contains("canary9f3a"));
}

#[test]
fn the_format_follows_the_accept_header() {
    let server = Server::start(&Setup::toxicity());
    server.assert_healthy();
    let agent: ureq::Agent = ureq::Agent::config_builder().build().into();
    let get = |accept: &str| {
        let request = agent.get(server.url("/metrics")).header("Accept", accept);
        let mut response = request.call().unwrap();
        let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        (content_type, response.body_mut().read_to_string().unwrap())
    };
    let (content_type, page) = get("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert!(content_type.starts_with("application/openmetrics-text; version=1.0.0"));
    assert!(page.ends_with("# EOF\n") && page.contains("# TYPE guesthouse_requests counter\n"));
    let (content_type, page) = get("text/plain");
    assert!(content_type.starts_with("text/plain; version=0.0.4"));
    assert!(!page.contains("# EOF") && !page.contains("# UNIT"));
    assert!(page.contains("# TYPE guesthouse_requests_total counter\n"));
}

#[test]
fn an_unloaded_version_leaves_no_series() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::misbehave(folder.path(), 5000));
    let next = Misbehave { version: "1.1.0", ..Misbehave::default() }.pack(folder.path());
    assert_eq!(server.deploy(&next)["state"], "done");
    let path = "/models/misbehave/versions/1.1.0/predict";
    let ask = |action: &str| server.post(path, &json!({ "action": action })).status;
    assert_eq!((ask("echo"), ask("panic")), (200, 500));
    let gone = r#"model="misbehave",version="1.1.0""#;
    wait_for(&server, "guesthouse_requests_total", &[gone, r#"code="500""#], 1.0);
    let path = "models/misbehave/versions/1.1.0";
    let undeployed = server.admin("DELETE", path, &serde_json::Value::Null);
    assert_eq!(undeployed.status, 200, "{undeployed:?}");
    server.wait_for("1.1.0 being unloaded", |line| {
        line["message"] == "unloaded" && line["version"] == "1.1.0"
    });
    let page = server.metrics();
    assert!(!page.contains(gone), "{page}");
    assert!(page.contains(r#"model="misbehave",version="1.0.0""#));
}

#[test]
fn caller_data_is_not_a_label() {
    let server = Server::start(&Setup::toxicity());
    for path in ["/canary9f3a", "/models/canary9f3a/predict", "/canary9f3a/predict?canary9f3a"] {
        let headers = [("X-Model-Version", "canary9f3a"), ("X-Request-Id", "canary9f3a")];
        server.send("POST", path, &headers, br#"{"canary9f3a": 1}"#);
    }
    let unknown = "CANARY9F3A /models HTTP/1.1\r\nHost: canary9f3a\r\nConnection: close\r\n\r\n";
    assert!(send_raw(server.address(), unknown.as_bytes()).starts_with("HTTP/1.1 405"));
    assert!(!server.metrics().to_lowercase().contains("canary9f3a"));
}

/// The families that a page declares.
fn families(page: &str) -> BTreeSet<&str> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|family| family.split(' ').next()).collect()
}

#[test]
fn metrics_and_their_documentation_are_the_same_set() {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 5000);
    setup.config.push_str("[tracing]\nendpoint = \"http://127.0.0.1:9\"\n");
    let server = Server::start(&setup);
    server.assert_healthy();
    server.post("/models/misbehave/predict", &json!({"action": "panic"}));
    send("GET", &server.url("/models"), &[], b"");
    let next = Misbehave { version: "1.1.0", ..Misbehave::default() }.pack(folder.path());
    assert_eq!(server.deploy(&next)["state"], "done");
    wait_for(&server, "guesthouse_auth_failures_total", &[r#"reason="missing""#], 1.0);
    crate::grpc::call(&server);
    wait_for(&server, "guesthouse_grpc_calls_total", &[r#"grpc_status="OK""#], 1.0);
    let page = server.metrics();
    let there = families(&page);
    let page = Page::open(book::book().join("reference/metrics.md")).text;
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeSet<_> = rows.filter_map(|row| row.split('`').next()).collect();
    // These need a candidate and a shadow, and are covered by the tests of operations.
    let shadow: BTreeSet<_> =
        ["guesthouse_shadow_comparisons_total", "guesthouse_shadow_differences_total"].into();
    assert_eq!(&there | &shadow, documented);
}
