use std::fs;
use std::path::Path;

use guesthouse_tests::artifacts::{Misbehave, replace_bytes, temporary_folder};
use guesthouse_tests::client::{self, DEMO_ADMIN_KEY, HttpResponse};
use guesthouse_tests::grpc::RepositoryModelLoadRequest;
use guesthouse_tests::{Server, Setup};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::Status;

use crate::grpc;

/// A setup in which the server has to compile the misbehaving guest.
fn setup(folder: &Path) -> Setup {
    let artifacts = vec![Misbehave::default().pack(folder)];
    Setup { artifacts, state: Some(folder.join("state")), ..Setup::default() }
}

fn is_failure(line: &Value) -> bool {
    line["level"] == "ERROR" && line["version"] == "1.0.0" && line["step"].is_string()
}

fn failures(server: &Server) -> Vec<Value> {
    server.lines().into_iter().filter(is_failure).collect()
}

/// Waits until that many failures are logged, and returns the last of them.
fn wait_for_failures(server: &Server, number: usize) -> Value {
    server.eventually("the failures are logged", |server| failures(server).len() >= number);
    failures(server).swap_remove(number - 1)
}

fn predict(server: &Server) -> HttpResponse {
    server.post("/models/misbehave/predict", &json!({"action": "echo"}))
}

fn wait_until_served(server: &Server) {
    server.eventually("the model predicts", |server| predict(server).status == 200);
}

/// The admin API's description of the only version.
fn version_status(server: &Server) -> Value {
    server.model("misbehave")["versions"][0].clone()
}

fn load(server: &Server, model: &str) -> HttpResponse {
    let url = server.url(&format!("/v2/repository/models/{model}/load"));
    client::send("POST", &url, &[("X-API-Key", DEMO_ADMIN_KEY)], b"{}")
}

fn load_by_grpc(server: &Server, model: &str) -> Result<(), Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let model_name = model.to_owned();
        let request = RepositoryModelLoadRequest { model_name, ..Default::default() };
        let mut client = grpc::client(server).await;
        client.repository_model_load(grpc::with_key(request, DEMO_ADMIN_KEY)).await.map(drop)
    })
}

/// Asserts that the failure of a killed compiler names the signal, blames no limit, and announces a
/// retry.
fn assert_reports_signal(line: &Value, signal: i32) {
    let reason = line["reason"].as_str().unwrap();
    assert_eq!(line["step"], "preinit", "{line}");
    assert!(reason.contains(&format!("signal {signal}")), "{line}");
    assert!(!reason.contains("limit") && !reason.contains("MiB"), "{line}");
    assert!(line["retry_in_seconds"].is_number(), "{line}");
}

#[test]
fn a_killed_compiler_is_restarted() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path());
    let server = Server::start_loading(&setup);
    for (number, signal) in [(1, Signal::KILL), (2, Signal::TERM)] {
        server.kill_compiler(signal);
        assert_reports_signal(&wait_for_failures(&server, number), signal.as_raw());
    }
    wait_until_served(&server);
    assert_eq!(version_status(&server)["retry_in_seconds"], Value::Null);
    assert!(server.stop().0.success());

    // A version that is deployed already is compiled again without a file in the folder.
    setup.artifacts.clear();
    fs::remove_dir_all(folder.path().join("state/compiled")).unwrap();
    let server = Server::start_loading(&setup);
    server.kill_compiler(Signal::KILL);
    assert_reports_signal(&wait_for_failures(&server, 1), 9);
    wait_until_served(&server);
    assert_eq!(version_status(&server)["state"], "ready");
}

/// Kills compilers until the next attempt is at least five seconds away.
fn fail_until_backoff(server: &Server) {
    for number in 1.. {
        server.kill_compiler(Signal::KILL);
        wait_for_failures(server, number);
        let version_status = version_status(server);
        // The next attempt may be running already.
        if version_status["retry_in_seconds"].as_u64().is_some_and(|seconds| seconds >= 5) {
            assert_eq!(version_status["failed_step"], "preinit", "{version_status}");
            break;
        }
    }
}

#[test]
fn load_by_name_retries_after_a_killed_compiler() {
    let folder = temporary_folder();
    let by_rest = |server: &Server| load(server, "misbehave").status == 200;
    let by_grpc = |server: &Server| load_by_grpc(server, "misbehave").is_ok();
    type Load<'a> = &'a dyn Fn(&Server) -> bool;
    for (name, load) in [("rest", &by_rest as Load), ("grpc", &by_grpc)] {
        let state = Some(folder.path().join(name));
        let server = Server::start_loading(&Setup { state, ..setup(folder.path()) });
        fail_until_backoff(&server);
        assert!(load(&server), "{name}: {:#?}", server.lines());
        assert_eq!(predict(&server).status, 200, "{name}");
    }
}

#[test]
fn deploying_again_retries_after_a_killed_compiler() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    let server = Server::start_loading(&setup);
    fail_until_backoff(&server);
    assert_eq!(server.deploy(&setup.artifacts[0])["state"], "done");
    server.eventually("1.0.0 is ready", |server| version_status(server)["state"] == "ready");
}

#[test]
fn a_broken_artifact_is_not_retried() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    replace_bytes(&setup.artifacts[0], r#""init":"well""#, r#""init":"fail""#);
    let server = Server::start_loading(&setup);
    let line = wait_for_failures(&server, 1);
    assert_eq!((&line["step"], &line["retry_in_seconds"]), (&json!("preinit"), &Value::Null));
    assert_eq!(version_status(&server)["retry_in_seconds"], Value::Null);
    // An explicit request tries again and returns the reason.
    let refused = load(&server, "misbehave");
    assert_eq!(refused.status, 422, "{refused:?}");
    wait_for_failures(&server, 2);
    assert!(load_by_grpc(&server, "misbehave").is_err());
    assert_eq!(load(&server, "absent").status, 404);
}

#[test]
fn an_unwritable_state_folder_delays_deployments_only() {
    let folder = temporary_folder();
    let config = "[limits]\nrepository_seconds = 1\n".to_owned();
    let server = Server::start(&Setup { config, ..setup(folder.path()) });
    let wait_until_ready = |version: &str| {
        server.wait_for(version, |line| {
            line["message"] == "version ready" && line["version"] == version
        });
    };
    let is_refused = |line: &Value| line["level"] == "ERROR" && line["step"] == "store";
    // First the compiled code cannot be stored, then the artifact itself.
    for (name, version) in [("compiled", "1.1.0"), ("artifacts", "1.2.0")] {
        let (path, away) = (folder.path().join("state").join(name), folder.path().join("away"));
        let next = Misbehave { version, ..Misbehave::default() }.pack(folder.path());
        fs::rename(&path, &away).unwrap();
        let skipped = server.lines().len();
        fs::rename(next, server.repository().join(format!("{version}.wasm"))).unwrap();
        server.wait_for_after(skipped, "the failure", is_refused);
        assert_eq!(predict(&server).status, 200);
        fs::rename(&away, &path).unwrap();
        wait_until_ready(version);
    }
}

#[test]
fn load_by_name_finds_a_newly_copied_file() {
    let folder = temporary_folder();
    // The folder is read once at the start, and not again during the test.
    let config = "[limits]\nrepository_seconds = 3600\n".to_owned();
    let state = Some(folder.path().join("state"));
    let server = Server::start_loading(&Setup { config, state, ..Setup::default() });
    server.wait_for("the repository folder being read", |line| {
        line["message"] == "repository folder read"
    });
    let pack = |version| Misbehave { version, ..Misbehave::default() }.pack(folder.path());
    assert_eq!(load(&server, "misbehave").status, 404);
    let whole = fs::read(pack("1.0.0")).unwrap();
    let file = server.repository().join("any-name.wasm");
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(load(&server, "misbehave").status, 404);
    fs::write(&file, &whole).unwrap();
    let loaded = load(&server, "misbehave");
    assert_eq!(loaded.status, 200, "{loaded:?}");
    assert_eq!(predict(&server).body["model_version"], "1.0.0");

    // Another version is loaded, and changes no routing.
    fs::rename(pack("1.1.0"), server.repository().join("next.wasm")).unwrap();
    load_by_grpc(&server, "misbehave").unwrap();
    let pinned =
        server.post("/models/misbehave/versions/1.1.0/predict", &json!({"action": "echo"}));
    assert_eq!((pinned.status, &pinned.body["model_version"]), (200, &json!("1.1.0")));
    assert_eq!(predict(&server).body["model_version"], "1.0.0");
}
