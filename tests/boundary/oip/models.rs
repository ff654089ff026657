//! Metadata, configuration, health and statistics, and who may read them.

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::{DEMO_KEY, Server, Setup, eventually_some};
use reqwest::Method;
use serde_json::{Value, json};

use super::{get, post, send};

#[test]
fn server_metadata_and_health_need_no_key() {
    let mut setup = Setup::toxicity();
    setup.config.push_str("\n[server]\nname = \"triton\"\n");
    let server = Server::start(&setup);
    for path in ["/v2", "/v2/"] {
        let answer = send(&server, Method::GET, path, &[("X-API-Key", "")], Vec::new());
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let body = answer.json();
        assert_eq!((answer.status, &body["name"]), (200, &json!("triton")));
        assert!(body["version"].is_string());
        let extensions = body["extensions"].as_array().unwrap();
        for extension in [
            "binary_tensor_data",
            "classification",
            "model_configuration",
            "model_repository",
            "schedule_policy",
            "statistics",
        ] {
            assert!(extensions.contains(&json!(extension)), "{extension}");
        }
    }
    let live = send(&server, Method::GET, "/v2/health/live", &[("X-API-Key", "")], Vec::new());
    assert_eq!((live.status, live.json()), (200, json!({"live": true})));
    let ready = send(&server, Method::GET, "/v2/health/ready", &[("X-API-Key", "")], Vec::new());
    assert_eq!((ready.status, ready.json()), (200, json!({"live": true, "ready": true})));
    for path in ["/v2/models/toxicity", "/v2/models/toxicity/ready", "/v2/models/stats"] {
        let answer = send(&server, Method::GET, path, &[("X-API-Key", "")], Vec::new());
        assert_eq!(answer.refusal(), (401, "unauthorized".to_owned()), "{path}");
    }
    // Probes are not logged; everything else is.
    server.wait_for("the log line", |line| line["route"] == "/v2/models/{model}");
    assert!(server.lines().iter().all(|line| line["route"] != "/v2/health/ready"));
}

#[test]
fn a_server_without_models_is_not_ready() {
    let folder = temporary_folder();
    let setup = Setup::fixtures(folder.path(), &["simple"]);
    let setup = Setup { artifacts: Vec::new(), ..setup };
    let server = Server::start_loading(&setup);
    server.wait_for("the repository folder being read", |line| {
        line["message"] == "repository folder read"
    });
    let live = get(&server, "/v2/health/live");
    assert_eq!(live.status, 200);
    assert_eq!(get(&server, "/v2/health/ready").refusal(), (503, "not_ready".to_owned()));
    let unknown = get(&server, "/v2/models/simple/ready");
    assert_eq!(unknown.refusal(), (404, "not_found".to_owned()));
}

#[test]
fn metadata_and_configuration_describe_a_model() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple", "identity_fp32"]));
    let described = get(&server, "/v2/models/simple");
    let tensor = |name: &str| json!({"name": name, "datatype": "INT32", "shape": [-1, 16]});
    let body = described.json();
    assert_eq!((described.status, &body["name"]), (200, &json!("simple")));
    assert_eq!(body["versions"], json!(["1.0.0"]));
    assert!(body["platform"].is_string());
    assert_eq!(body["inputs"], json!([tensor("INPUT0"), tensor("INPUT1")]));
    assert_eq!(body["outputs"], json!([tensor("OUTPUT0"), tensor("OUTPUT1")]));
    let properties = body["properties"].as_object().unwrap();
    assert!(properties.values().all(Value::is_string), "{properties:?}");
    let config = get(&server, "/v2/models/simple/versions/1/config").json();
    let input = |name: &str| json!({"name": name, "data_type": "TYPE_INT32", "dims": [16], "optional": false});
    assert_eq!(config["input"], json!([input("INPUT0"), input("INPUT1")]));
    let output = |name: &str| json!({"name": name, "data_type": "TYPE_INT32", "dims": [16]});
    assert_eq!(config["output"], json!([output("OUTPUT0"), output("OUTPUT1")]));
    assert_eq!((&config["name"], &config["max_batch_size"]), (&json!("simple"), &json!(8)));
    let any = get(&server, "/v2/models/identity_fp32/config").json();
    assert_eq!(any["input"][0]["dims"], json!([-1]));
    let ready = get(&server, "/v2/models/simple/ready");
    assert_eq!((ready.status, ready.json()), (200, json!({"name": "simple", "ready": true})));
    for path in ["", "/config", "/stats", "/ready"] {
        let unknown = get(&server, &format!("/v2/models/absent{path}"));
        assert_eq!(unknown.refusal(), (404, "not_found".to_owned()), "{path}");
        let words = unknown.json()["error"].as_str().unwrap().to_owned();
        assert!(words.contains("Request for unknown model"), "{words}");
        let version = get(&server, &format!("/v2/models/simple/versions/7{path}"));
        assert_eq!(version.refusal(), (404, "not_found".to_owned()), "{path}");
        let nonsense = get(&server, &format!("/v2/models/simple/versions/latest{path}"));
        assert_eq!(nonsense.refusal(), (400, "malformed_request".to_owned()), "{path}");
    }
}

/// Versions are compared as numbers, a bare number selects a major version, and the default is the
/// stable version.
#[test]
fn versions_are_selected_by_selector() {
    let folder = temporary_folder();
    let pack = |version| Misbehave { version, ..Misbehave::default() }.pack(folder.path());
    let setup = Setup {
        artifacts: vec![pack("1.9.0")],
        config: "[limits]\ninstance_memory_mib = 256\n".to_owned(),
        ..Setup::default()
    };
    let server = Server::start(&setup);
    assert_eq!(server.deploy(&pack("1.10.0"))["state"], "done");
    assert_eq!(server.deploy(&pack("2.0.0"))["state"], "done");
    let described = get(&server, "/v2/models/misbehave").json();
    assert_eq!(described["versions"], json!(["1.9.0", "1.10.0", "2.0.0"]));
    assert_eq!(described["properties"]["model_version"], "1.9.0", "a version was promoted");
    let input = json!({"name": "action", "shape": [1], "datatype": "BYTES", "data": ["echo"]});
    for (path, version) in [
        ("", "1.9.0"),
        ("/versions/1", "1.9.0"),
        ("/versions/~1.10", "1.10.0"),
        ("/versions/1.10.0", "1.10.0"),
        ("/versions/2", "2.0.0"),
        ("/versions/stable", "1.9.0"),
    ] {
        let path = format!("/v2/models/misbehave{path}");
        let answer = post(&server, &format!("{path}/infer"), &json!({"inputs": [input]}));
        assert_eq!(answer.status, 200, "{path} {answer:?}");
        assert_eq!(answer.json()["model_version"], version, "{path}");
        assert_eq!(answer.header("x-model-version"), Some(version));
        assert_eq!(get(&server, &path).json()["properties"]["model_version"], version);
        assert_eq!(get(&server, &format!("{path}/ready")).status, 200);
    }
    server.admin("POST", "models/misbehave/promote", &json!({"version": "1.10.0"}));
    let major = post(&server, "/v2/models/misbehave/versions/1/infer", &json!({"inputs": [input]}));
    assert_eq!(major.json()["model_version"], "1.10.0");
    let path = "/v2/models/misbehave/versions/1/infer";
    let body = json!({"inputs": [input]}).to_string().into_bytes();
    let both = send(&server, Method::POST, path, &[("X-Model-Version", "1.9.0")], body);
    assert_eq!(both.refusal(), (400, "malformed_request".to_owned()));
}

#[test]
fn statistics_count_rows_and_executions() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple", "simple_string"]));
    let fresh = get(&server, "/v2/models/simple/stats").json()["model_stats"][0].clone();
    assert_eq!((&fresh["inference_count"], &fresh["execution_count"]), (&json!(0), &json!(0)));
    let tensor = |name: &str, rows: usize| json!({"name": name, "shape": [rows, 16], "datatype": "INT32", "data": vec![1; rows * 16]});
    for rows in [1, 3] {
        let request = json!({"inputs": [tensor("INPUT0", rows), tensor("INPUT1", rows)]});
        assert_eq!(post(&server, "/v2/models/simple/infer", &request).status, 200);
    }
    let request = json!({"inputs": [tensor("INPUT0", 1)]});
    assert_eq!(post(&server, "/v2/models/simple/infer", &request).status, 400);
    // Requests are counted after their responses are sent.
    let counted =
        || get(&server, "/v2/models/simple/versions/1/stats").json()["model_stats"][0].clone();
    let is_counted = |stats: &Value| {
        let count = |what: &str| stats["inference_stats"][what]["count"].as_u64().unwrap();
        (count("success"), count("fail")) == (2, 1)
    };
    let stats = eventually_some("the requests are counted", || Some(counted()).filter(is_counted));
    assert_eq!((&stats["name"], &stats["version"]), (&json!("simple"), &json!("1.0.0")));
    assert_eq!((&stats["inference_count"], &stats["execution_count"]), (&json!(4), &json!(2)));
    assert!(stats["last_inference"].as_u64().unwrap() > 1_600_000_000_000);
    for what in ["success", "queue", "compute_input", "compute_infer", "compute_output"] {
        let duration = &stats["inference_stats"][what];
        assert!(duration["count"].as_u64() >= Some(2) && duration["ns"].is_u64(), "{what} {stats}");
    }
    let sizes: Vec<_> =
        stats["batch_stats"].as_array().unwrap().iter().map(|batch| &batch["batch_size"]).collect();
    assert_eq!(sizes, [&json!(1), &json!(3)]);
    let all = get(&server, "/v2/models/stats").json();
    let names: Vec<_> =
        all["model_stats"].as_array().unwrap().iter().map(|stats| &stats["name"]).collect();
    assert_eq!(names, [&json!("simple"), &json!("simple_string")]);
}

#[test]
fn a_key_sees_only_models_in_its_scope() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["simple", "simple_string"]));
    let created =
        server.admin("POST", "keys", &json!({"name": "narrow", "scopes": ["predict:simple"]}));
    let key = created.body["secret"].as_str().unwrap_or_else(|| panic!("{created:?}"));
    let headers = [("X-API-Key", key)];
    let get = |path: &str| send(&server, Method::GET, path, &headers, Vec::new());
    assert_eq!(get("/v2/models/simple").status, 200);
    for path in ["", "/ready", "/config", "/stats", "/versions/1"] {
        let answer = get(&format!("/v2/models/simple_string{path}"));
        assert_eq!(answer.refusal(), (403, "forbidden".to_owned()), "{path}");
    }
    let all = get("/v2/models/stats").json();
    assert_eq!(all["model_stats"].as_array().unwrap().len(), 1);
    let path = "/v2/models/simple_string/infer";
    let refused = send(&server, Method::POST, path, &headers, b"{}".to_vec());
    assert_eq!(refused.refusal(), (403, "forbidden".to_owned()));
}

/// The second major version of the default model has paths that start like the protocol's.
#[test]
fn the_v2_predict_path_coexists_with_the_protocol() {
    let server = Server::start(&Setup::toxicity());
    let answer = server.post("/v2/predict", &json!({"text": "You are nice"}));
    assert_eq!((answer.status, &answer.body["model_version"]), (200, &json!("2.0.0")));
    let answer = server.post("/v2/batch_predict", &json!({"texts": ["You are nice"]}));
    assert_eq!(answer.status, 200);
    // Its errors have the usual form; those of the protocol have the protocol's form.
    let refused = server.post("/v2/predict", &json!({"text": 1}));
    assert!(refused.body["message"].is_string() && refused.body["error"].is_null());
    for (method, path, status, code) in [
        (Method::GET, "/v2/absent", 404, "not_found"),
        (Method::POST, "/v2/systemsharedmemory/status", 404, "not_found"),
        (Method::POST, "/v2/health/live", 405, "method_not_allowed"),
        (Method::GET, "/v2/models/toxicity/infer", 405, "method_not_allowed"),
    ] {
        let headers = [("Accept", "application/problem+json"), ("X-API-Key", DEMO_KEY)];
        let answer = send(&server, method, path, &headers, Vec::new());
        assert_eq!(answer.refusal(), (status, code.to_owned()), "{path}");
    }
}
