//! Loading and unloading of models by name.

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::{DEMO_KEY, Server, Setup};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Reply, get, post, send};

/// The demo's key for the admin API.
const ADMIN: &str = "local-demo-admin-key";

fn change(server: &Server, path: &str, body: &str) -> Reply {
    let headers = [("X-API-Key", ADMIN)];
    send(server, Method::POST, &format!("/v2/repository/{path}"), &headers, body.into())
}

fn index(server: &Server) -> Value {
    let answer = change(server, "index", "{}");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn entry(version: &str, state: &str, reason: &str) -> Value {
    json!({"name": "simple", "version": version, "state": state, "reason": reason})
}

fn words(answer: &Reply) -> String {
    answer.json()["error"].as_str().unwrap().to_owned()
}

#[test]
fn a_model_is_unloaded_and_loaded_by_name() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple", "simple_string"]));
    assert_eq!(index(&server)[0], entry("1.0.0", "READY", ""));
    // The model is loaded already, so this succeeds.
    for body in [
        "",
        "{}",
        r#"{"parameters": {}}"#,
        r#"{"parameters": {"config": "{\"max_batch_size\": 8}"}}"#,
    ] {
        let answer = change(&server, "models/simple/load", body);
        assert_eq!(answer.status, 200, "{body} {answer:?}");
    }
    let gone = change(&server, "models/simple/unload", "{}");
    assert_eq!(gone.status, 200, "{gone:?}");
    assert_eq!(get(&server, "/v2/models/simple/ready").refusal().0, 404);
    let unloaded = index(&server);
    let simple: Vec<_> =
        unloaded.as_array().unwrap().iter().filter(|entry| entry["name"] == "simple").collect();
    assert!(simple.iter().all(|entry| entry["state"] != "READY"), "{unloaded}");
    let ready = change(&server, "index", r#"{"ready": true}"#).json();
    assert_eq!(ready.as_array().unwrap().len(), 1);
    assert_eq!(ready[0]["name"], "simple_string");
    // Unloading again has no effect.
    assert_eq!(change(&server, "models/simple/unload", "").status, 200);
    let back = change(&server, "models/simple/load", "{}");
    assert_eq!(back.status, 200, "{back:?}");
    assert_eq!(get(&server, "/v2/models/simple/ready").status, 200);
    let tensor = |name: &str| json!({"name": name, "shape": [1, 16], "datatype": "INT32", "data": vec![1; 16]});
    let request = json!({"inputs": [tensor("INPUT0"), tensor("INPUT1")]});
    assert_eq!(post(&server, "/v2/models/simple/infer", &request).status, 200);
    // The changes are in the history.
    let history = server.admin("GET", "history?model=simple", &Value::Null).body;
    let entries = history["entries"].as_array().unwrap_or_else(|| panic!("{history}"));
    let made: Vec<_> = entries.iter().map(|entry| entry["operation"].as_str().unwrap()).collect();
    assert!(made.contains(&"undeploy") && made.contains(&"deploy"), "{made:?}");
}

#[test]
fn unknown_models_and_parameters_fail_to_load() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple"]));
    for name in ["absent", "Absent", "a%20b"] {
        let answer = change(&server, &format!("models/{name}/load"), "{}");
        assert_eq!(answer.refusal(), (404, "not_found".to_owned()));
        assert!(words(&answer).contains("failed to load"), "{answer:?}");
        let answer = change(&server, &format!("models/{name}/unload"), "{}");
        assert_eq!(answer.refusal(), (404, "not_found".to_owned()));
    }
    // Callers may change neither the configuration nor the files of a model.
    for body in [
        r#"{"parameters": {"config": "{\"max_batch_size\": 16}"}}"#,
        r#"{"parameters": {"config": "nonsense"}}"#,
        r#"{"parameters": {"config": {}}}"#,
        r#"{"parameters": {"file:1/model.onnx": "AAAA"}}"#,
        r#"{"parameters": 5}"#,
        "[]",
        "{",
    ] {
        let answer = change(&server, "models/simple/load", body);
        assert_eq!(answer.refusal(), (400, "malformed_request".to_owned()), "{body}");
    }
    assert_eq!(get(&server, "/v2/models/simple/ready").status, 200);
}

#[test]
fn repository_endpoints_need_an_admin_key() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple"]));
    for path in ["index", "models/simple/load", "models/simple/unload", "models/absent/load"] {
        let path = format!("/v2/repository/{path}");
        let ask = |key| send(&server, Method::POST, &path, &[("X-API-Key", key)], b"{}".to_vec());
        assert_eq!(ask(DEMO_KEY).refusal(), (403, "forbidden".to_owned()), "{path}");
        assert_eq!(ask("").refusal(), (401, "unauthorized".to_owned()), "{path}");
    }
    assert_eq!(get(&server, "/v2/models/simple/ready").status, 200);
}

#[test]
fn repository_changes_can_be_disabled() {
    let folder = temporary_folder();
    let mut setup = Setup::fixtures(folder.path(), &["simple"]);
    setup.config.push_str("\n[server]\nrepository_changes = false\n");
    let server = Server::start(&setup);
    for path in ["models/simple/load", "models/simple/unload"] {
        assert_eq!(change(&server, path, "{}").refusal(), (403, "forbidden".to_owned()));
    }
    assert_eq!(index(&server)[0]["state"], "READY");
    let extensions = get(&server, "/v2").json()["extensions"].clone();
    assert!(!extensions.as_array().unwrap().contains(&json!("model_repository")), "{extensions}");
}

#[test]
fn referenced_versions_cannot_be_unloaded() {
    let folder = temporary_folder();
    let pack = |version| Misbehave { version, ..Misbehave::default() }.pack(folder.path());
    let setup = Setup {
        artifacts: vec![pack("1.0.0")],
        config: "[limits]\ninstance_memory_mib = 256\n".to_owned(),
        ..Setup::default()
    };
    let server = Server::start(&setup);
    assert_eq!(server.deploy(&pack("1.1.0"))["state"], "done");
    let canary = json!({"version": "1.1.0", "weight": 100_000});
    assert_eq!(server.admin("POST", "models/misbehave/canary", &canary).status, 200);
    let unload = || change(&server, "models/misbehave/unload", "{}");
    let refused = unload();
    assert_eq!(refused.refusal(), (409, "conflict".to_owned()));
    assert!(words(&refused).contains("failed to unload"));
    // All versions stay loaded.
    for version in ["1.0.0", "1.1.0"] {
        assert_eq!(
            get(&server, &format!("/v2/models/misbehave/versions/{version}/ready")).status,
            200
        );
    }
    // The same holds for the version that a rollback would need.
    let promote = json!({"version": "1.1.0"});
    assert_eq!(server.admin("POST", "models/misbehave/promote", &promote).status, 200);
    assert_eq!(unload().refusal(), (409, "conflict".to_owned()));
    // A version without traffic can be unloaded, and so can the last one.
    assert_eq!(server.admin("POST", "models/misbehave/rollback", &json!({})).status, 200);
    assert_eq!(unload().status, 200);
    assert_eq!(change(&server, "models/misbehave/load", "{}").status, 200);
    let described = get(&server, "/v2/models/misbehave").json();
    assert_eq!(described["versions"], json!(["1.0.0"]), "the stable version was not restored");
}
