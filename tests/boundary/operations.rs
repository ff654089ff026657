use std::path::Path;

use guesthouse_tests::artifacts::{Misbehave, replace_bytes, temporary_folder, toxicity};
use guesthouse_tests::client::{self, DEMO_ADMIN_KEY, DEMO_KEY, HttpResponse};
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

/// Versions of the misbehaving guest, with a state folder of the test's own.
fn setup(folder: &Path, versions: &[&'static str]) -> Setup {
    let pack = |version: &&'static str| Misbehave { version, ..Misbehave::default() }.pack(folder);
    let artifacts = versions.iter().map(pack).collect();
    Setup { artifacts, state: Some(folder.join("state")), ..Setup::default() }
}

fn post(server: &Server, path: &str, body: Value) -> HttpResponse {
    server.admin("POST", &format!("models/misbehave/{path}"), &body)
}

/// Asserts that a change was made; returns the body.
fn assert_changed(answer: &HttpResponse) -> &Value {
    assert_eq!((answer.status, &answer.body["changed"]), (200, &json!(true)), "{answer:?}");
    &answer.body
}

fn refused(answer: &HttpResponse) -> (u16, &str) {
    (answer.status, answer.error_code().unwrap_or_default())
}

fn model(server: &Server) -> Value {
    let answer = server.admin("GET", "models/misbehave", &Value::Null);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// The states of all versions.
fn states(server: &Server) -> Vec<String> {
    let versions = model(server)["versions"].as_array().unwrap().clone();
    versions.iter().map(|version| version["state"].as_str().unwrap().to_owned()).collect()
}

/// Which version answered, and why it was chosen.
fn served(server: &Server, path: &str, headers: &[(&str, &str)]) -> (String, String) {
    let answer = server.send("POST", path, headers, br#"{"action": "echo"}"#);
    assert_eq!(answer.status, 200, "{answer:?}");
    let header = |name| answer.header(name).unwrap().to_owned();
    (header("x-model-version"), header("x-route-reason"))
}

fn words((version, reason): &(String, String)) -> (&str, &str) {
    (version, reason)
}

/// Uploads an artifact and waits until the deployment has ended.
fn deploy(server: &Server, file: &Path, query: &str, headers: &[(&str, &str)]) -> Value {
    let url = format!("http://{}/admin/v1/deploy{query}", server.admin_address());
    let mut all = vec![("X-API-Key", DEMO_ADMIN_KEY)];
    all.extend(headers);
    let answer = client::send("POST", &url, &all, &std::fs::read(file).unwrap());
    assert_eq!(answer.status, 202, "{answer:?}");
    let path = format!("operations/{}?wait_seconds=30", answer.body["operation"].as_str().unwrap());
    loop {
        let answer = server.admin("GET", &path, &Value::Null);
        assert_eq!(answer.status, 200, "{answer:?}");
        if answer.body["state"] != "running" {
            return answer.body;
        }
    }
}

#[test]
fn a_version_is_deployed_canaried_promoted_rolled_back() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path(), &["1.0.0"]);
    setup.config = "[models.misbehave]\nsticky_header = \"X-User-Id\"\n".to_owned();
    let server = Server::start(&setup);
    assert_eq!(words(&served(&server, "/predict", &[])), ("1.0.0", "default"));

    let next = Misbehave { version: "1.1.0", ..Misbehave::default() }.pack(folder.path());
    let deployed = deploy(&server, &next, "", &[]);
    assert_eq!(
        (&deployed["state"], &deployed["result"]["version"]),
        (&json!("done"), &json!("1.1.0"))
    );
    let steps: Vec<_> =
        deployed["steps"].as_array().unwrap().iter().map(|step| &step["step"]).collect();
    assert_eq!(
        steps,
        ["store", "verify", "contract", "find", "compile", "prove", "replay", "publish"]
    );
    let replay = &deployed["result"]["replay"];
    assert_eq!((&replay["of"], &replay["examples"]), (&json!("1.0.0"), &json!(1)));
    // A deployed version answers only requests that select it.
    assert_eq!(words(&served(&server, "/v1/predict", &[])), ("1.0.0", "range"));
    let pin = "/models/misbehave/versions/1.1.0/predict";
    assert_eq!(words(&served(&server, pin, &[])), ("1.1.0", "pin"));

    let canary = post(&server, "canary", json!({"version": "1.1.0", "weight": 100_000}));
    assert_eq!(assert_changed(&canary)["after"]["candidates"], json!({"1.1.0": 100_000}));
    // The published hash places a caller; places below 100,000 belong to the candidate.
    let places = ["user-0", "alice"].map(|user| {
        let path = format!("models/misbehave/resolve?key={user}");
        let resolved = server.admin("GET", &path, &Value::Null).body;
        let expected =
            if resolved["place"].as_u64().unwrap() < 100_000 { "1.1.0" } else { "1.0.0" };
        assert_eq!(resolved["version"], expected);
        assert_eq!(
            words(&served(&server, "/predict", &[("X-User-Id", user)])),
            (expected, "split")
        );
        resolved["place"].as_u64().unwrap()
    });
    assert_ne!(places[0], places[1]);
    let channel = "/models/misbehave/versions/canary/predict";
    assert_eq!(words(&served(&server, channel, &[])), ("1.1.0", "channel"));
    for (weight, parts) in [(json!("25%"), 250_000), (json!("0.2"), 200_000), (json!(10), 10)] {
        let canary = post(&server, "canary", json!({"version": "1.1.0", "weight": weight}));
        assert_eq!(
            assert_changed(&canary)["after"]["candidates"],
            json!({"1.1.0": parts}),
            "{weight}"
        );
    }
    // Weight 0 overrides stickiness; only explicit requests reach the candidate.
    assert_changed(&post(&server, "canary", json!({"version": "1.1.0", "weight": 0})));
    for user in 0..20 {
        let user = format!("user-{user}");
        let split = served(&server, "/predict", &[("X-User-Id", &user)]);
        assert_eq!(words(&split), ("1.0.0", "split"));
    }
    assert_eq!(words(&served(&server, channel, &[])), ("1.1.0", "channel"));

    let promoted = post(&server, "promote", json!({"version": "1.1.0"}));
    assert_eq!(assert_changed(&promoted)["status"], "Promoted");
    assert_eq!(words(&served(&server, "/predict", &[])), ("1.1.0", "default"));
    assert_eq!(refused(&server.send("POST", channel, &[], b"{}")), (404, "not_found"));
    assert_eq!(states(&server), ["parked", "ready"]);
    let back = post(&server, "rollback", json!({}));
    assert_eq!(assert_changed(&back)["status"], "RolledBack");
    assert_eq!(words(&served(&server, "/predict", &[])), ("1.0.0", "default"));
    let stable = "/models/misbehave/versions/stable/predict";
    assert_eq!(words(&served(&server, stable, &[])), ("1.0.0", "channel"));
}

#[test]
fn a_restart_restores_the_routing_and_the_history() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path(), &["1.0.0", "1.1.0", "1.2.0"]);
    setup.config = "[models.misbehave]\nparked_versions = 1\n".to_owned();
    let server = Server::start(&setup);
    let next = ["1.3.0", "1.4.0"].map(|version| {
        let file = Misbehave { version, ..Misbehave::default() }.pack(folder.path());
        deploy(&server, &file, "", &[])
    });
    assert!(next.iter().all(|operation| operation["state"] == "done"), "{next:?}");
    assert_changed(&post(&server, "promote", json!({"version": "1.3.0"})));
    assert_changed(&post(&server, "canary", json!({"version": "1.4.0", "weight": 250_000})));
    assert_changed(&post(&server, "shadow", json!({"version": "1.1.0", "share": 500_000})));
    let before = (model(&server), server.admin("GET", "history", &Value::Null).body);
    assert!(server.stop().0.success());
    // The folder is empty: a deployed version does not depend on it.
    setup.artifacts.clear();
    let server = Server::start(&setup);
    assert_eq!((model(&server), server.admin("GET", "history", &Value::Null).body), before);
    assert_eq!(states(&server), ["ready", "ready", "parked", "ready", "ready"]);
    assert_changed(&post(&server, "rollback", json!({})));
    assert_changed(&post(&server, "rollback", json!({})));
    assert_eq!(words(&served(&server, "/predict", &[])), ("1.2.0", "default"));
}

#[test]
fn invalid_changes_are_rejected_without_effect() {
    let folder = temporary_folder();
    let server = Server::start(&setup(folder.path(), &["1.0.0", "1.1.0", "2.0.0-rc.1"]));
    let other = Misbehave { version: "1.1.0", init: "slow", ..Misbehave::default() };
    let other = other.pack(folder.path());
    let before = model(&server);
    assert_eq!(before["stable"], "1.1.0", "a pre-release became the default");
    for (path, body, error) in [
        ("promote", json!({"version": "9.9.9"}), (404, "not_found")),
        ("promote", json!({"version": "1.0.0"}), (409, "conflict")),
        ("promote", json!({"version": "1"}), (400, "malformed_request")),
        ("promote", json!({"version": "1.1.0", "suprsede": true}), (400, "malformed_request")),
        ("promote", json!([]), (400, "malformed_request")),
        ("promote?reson=x", json!({"version": "1.1.0"}), (400, "malformed_request")),
        ("canary", json!({"version": "1.1.0", "weight": 1}), (409, "conflict")),
        ("canary", json!({"version": "1.0.0", "weight": 1_000_001}), (400, "malformed_request")),
        ("canary", json!({"version": "1.0.0", "weight": -1}), (400, "malformed_request")),
        ("canary", json!({"version": "1.0.0", "weight": 0.5}), (400, "malformed_request")),
        ("canary", json!({"version": "1.0.0", "weight": 1.0}), (400, "malformed_request")),
        ("canary", json!({"version": "1.0.0", "weight": "10"}), (400, "malformed_request")),
        ("canary", json!({"version": "1.0.0", "weight": "1"}), (400, "malformed_request")),
        ("canary", json!({"version": "1.0.0", "weight": "101%"}), (400, "malformed_request")),
        ("shadow", json!({"version": "1.0.0", "share": "10"}), (400, "malformed_request")),
        ("shadow", json!({"version": "9.9.9"}), (404, "not_found")),
        ("shadow", json!({"share": 5}), (400, "malformed_request")),
        ("rollback", json!({}), (409, "conflict")),
        ("rollback", json!({"to": "1.0.0"}), (409, "conflict")),
        (
            "promote?expected_revision=1",
            json!({"version": "2.0.0-rc.1"}),
            (409, "revision_conflict"),
        ),
        ("nothing", json!({}), (404, "not_found")),
    ] {
        let answer = post(&server, path, body.clone());
        assert_eq!(refused(&answer), error, "{path} {body}: {answer:?}");
    }
    let delete = |path: &str| server.admin("DELETE", &format!("models/{path}"), &Value::Null);
    assert_eq!(refused(&delete("misbehave/versions/1.1.0")), (409, "conflict"));
    assert_eq!(refused(&delete("misbehave/versions/9.0.0")), (404, "not_found"));
    assert_eq!(refused(&delete("misbehave/versions/x")), (400, "malformed_request"));
    assert_eq!(refused(&delete("nobody/versions/1.0.0")), (404, "not_found"));
    let unknown = server.admin("POST", "models/nobody/promote", &json!({"version": "1.0.0"}));
    assert_eq!(refused(&unknown), (404, "not_found"));

    // No artifact at all is rejected before an operation begins.
    let url = format!("http://{}/admin/v1/deploy", server.admin_address());
    let empty = client::send("POST", &url, &[("X-API-Key", DEMO_ADMIN_KEY)], b"");
    assert_eq!(refused(&empty), (400, "malformed_request"));

    // The same version with other bytes, and a file that is not an artifact.
    let failed = deploy(&server, &other, "", &[]);
    assert_eq!(
        (&failed["state"], &failed["error"]["error_code"]),
        (&json!("failed"), &json!("conflict"))
    );
    std::fs::write(folder.path().join("junk"), b"junk").unwrap();
    let failed = deploy(&server, &folder.path().join("junk"), "", &[]);
    assert_eq!(failed["error"]["error_code"], "unacceptable_artifact");
    assert_eq!(model(&server), before);
    let history = server.admin("GET", "history?limit=1", &Value::Null).body;
    let last = &history["entries"][0];
    assert_eq!((&last["operation"], &last["outcome"]), (&json!("deploy"), &json!("failed")));
    assert!(last["error"].as_str().unwrap().contains("other content"), "{last}");
}

#[test]
fn a_version_that_fails_its_checks_is_not_deployed() {
    let folder = temporary_folder();
    let server = Server::start(&setup(folder.path(), &["1.0.0"]));
    let wrong = Misbehave { version: "1.0.1", ..Misbehave::default() }.pack(folder.path());
    replace_bytes(&wrong, r#""done": "echo""#, r#""done": "ecco""#);
    let failed = deploy(&server, &wrong, "?promote=true", &[]);
    assert_eq!(failed["error"]["error_code"], "unacceptable_artifact", "{failed}");
    let failing = Misbehave { version: "1.0.2", ..Misbehave::default() }.pack(folder.path());
    replace_bytes(&failing, r#""init":"well""#, r#""init":"fail""#);
    let failed = deploy(&server, &failing, "", &[]);
    assert_eq!(failed["error"]["error_code"], "unacceptable_artifact", "{failed}");
    assert_eq!(states(&server), ["ready"]);
    assert_eq!(words(&served(&server, "/predict", &[])), ("1.0.0", "default"));
}

#[test]
fn too_small_a_version_step_is_a_contract_violation() {
    let folder = temporary_folder();
    let server = Server::start(&setup(folder.path(), &["1.0.0"]));
    let more = Misbehave { version: "1.0.1", ..Misbehave::default() }.pack(folder.path());
    replace_bytes(&more, r#""max_batch_size":8"#, r#""max_batch_size":9"#);
    let failed = deploy(&server, &more, "", &[]);
    assert_eq!(failed["error"]["error_code"], "contract_violation", "{failed}");
    assert_eq!(failed["error"]["details"][0]["bump"], "minor", "{failed}");
    assert_eq!(states(&server), ["ready"]);
}

#[test]
fn repeated_changes_apply_once_and_dry_runs_never() {
    let folder = temporary_folder();
    let server = Server::start(&setup(folder.path(), &["1.0.0"]));
    let next = Misbehave { version: "1.1.0", ..Misbehave::default() }.pack(folder.path());
    let trial = deploy(&server, &next, "?dry_run=true&promote=true", &[]);
    let result = &trial["result"];
    assert_eq!(
        (&result["dry_run"], &result["after"]["stable"]),
        (&json!(true), &json!("1.1.0")),
        "{trial}"
    );
    assert_eq!(states(&server), ["ready"]);
    let key = [("Idempotency-Key", "key-1")];
    let first = deploy(&server, &next, "", &key);
    let again = deploy(&server, &next, "", &key);
    assert_eq!(first["result"]["revision"], again["result"]["revision"]);
    assert_eq!(again["result"]["replayed"], true, "{again}");

    let revision = model(&server)["revision"].as_u64().unwrap();
    let promote = |query: &str, key: &str, body: &Value| {
        let path = format!("models/misbehave/promote{query}");
        server.admin_with("POST", &path, &[("Idempotency-Key", key)], body)
    };
    let body = json!({"version": "1.1.0"});
    let trial = promote("?dry_run=true", "key-2", &body);
    assert_eq!((trial.status, &trial.body["after"]["stable"]), (200, &json!("1.1.0")));
    assert_eq!(model(&server)["stable"], "1.0.0");
    let expected = format!("?expected_revision={revision}&reason=because");
    let changed = promote(&expected, "key-2", &body);
    assert_eq!(
        (changed.status, changed.header("idempotency-replayed")),
        (200, None),
        "{changed:?}"
    );
    // The expected revision is outdated by now, but this request was answered before.
    let again = promote(&expected, "key-2", &body);
    assert_eq!((again.status, again.header("idempotency-replayed")), (200, Some("true")));
    assert_eq!(again.body["revision"], changed.body["revision"]);
    let other = promote(&expected, "key-2", &json!({"version": "1.0.0"}));
    assert_eq!(refused(&other), (422, "idempotency_mismatch"));
    let bad = promote("", &"k".repeat(129), &body);
    assert_eq!(refused(&bad), (400, "malformed_request"));

    let history = server.admin("GET", "history?model=misbehave", &Value::Null).body;
    let entries = history["entries"].as_array().unwrap();
    let promotions: Vec<_> =
        entries.iter().filter(|entry| entry["operation"] == "promote").collect();
    let [promotion] = promotions[..] else { panic!("{promotions:?}") };
    assert_eq!(promotion["reason"], "because");
    assert_eq!(promotion["actor"], "demo-admin");
    assert_eq!(promotion["before"]["stable"], "1.0.0");
    assert_eq!(promotion["after"]["stable"], "1.1.0");
    assert!(promotion["digest"].as_str().unwrap().starts_with("sha256:"));
    // Each entry contains the hash of the entry before it.
    for pair in entries.windows(2) {
        assert_eq!(pair[0]["previous_hash"], pair[1]["hash"]);
    }
    let status = server.admin("GET", "status", &Value::Null).body;
    assert_eq!(status["audit_head"], entries[0]["hash"]);
}

#[test]
fn the_admin_api_needs_an_admin_key_and_its_own_listener() {
    let folder = temporary_folder();
    let server = Server::start(&setup(folder.path(), &["1.0.0"]));
    let ask = |url: String, key: Option<&str>| {
        let headers: Vec<_> = key.map(|key| ("X-API-Key", key)).into_iter().collect();
        client::send("GET", &url, &headers, b"")
    };
    let url = format!("http://{}/admin/v1/status", server.admin_address());
    for key in [None, Some("")] {
        assert_eq!(refused(&ask(url.clone(), key)), (401, "unauthorized"), "{key:?}");
    }
    assert_eq!(refused(&ask(url.clone(), Some(DEMO_KEY))), (403, "forbidden"));
    assert_eq!(ask(url, Some(DEMO_ADMIN_KEY)).status, 200);
    let public = ask(server.url("/admin/v1/status"), Some(DEMO_ADMIN_KEY));
    assert_eq!(refused(&public), (404, "not_found"));
    let admin_key = [("X-API-Key", DEMO_ADMIN_KEY)];
    let prediction = client::send("POST", &server.url("/predict"), &admin_key, b"{}");
    assert_eq!(refused(&prediction), (403, "forbidden"));
    let file = folder.path().join("misbehave-1.0.0.wasm");
    let url = format!("http://{}/admin/v1/deploy", server.admin_address());
    let upload = client::send("POST", &url, &[], &std::fs::read(file).unwrap());
    assert_eq!(refused(&upload), (401, "unauthorized"));
    let big = "x".repeat(20_000);
    assert_eq!(
        refused(&post(&server, "promote", json!({"version": big}))),
        (413, "payload_too_large")
    );
}

/// A null or empty sticky field does not identify a caller.
#[test]
fn a_null_or_empty_sticky_field_is_routed_randomly() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path(), &["1.0.0", "1.1.0"]);
    setup.config = "[models.misbehave]\nsticky_field = \"user\"\nsplit = { \"1.0.0\" = 500_000, \
                    \"1.1.0\" = 500_000 }\n"
        .to_owned();
    let server = Server::start(&setup);
    for nothing in [json!(null), json!("")] {
        for (path, body) in [
            ("/predict", json!({"action": "echo", "user": nothing})),
            ("/batch_predict", json!({"actions": ["echo"], "user": nothing})),
            (
                "/v2/models/misbehave/infer",
                json!({"parameters": {"user": nothing}, "inputs": [
                    {"name": "action", "datatype": "BYTES", "shape": [1], "data": ["echo"]}
                ]}),
            ),
        ] {
            let version = |_| {
                let answer = server.post(path, &body);
                assert_eq!(answer.status, 200, "{path} {body}: {answer:?}");
                answer.body["model_version"].to_string()
            };
            let versions: std::collections::BTreeSet<_> = (0..40).map(version).collect();
            assert_eq!(versions.len(), 2, "{path} {body}: {versions:?}");
        }
    }
}

#[test]
fn requests_are_routed_by_selectors_and_sticky_fields() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path(), &["1.0.0", "1.1.0", "2.0.0"]);
    setup.config = "[models.misbehave]\nsticky_field = \"user\"\nsplit = { \"1.0.0\" = 500_000, \
                    \"1.1.0\" = 500_000 }\n"
        .to_owned();
    let server = Server::start(&setup);
    let by_header = |selector| served(&server, "/predict", &[("X-Model-Version", selector)]);
    assert_eq!(words(&by_header("=2.0.0")), ("2.0.0", "pin"));
    assert_eq!(words(&by_header("^2")), ("2.0.0", "range"));
    assert_eq!(words(&by_header("stable")), ("1.0.0", "channel"));
    assert_eq!(words(&by_header("canary")), ("1.1.0", "channel"));
    let send = |path, headers: &[(&str, &str)], body: &str| {
        server.send("POST", path, headers, body.as_bytes())
    };
    let echo = r#"{"action": "echo"}"#;
    let both = send("/v1/predict", &[("X-Model-Version", "1.0.0")], echo);
    assert_eq!(refused(&both), (400, "malformed_request"));
    let malformed = send("/predict", &[("X-Model-Version", "latest")], echo);
    assert_eq!(refused(&malformed), (400, "malformed_request"));
    let absent = send("/predict", &[("X-Model-Version", "3")], echo);
    assert_eq!(refused(&absent), (404, "not_found"));
    // An error of a model names the version.
    let failed = send("/predict", &[("X-Model-Version", "2.0.0")], r#"{"action": "panic"}"#);
    assert_eq!((failed.status, failed.header("x-model-version")), (500, Some("2.0.0")));
    assert_eq!(failed.header("x-route-reason"), Some("pin"));

    let mut seen = std::collections::BTreeSet::new();
    for user in 0..20 {
        let resolve = format!("/models/misbehave/resolve?key={user}");
        let resolved = server.send("GET", &resolve, &[], b"").body["version"].clone();
        // The same caller as a number and as a text, alone, in a batch, and with a range.
        for (path, body) in [
            ("/predict", json!({"action": "echo", "user": user})),
            ("/predict", json!({"action": "echo", "user": user.to_string()})),
            ("/batch_predict", json!({"actions": ["echo"], "user": user})),
            ("/v1/predict", json!({"action": "echo", "user": user})),
        ] {
            let answer = server.post(path, &body);
            assert_eq!(answer.status, 200, "{body}: {answer:?}");
            assert_eq!(answer.body["model_version"], resolved, "{path} {body}");
        }
        seen.insert(resolved.to_string());
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    let wrong = server.post("/predict", &json!({"action": "echo", "user": [1]}));
    assert_eq!(refused(&wrong), (400, "malformed_request"));
    // Without the field, the choice is random and counted.
    for _ in 0..5 {
        served(&server, "/predict", &[]);
    }
    let metrics = server.metrics();
    let random = metrics.lines().filter(|line| line.starts_with("guesthouse_random_choices_total"));
    let sum: u64 =
        random.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(sum, 5, "{metrics}");
}

#[test]
fn a_suspended_stable_version_has_no_parked_fallback() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path(), &["1.0.0", "1.1.0"]);
    setup.config =
        "[models.misbehave]\nsplit = { \"1.0.0\" = 1_000_000, \"1.1.0\" = 0 }\n".to_owned();
    let server = Server::start(&setup);
    assert_changed(&post(&server, "rollback", json!({})));
    assert_eq!(states(&server), ["ready", "parked"]);
    let pin = "/models/misbehave/versions/1.0.0/predict";
    for index in 0..10 {
        let action = format!("unknown {index}");
        assert_eq!(server.post(pin, &json!({ "action": action })).status, 500);
    }
    for path in ["/predict", "/v1/predict", "/models/misbehave/versions/~1.0/predict"] {
        let answer = server.post(path, &json!({"action": "echo"}));
        // After a second, the version is probed again.
        let is_stable = (answer.status, answer.header("x-model-version")) == (200, Some("1.0.0"));
        let is_refused = || refused(&answer) == (429, "too_many_failures");
        assert!(is_stable || is_refused(), "{path}: {answer:?}");
    }
    // A request that names the version gets it.
    assert_eq!(
        words(&served(&server, "/predict", &[("X-Model-Version", "1.1.0")])),
        ("1.1.0", "pin")
    );
}

#[test]
fn a_configured_split_holds_until_changed() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path(), &["1.0.0", "1.1.0"]);
    let config = |weight: u32| {
        let rest = 1_000_000 - weight;
        format!("[models.misbehave]\nsplit = {{ \"1.0.0\" = {rest}, \"1.1.0\" = {weight} }}\n")
    };
    let candidates = |server: &Server| model(server)["candidates"].clone();
    setup.config = config(1);
    let server = Server::start(&setup);
    assert_eq!(candidates(&server), json!({"1.1.0": 1}));
    assert_changed(&post(&server, "canary", json!({"version": "1.1.0", "weight": 2})));
    assert!(server.stop().0.success());
    let server = Server::start(&setup);
    assert_eq!(candidates(&server), json!({"1.1.0": 2}));
    assert!(server.stop().0.success());
    setup.config = config(3);
    let server = Server::start(&setup);
    assert_eq!(candidates(&server), json!({"1.1.0": 3}));
}

#[test]
fn a_shadow_is_compared_without_affecting_callers() {
    let artifacts = vec![toxicity("1.0.0"), toxicity("2.0.0")];
    let config = "[models.toxicity]\nsplit = { \"1.0.0\" = 1_000_000 }\n".to_owned();
    let server = Server::start(&Setup { artifacts, config, ..Setup::default() });
    let body = json!({"version": "2.0.0"});
    let answer = server.admin("POST", "models/toxicity/shadow", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    // One text between the thresholds of the two versions, and one below both.
    let secret = "Most of this page is boring nonsense";
    // On a busy machine comparisons are dropped, so requests repeat until both results were seen.
    let mut report = Value::Null;
    server.eventually("both results are reported", |server| {
        for text in [secret, "You are nice"] {
            let answer = server.post("/predict", &json!({"text": text}));
            assert_eq!((answer.status, &answer.body["model_version"]), (200, &json!("1.0.0")));
        }
        report = server.admin("GET", "models/toxicity/shadow", &Value::Null).body;
        let results = &report["comparisons"][0]["results"];
        results["differed"].as_u64() > Some(0) && results["agreed"].as_u64() > Some(0)
    });
    let pair = &report["comparisons"][0];
    assert_eq!((&pair["candidate"], &pair["primary"]), (&json!("2.0.0"), &json!("1.0.0")));
    assert_eq!(pair["results"]["error"], 0, "{report}");
    let worst = &pair["worst"][0];
    assert_eq!((&worst["output"], &worst["kind"]), (&json!("label"), &json!("label")), "{report}");
    // Only the hash of the input is reported.
    assert!(!report.to_string().contains(secret), "{report}");
    let metrics = server.metrics();
    let differed = r#"primary="1.0.0",result="differed""#;
    assert!(metrics.lines().any(|line| line.contains(differed)), "{metrics}");
    let off = server.admin("POST", "models/toxicity/shadow", &json!({}));
    assert_eq!((off.status, &off.body["after"]["shadow"]), (200, &Value::Null));
}
