//! A failing caller run_beside a good one of the same model. The tests count how many of the good
//! caller's requests succeed, never how long they take.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::client::{self, DEMO_KEY, HttpResponse};
use guesthouse_tests::dynamic;
use guesthouse_tests::grpc::ModelInferRequest;
use guesthouse_tests::grpc::model_infer_request::InferInputTensor;
use guesthouse_tests::{Server, Setup, eventually};
use prost_reflect::Value as Field;
use serde_json::{Value, json};
use tonic::Code;

use crate::grpc;

/// A time limit that no fault reaches, in milliseconds.
const LONG_LIMIT: u32 = 20_000;

/// How many requests the good caller sends.
const GOOD_REQUESTS: usize = 200;

/// How many of them must succeed: 95 %.
const MIN_SUCCESSES: usize = 190;

/// The header with the length of the JSON in a body with binary tensors.
const HEAD_LENGTH: &str = "Inference-Header-Content-Length";

/// The identity of a caller: its API key, and a sticky header if several callers share the key.
#[derive(Clone, Copy)]
struct Identity<'a> {
    key: &'a str,
    by_sticky_key: Option<&'a str>,
}

fn by_key(key: &str) -> Identity<'_> {
    Identity { key, by_sticky_key: None }
}

fn by_sticky_key(by_sticky_key: &str) -> Identity<'_> {
    Identity { key: DEMO_KEY, by_sticky_key: Some(by_sticky_key) }
}

fn send(
    server: &Server,
    identity: Identity<'_>,
    path: &str,
    more: &[(&str, &str)],
    body: &[u8],
) -> HttpResponse {
    let mut headers = vec![("X-API-Key", identity.key)];
    headers.extend(identity.by_sticky_key.map(|by_sticky_key| ("X-User-Id", by_sticky_key)));
    headers.extend(more);
    client::send("POST", &server.url(path), &headers, body)
}

fn predict(server: &Server, identity: Identity<'_>, actions: &[&str]) -> HttpResponse {
    let json = [("Content-Type", "application/json")];
    let (path, body) = match actions {
        [action] => ("predict", json!({ "action": action })),
        actions => ("batch_predict", json!({ "actions": actions })),
    };
    send(server, identity, &format!("/models/misbehave/{path}"), &json, body.to_string().as_bytes())
}

/// Sends a tensor of numbers in binary form.
fn infer_numbers(server: &Server, identity: Identity<'_>, numbers: &[f64]) -> HttpResponse {
    let data: Vec<u8> =
        numbers.iter().flat_map(|infer_numbers| infer_numbers.to_le_bytes()).collect();
    let input = json!({"name": "INPUT0", "shape": [numbers.len(), 1], "datatype": "FP64",
                       "parameters": {"binary_data_size": data.len()}});
    let head = json!({ "inputs": [input] }).to_string();
    let length = head.len().to_string();
    let headers = [(HEAD_LENGTH, length.as_str()), ("Content-Type", "application/octet-stream")];
    let body = [head.as_bytes(), &data].concat();
    send(server, identity, "/v2/models/identity_fp64/infer", &headers, &body)
}

/// Actions that end in a trapping_actions, in another combination for each index.
fn trapping_actions(index: usize) -> [&'static str; 8] {
    let mut actions =
        std::array::from_fn(|place| if index >> place & 1 == 1 { "print" } else { "echo" });
    actions[7] = if index % 256 < 128 { "panic" } else { "recurse" };
    actions
}

fn make_key(server: &Server, name: &str) -> String {
    let body = json!({"name": name, "scopes": ["predict:*"]});
    let answer = server.admin("POST", "keys", &body);
    answer.body["secret"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

fn misbehave(config: &str) -> (Server, tempfile::TempDir) {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), LONG_LIMIT);
    setup.config += config;
    (Server::start(&setup), folder)
}

fn identity() -> (Server, tempfile::TempDir) {
    let folder = temporary_folder();
    let mut setup = Setup::fixtures(folder.path(), &["identity_fp64"]);
    // A model for which non-finite outputs are faults.
    setup.config = "default_model = \"identity_fp64\"\n".to_owned();
    (Server::start(&setup), folder)
}

/// Runs a failing caller in the background until it has sent `minimum` requests, then the good
/// caller's requests; returns how many of the latter succeeded and how many the former sent.
fn run_beside(
    bad: impl Fn(usize) -> HttpResponse + Sync,
    good: impl Fn() -> bool,
    minimum: usize,
) -> (usize, usize) {
    let (over, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let bad = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                bad(sent.fetch_add(1, Ordering::Relaxed));
            }
        });
        eventually("the failing caller has sent its minimum", || {
            sent.load(Ordering::Relaxed) >= minimum || bad.is_finished()
        });
        let succeeded = (0..GOOD_REQUESTS).filter(|_| good()).count();
        over.store(true, Ordering::Relaxed);
        bad.join().unwrap();
        (succeeded, sent.load(Ordering::Relaxed))
    })
}

/// The sum of a counter over all series with this label.
fn metric(server: &Server, name: &str, label: &str) -> f64 {
    let metrics = server.metrics();
    let is_it = |line: &&str| line.starts_with(&format!("{name}{{")) && line.contains(label);
    let values = metrics.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next());
    values.filter_map(|value| value.parse::<f64>().ok()).sum()
}

#[test]
fn a_repeated_trapping_input_is_quarantined() {
    let (server, _folder) = misbehave("");
    let [bad, good] = ["bad", "good"].map(|name| make_key(&server, name));
    let (succeeded, sent) = run_beside(
        |_| {
            let answer = predict(&server, by_key(&bad), &["panic"]);
            assert_eq!((answer.status, answer.error_code()), (500, Some("model_failure")));
            answer
        },
        || predict(&server, by_key(&good), &["echo"]).status == 200,
        50,
    );
    assert!(succeeded >= MIN_SUCCESSES, "{succeeded} succeeded beside {sent} bad requests");
    assert!(metric(&server, "guesthouse_faults_total", "kind=\"trap\"") < 10.0);
    let refused = metric(&server, "guesthouse_rejections_total", "reason=\"quarantined\"");
    assert!(refused >= 40.0, "{refused}");
    // Its other requests succeed.
    assert_eq!(predict(&server, by_key(&bad), &["echo"]).status, 200);
}

#[test]
fn a_caller_whose_requests_all_trap_is_suspended_alone() {
    let (server, _folder) = misbehave("");
    let [bad, good] = ["bad", "good"].map(|name| make_key(&server, name));
    let (succeeded, sent) = run_beside(
        |index| {
            let answer = predict(&server, by_key(&bad), &trapping_actions(index));
            match (answer.status, answer.error_code()) {
                (500, Some("model_failure")) => {}
                (429, Some("too_many_failures")) => {
                    let seconds = answer.header("retry-after").unwrap().parse::<u64>().unwrap();
                    assert!((1..=60).contains(&seconds), "{seconds}");
                }
                _ => panic!("{answer:?}"),
            }
            answer
        },
        || predict(&server, by_key(&good), &["echo"]).status == 200,
        100,
    );
    assert!(succeeded >= MIN_SUCCESSES, "{succeeded} succeeded beside {sent} bad requests");
    let refused = metric(&server, "guesthouse_rejections_total", "reason=\"caller_suspended\"");
    assert!(refused > 0.0);
    assert!(metric(&server, "guesthouse_version_suspended", "model=\"misbehave\"") < 0.5);
}

#[test]
fn timeouts_of_one_caller_do_not_affect_another() {
    let (server, _folder) = misbehave("");
    let [bad, good] = ["bad", "good"].map(|name| make_key(&server, name));
    let spin = || {
        let headers = [("Content-Type", "application/json"), ("X-Request-Timeout-Ms", "500")];
        let body = br#"{"action": "spin"}"#;
        send(&server, by_key(&bad), "/models/misbehave/predict", &headers, body)
    };
    let (succeeded, sent) = run_beside(
        |_| {
            let answer = spin();
            assert_eq!((answer.status, answer.error_code()), (504, Some("deadline_exceeded")));
            answer
        },
        || predict(&server, by_key(&good), &["echo"]).status == 200,
        2,
    );
    assert!(succeeded >= MIN_SUCCESSES, "{succeeded} succeeded beside {sent} bad requests");
}

#[test]
fn sticky_keys_distinguish_callers_behind_one_api_key() {
    let (server, _folder) = misbehave("[models.misbehave]\nsticky_header = \"X-User-Id\"\n");
    let (succeeded, sent) = run_beside(
        |index| predict(&server, by_sticky_key("bad"), &trapping_actions(index)),
        || predict(&server, by_sticky_key("good"), &["echo"]).status == 200,
        100,
    );
    assert!(succeeded >= MIN_SUCCESSES, "{succeeded} succeeded beside {sent} bad requests");
    assert!(metric(&server, "guesthouse_rejections_total", "reason=\"caller_suspended\"") > 0.0);
}

#[test]
fn many_failing_sticky_keys_do_not_affect_another_key() {
    let (server, _folder) = misbehave("[models.misbehave]\nsticky_header = \"X-User-Id\"\n");
    let [bad, good] = ["bad", "good"].map(|name| make_key(&server, name));
    let (succeeded, sent) = run_beside(
        |index| {
            let name = index.to_string();
            predict(
                &server,
                Identity { key: &bad, by_sticky_key: Some(&name) },
                &trapping_actions(index),
            )
        },
        || predict(&server, by_key(&good), &["echo"]).status == 200,
        100,
    );
    assert!(succeeded >= MIN_SUCCESSES, "{succeeded} succeeded beside {sent} bad requests");
}

#[test]
fn a_version_that_fails_for_all_keys_is_suspended() {
    let (server, _folder) = misbehave("");
    let keys = ["one", "two", "three"].map(|name| make_key(&server, name));
    for index in 0..15 {
        keys.iter().for_each(|key| drop(predict(&server, by_key(key), &trapping_actions(index))));
    }
    let line = server.wait_for("the log line", |line| line["message"] == "version suspended");
    assert_eq!((&line["model"], &line["level"]), (&json!("misbehave"), &json!("ERROR")));
    // A new caller is probed, and is one of several whose success ends the suspension.
    assert_eq!(predict(&server, by_key(&make_key(&server, "late")), &["echo"]).status, 200);
    server.eventually("all keys are admitted again", |server| {
        keys.iter().all(|key| predict(server, by_key(key), &["echo"]).status == 200)
    });
    assert!(metric(&server, "guesthouse_version_suspended", "model=\"misbehave\"") < 0.5);
}

#[test]
fn a_non_finite_input_is_the_callers_fault() {
    let (server, _folder) = identity();
    let [bad, good] = ["bad", "good"].map(|name| make_key(&server, name));
    let (succeeded, sent) = run_beside(
        |index| {
            let value = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][index % 3];
            let answer = infer_numbers(&server, by_key(&bad), &[1.0, value]);
            let is = (answer.status, answer.error_code());
            assert_eq!(is, (422, Some("unacceptable_input")), "{answer:?}");
            let detail = &answer.body["details"][0];
            assert_eq!((&detail["row"], &detail["field"]), (&json!(1), &json!("INPUT0")));
            answer
        },
        || infer_numbers(&server, by_key(&good), &[2.5]).status == 200,
        50,
    );
    assert!(succeeded >= MIN_SUCCESSES, "{succeeded} succeeded beside {sent} bad requests");
    assert!(metric(&server, "guesthouse_faults_total", "kind=\"non_finite_input\"") >= 50.0);
    assert!(metric(&server, "guesthouse_faults_total", "kind=\"bad_output\"") < 0.5);
    assert_eq!(infer_numbers(&server, by_key(&bad), &[1.0]).status, 200);
}

#[test]
fn a_non_finite_input_does_not_fail_its_batch() {
    let folder = temporary_folder();
    let names = ["identity_fp16", "identity_bf16", "identity_fp32", "identity_fp64"];
    let mut setup = Setup::fixtures(folder.path(), &names);
    // Calls wait until the requests of two callers share a batch.
    setup.config = "default_model = \"identity_fp64\"\n".to_owned();
    for name in names {
        setup.config += &format!(
            "[models.{name}.batching]\nmax_batch_size = 2\n\
             max_queue_delay_microseconds = 1_000_000\n"
        );
    }
    let server = Server::start(&setup);
    for (model, datatype, good, nan) in [
        ("identity_fp16", "FP16", vec![0x00, 0x3c], vec![0x55, 0x7e]),
        ("identity_bf16", "BF16", vec![0x80, 0x3f], vec![0x80, 0x7f]),
        ("identity_fp32", "FP32", vec![0, 0, 0x80, 0x3f], f32::NAN.to_le_bytes().to_vec()),
        ("identity_fp64", "FP64", 1.0_f64.to_le_bytes().to_vec(), f64::NAN.to_le_bytes().to_vec()),
    ] {
        let ask = |data: &[u8]| {
            let input = json!({"name": "INPUT0", "shape": [1, 1], "datatype": datatype,
                               "parameters": {"binary_data_size": data.len()}});
            let head = json!({"inputs": [input], "outputs": [{"name": "OUTPUT0",
                              "parameters": {"classification": 1}}]})
            .to_string();
            let length = head.len().to_string();
            let kind = ("Content-Type", "application/octet-stream");
            let headers = [(HEAD_LENGTH, length.as_str()), kind];
            let body = [head.as_bytes(), data].concat();
            send(&server, by_key(DEMO_KEY), &format!("/v2/models/{model}/infer"), &headers, &body)
        };
        thread::scope(|scope| {
            let both = [scope.spawn(|| ask(&nan)), scope.spawn(|| ask(&good))];
            let [nan, good] = both.map(|asking| asking.join().unwrap());
            let is = (nan.status, nan.error_code());
            assert_eq!(is, (422, Some("unacceptable_input")), "{model}: {nan:?}");
            assert_eq!(nan.body["details"][0]["row"], 0, "{model}");
            assert_eq!(good.status, 200, "{model}: {good:?}");
        });
    }
}

fn infer(model: &str, input: &str, datatype: &str, data: Vec<u8>) -> ModelInferRequest {
    let shape = if datatype == "BYTES" { vec![1] } else { vec![1, 1] };
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            name: input.to_owned(),
            datatype: datatype.to_owned(),
            shape,
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![data],
        ..ModelInferRequest::default()
    }
}

/// Requests alternate, so that each good one follows a bad one.
#[tokio::test(flavor = "multi_thread")]
async fn over_grpc_a_failing_caller_does_not_affect_another() {
    let (server, _folder) = misbehave("");
    let [bad, good] = ["bad", "good"].map(|name| make_key(&server, name));
    let mut client = grpc::client(&server).await;
    let mut succeeded = 0;
    for index in 0..GOOD_REQUESTS {
        let action = if index % 2 == 0 { "panic".to_owned() } else { format!("unknown {index}") };
        let message =
            infer("misbehave", "action", "BYTES", grpc::raw_texts(std::slice::from_ref(&&*action)));
        let status = client.model_infer(grpc::with_key(message, &bad)).await.unwrap_err();
        match (status.code(), &*grpc::reason(&status)) {
            (Code::Internal, "model_failure") | (Code::ResourceExhausted, "too_many_failures") => {}
            _ => panic!("{status:?}"),
        }
        let message = infer("misbehave", "action", "BYTES", grpc::raw_texts(&["echo"]));
        succeeded += usize::from(client.model_infer(grpc::with_key(message, &good)).await.is_ok());
    }
    assert!(succeeded >= MIN_SUCCESSES, "{succeeded}");
    assert!(metric(&server, "guesthouse_rejections_total", "reason=\"caller_suspended\"") > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_grpc_a_non_finite_input_is_the_callers_fault() {
    let (server, _folder) = identity();
    let [bad, good] = ["bad", "good"].map(|name| make_key(&server, name));
    let mut client = grpc::client(&server).await;
    let (mut succeeded, infer_numbers) =
        (0, |value: f64| infer("identity_fp64", "INPUT0", "FP64", value.to_le_bytes().to_vec()));
    for _ in 0..GOOD_REQUESTS {
        let outcome = client.model_infer(grpc::with_key(infer_numbers(f64::NAN), &bad)).await;
        grpc::assert_refused(outcome, Code::InvalidArgument, "unacceptable_input");
        succeeded += usize::from(
            client.model_infer(grpc::with_key(infer_numbers(1.0), &good)).await.is_ok(),
        );
    }
    assert!(succeeded >= MIN_SUCCESSES, "{succeeded}");
}

/// The same through the service generated from the model's signature.
#[tokio::test(flavor = "multi_thread")]
async fn over_model_grpc_a_failing_caller_does_not_affect_another() {
    let (server, _folder) = misbehave("");
    let keys = ["bad", "good"].map(|name| make_key(&server, name));
    let bad = dynamic::Client::connect(server.grpc_address(), &keys[0]).await;
    let good = dynamic::Client::connect(server.grpc_address(), &keys[1]).await;
    let service = bad.service("guesthouse.misbehave.v1.Misbehave").await.unwrap();
    let mut succeeded = 0;
    let ask = async |client: &dynamic::Client, action: &str| {
        let message = service.request("Predict", &[("action", Field::String(action.to_owned()))]);
        client.unary(&service.method("Predict"), message).await
    };
    for index in 0..GOOD_REQUESTS {
        let action = if index % 2 == 0 { "panic".to_owned() } else { format!("unknown {index}") };
        assert!(ask(&bad, &action).await.is_err());
        succeeded += usize::from(ask(&good, "echo").await.is_ok());
    }
    assert!(succeeded >= MIN_SUCCESSES, "{succeeded}");
}

#[test]
fn a_suspended_caller_is_probed_and_admitted_again() {
    let (server, _folder) = misbehave("");
    let asked = (0..1000)
        .find(|index| predict(&server, by_key(DEMO_KEY), &trapping_actions(*index)).status == 429);
    assert!(asked.is_some_and(|asked| asked >= 10), "{asked:?}");
    let answer = predict(&server, by_key(DEMO_KEY), &["echo"]);
    assert_eq!((answer.status, answer.error_code()), (429, Some("too_many_failures")));
    assert_eq!(answer.body["message"].as_str().map(str::is_empty), Some(false));
    server.wait_for("the log line", |line| line["message"] == "version suspended for a caller");
    let model: Value = server.send("GET", "/models/misbehave", &[], b"").body;
    assert_eq!(model["versions"][0]["suspended"], false, "suspended for all callers");
    server.eventually("the caller is admitted again", |server| {
        predict(server, by_key(DEMO_KEY), &["echo"]).status == 200
    });
    assert!((0..20).all(|_| predict(&server, by_key(DEMO_KEY), &["echo"]).status == 200));
}
