use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use guesthouse_tests::artifacts::{Misbehave, growing, replace_bytes, temporary_folder};
use guesthouse_tests::client::{self, DEMO_ADMIN_KEY, HttpResponse};
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

/// Versions of the misbehaving guest beside a small model, in a new state folder.
fn setup(folder: &Path, versions: &[&'static str]) -> Setup {
    let mut artifacts: Vec<_> = versions.iter().map(|version| pack(folder, version)).collect();
    artifacts.push(growing("small", "1.0.0", 1, folder));
    // At idle priority, compilers would make no progress beside other tests.
    let config = "[limits]\npreinit_priority = \"low\"\n[models.misbehave]\nparked_versions = 0\n";
    let config = config.to_owned();
    Setup { artifacts, config, state: Some(folder.join("state")), ..Setup::default() }
}

fn pack(folder: &Path, version: &'static str) -> PathBuf {
    Misbehave { version, ..Misbehave::default() }.pack(folder)
}

/// A version whose `init` runs until its limit of CPU time, which is minutes.
fn slow(folder: &Path, version: &'static str) -> PathBuf {
    let file = pack(folder, version);
    replace_bytes(&file, r#""init":"well""#, r#""init":"spin""#);
    file
}

fn deploy(server: &Server, file: &Path, query: &str) -> Value {
    let url = format!("http://{}/admin/v1/deploy{query}", server.admin_address());
    let bytes = std::fs::read(file).unwrap();
    let answer = client::send("POST", &url, &[("X-API-Key", DEMO_ADMIN_KEY)], &bytes);
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.body
}

/// The state of an operation.
fn progress(server: &Server, operation: &Value, wait_seconds: u32) -> Value {
    let operation = operation["operation"].as_str().unwrap();
    let path = format!("operations/{operation}?wait_seconds={wait_seconds}");
    server.admin("GET", &path, &Value::Null).body
}

fn ended(server: &Server, operation: &Value) -> Value {
    loop {
        let progress = progress(server, operation, 30);
        if progress["state"] != "running" {
            return progress;
        }
    }
}

/// Starts a deployment and waits until it compiles.
fn begin(server: &Server, file: &Path) -> Value {
    let operation = deploy(server, file, "");
    server.eventually("the version is being compiled", |server| {
        let progress = progress(server, &operation, 0);
        let steps = progress["steps"].as_array().unwrap();
        assert_eq!(progress["state"], "running", "{progress}");
        steps.last().is_some_and(|step| step["step"] == "compile")
    });
    operation
}

fn assert_still_compiles(server: &Server, operation: &Value) {
    let progress = progress(server, operation, 0);
    let step = progress["steps"].as_array().unwrap().last().unwrap();
    assert_eq!((&progress["state"], &step["step"]), (&json!("running"), &json!("compile")));
}

fn change_by_name(server: &Server, change: &str) -> HttpResponse {
    let url = server.url(&format!("/v2/repository/models/small/{change}"));
    client::send("POST", &url, &[("X-API-Key", DEMO_ADMIN_KEY)], b"{}")
}

fn operate(server: &Server, what: &str, body: &Value) -> HttpResponse {
    server.admin("POST", &format!("models/misbehave/{what}"), body)
}

fn small(server: &Server) -> u16 {
    server.post("/models/small/predict", &json!({"text": "four"})).status
}

fn echo(server: &Server) -> HttpResponse {
    server.post("/models/misbehave/predict", &json!({"action": "echo"}))
}

#[test]
fn compiled_and_small_versions_load_during_a_compilation() {
    let folder = temporary_folder();
    let server = Server::start(&setup(folder.path(), &["1.0.0"]));
    let next = server.deploy(&pack(folder.path(), "1.1.0"));
    assert_eq!(next["state"], "done", "{next}");
    assert_eq!(operate(&server, "promote", &json!({"version": "1.1.0"})).status, 200);
    let first = |server: &Server| server.model("misbehave")["versions"][0]["state"].clone();
    server.eventually("1.0.0 is retired", |server| first(server) == "retired");
    let compiling = begin(&server, &slow(folder.path(), "1.9.0"));

    assert_eq!((change_by_name(&server, "unload").status, small(&server)), (200, 404));
    assert_eq!((change_by_name(&server, "load").status, small(&server)), (200, 200));
    assert_eq!(operate(&server, "rollback", &json!({})).status, 200);
    assert_eq!(echo(&server).body["model_version"], "1.0.0");
    let deployed = server.deploy(&growing("small", "1.1.0", 2, folder.path()));
    assert_eq!(deployed["state"], "done", "{deployed}");
    assert_still_compiles(&server, &compiling);
}

#[test]
fn slow_small_artifacts_do_not_delay_a_quick_one() {
    let folder = temporary_folder();
    let server = Server::start(&setup(folder.path(), &["1.0.0"]));
    let versions = ["1.9.0", "1.9.1", "1.9.2", "1.9.3", "1.9.4", "1.9.5"];
    let slow = versions.map(|version| begin(&server, &slow(folder.path(), version)));
    let deployed = server.deploy(&growing("small", "1.1.0", 2, folder.path()));
    assert_eq!(deployed["state"], "done", "{deployed}");
    slow.iter().for_each(|operation| assert_still_compiles(&server, operation));
    assert_eq!((small(&server), echo(&server).status), (200, 200));
}

#[test]
fn a_version_is_adopted_as_soon_as_it_is_ready() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path(), &["1.0.0"]);
    setup.artifacts.extend(["1.8.0", "1.9.0"].map(|version| slow(folder.path(), version)));
    let server = Server::start_loading(&setup);
    server.eventually("the other model predicts", |server| small(server) == 200);
    // Nor does a model wait for its own higher versions.
    server.eventually("the lower version is stable", |server| {
        server.model("misbehave")["stable"] == "1.0.0"
    });
    assert_eq!(echo(&server).body["model_version"], "1.0.0");
    let model = server.model("misbehave");
    let states: Vec<_> =
        model["versions"].as_array().unwrap().iter().map(|shown| &shown["state"]).collect();
    assert_eq!(states, ["ready", "loading", "loading"]);
    let is_read = |line: &Value| line["message"] == "repository folder read";
    assert!(!server.lines().iter().any(is_read));
    // Not all files have been tried yet.
    assert_eq!(server.get("/readyz").status, 503);
}

#[test]
fn concurrent_deployments_of_a_version_load_it_once() {
    let folder = temporary_folder();
    let server = Server::start(&setup(folder.path(), &["1.0.0"]));
    let file = pack(folder.path(), "1.1.0");
    let operations: Vec<_> = (0..6).map(|_| deploy(&server, &file, "")).collect();
    for operation in &operations {
        assert_eq!(ended(&server, operation)["state"], "done");
    }
    let is_compiled = |line: &&Value| line["message"] == "compiled" && line["version"] == "1.1.0";
    assert_eq!(server.lines().iter().filter(is_compiled).count(), 1);
}

/// How often each operator repeats its change.
const ROUNDS: usize = 25;

fn repeat_concurrently<'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl Fn() + Send + 'scope,
) -> ScopedJoinHandle<'scope, ()> {
    scope.spawn(move || (0..ROUNDS).for_each(|_| work()))
}

#[test]
fn concurrent_changes_route_only_to_loaded_versions() {
    let folder = temporary_folder();
    let server = Server::start(&setup(folder.path(), &["1.0.0"]));
    let files = ["1.1.0", "1.2.0"].map(|version| pack(folder.path(), version));
    for file in &files {
        assert_eq!(server.deploy(file)["state"], "done");
    }
    let is_over = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut seen = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                seen.push(echo(&server).status);
            }
            seen
        });
        // Some changes are rejected; which ones does not matter.
        let mut operators = Vec::new();
        for file in &files {
            operators.push(repeat_concurrently(scope, || {
                drop(ended(&server, &deploy(&server, file, "?promote=true")))
            }));
        }
        for version in ["1.1.0", "1.2.0"] {
            let path = format!("models/misbehave/versions/{version}");
            let server = &server;
            operators.push(repeat_concurrently(scope, move || {
                drop(server.admin("DELETE", &path, &Value::Null))
            }));
        }
        let weight = json!({"version": "1.1.0", "weight": 300_000, "supersede": true});
        for (what, body) in [
            ("rollback", json!({})),
            ("rollback", json!({"to": "1.0.0"})),
            ("promote", json!({"version": "1.2.0", "supersede": true})),
            ("canary", weight),
        ] {
            let server = &server;
            operators.push(repeat_concurrently(scope, move || drop(operate(server, what, &body))));
        }
        operators.into_iter().for_each(|repeat_concurrently| repeat_concurrently.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    });
    assert!(seen.len() > ROUNDS && seen.iter().all(|status| *status == 200), "{seen:?}");
    let model = server.model("misbehave");
    let stable = &model["stable"];
    let shown = model["versions"].as_array().unwrap();
    let shown = shown.iter().find(|shown| shown["version"] == *stable).unwrap();
    assert_eq!(shown["state"], "ready", "{model}");
    assert!((0..50).all(|_| echo(&server).status == 200));
    assert_eq!(server.get("/readyz").status, 200);
}
