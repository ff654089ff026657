use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::{DEMO_KEY, HttpResponse, Server, Setup, eventually};
use serde_json::{Value, json};

/// A server of the misbehaving guest with these settings for batching.
fn misbehave(predict_milliseconds: u32, batching: &str) -> (Server, tempfile::TempDir) {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), predict_milliseconds);
    setup.config.push_str(&format!("[models.misbehave.batching]\n{batching}"));
    (Server::start(&setup), folder)
}

/// Settings with which a batch starts when it is full, or after a second.
fn wait_for_rows(rows: usize) -> String {
    format!("max_batch_size = {rows}\nmax_queue_delay_microseconds = 1_000_000\n")
}

/// Posts all bodies concurrently.
fn post_concurrently(server: &Server, path: &str, bodies: &[Value]) -> Vec<HttpResponse> {
    std::thread::scope(|scope| {
        let asking: Vec<_> =
            bodies.iter().map(|body| scope.spawn(move || server.post(path, body))).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    })
}

fn predict_concurrently(server: &Server, actions: &[&str]) -> Vec<HttpResponse> {
    let bodies: Vec<_> = actions.iter().map(|action| json!({ "action": action })).collect();
    post_concurrently(server, "/models/misbehave/predict", &bodies)
}

/// The sum of a metric over all series with these labels; none if there is no such series.
fn metric_sum(server: &Server, name: &str, labels: &[&str]) -> Option<f64> {
    let page = server.metrics();
    let is_it = |line: &&str| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with('{'));
        rest.is_some_and(|rest| labels.iter().all(|label| rest.contains(label)))
    };
    let values = page.lines().filter(is_it).filter_map(|line| line.rsplit_once(' '));
    let values: Vec<f64> = values.filter_map(|(_, metric_sum)| metric_sum.parse().ok()).collect();
    // Sums over versions: the configuration alone decides which version is asked.
    (!values.is_empty()).then(|| values.iter().sum())
}

/// How many guest calls of a model had more than `rows` rows.
fn larger_calls(server: &Server, model: &str, rows: &str) -> f64 {
    let (model, bound) = (format!("model=\"{model}\""), format!("le=\"{rows}.0\""));
    let name = "guesthouse_batch_size_rows_bucket";
    let counted =
        |bound| metric_sum(server, name, &[&model, bound]).expect("the histogram has this bucket");
    counted("le=\"+Inf\"") - counted(&bound)
}

#[test]
fn batched_requests_get_the_same_results_as_alone() {
    let folder = temporary_folder();
    let mut setup = Setup::fixtures(folder.path(), &["row_sum", "simple"]);
    setup.artifacts.extend(Setup::toxicity().artifacts);
    // A time limit that no queueing delay reaches.
    setup.config = setup.config.replace("[limits]\n", "[limits]\npredict_milliseconds = 30_000\n");
    let server = Server::start(&setup);
    // Sums of floats depend on their order, and the rows differ in length.
    let numbers = |caller: usize| -> Vec<f64> {
        (0..2 * caller).map(|index| f64::from(1_u32 << (index % 24)) / 3.0).collect()
    };
    let sums: Vec<_> = (0..24).map(|caller| json!({"INPUT0": numbers(caller)})).collect();
    let texts: Vec<_> = (0..24)
        .map(|caller| json!({"text": format!("You are {} nice, number {caller}", "very ".repeat(caller))}))
        .collect();
    for (model, bodies) in [("row_sum", &sums), ("toxicity", &texts)] {
        let path = format!("/models/{model}/predict");
        let result_of = |answer: &HttpResponse| -> Value {
            assert_eq!(answer.status, 200, "{answer:?}");
            let mut body = answer.body.clone();
            let record = body.as_object_mut().unwrap();
            record.remove("request_id");
            record.remove("model_version");
            body
        };
        let alone: Vec<_> =
            bodies.iter().map(|body| result_of(&server.post(&path, body))).collect();
        let before = larger_calls(&server, model, "1");
        eventually(&format!("requests of {model} share a batch"), || {
            for (answer, alone) in post_concurrently(&server, &path, bodies).iter().zip(&alone) {
                assert_same_result(&result_of(answer), alone);
            }
            larger_calls(&server, model, "1") > before
        });
    }
}

/// Compares scores with a tolerance: kernels for one row add in another order than kernels for
/// many.
fn assert_same_result(is: &Value, wanted: &Value) {
    match (is["score"].as_f64(), wanted["score"].as_f64()) {
        (Some(score), Some(other)) => {
            assert!((score - other).abs() < 1e-6, "{is} {wanted}");
            assert_eq!(is["label"], wanted["label"]);
        }
        _ => assert_eq!(is, wanted),
    }
}

#[test]
fn only_the_faulting_request_of_a_batch_fails() {
    let (server, _folder) = misbehave(30_000, &wait_for_rows(8));
    let faults = |kind: &str| {
        // The series exists only after the first fault.
        let labels = [r#"model="misbehave""#, kind];
        metric_sum(&server, "guesthouse_faults_total", &labels).unwrap_or(0.0)
    };
    for (action, kind) in [
        ("panic", "kind=\"trap\""),
        ("fail", "kind=\"failed\""),
        ("no-output", "kind=\"bad_output\""),
        ("allocate", "kind=\"out_of_memory\""),
    ] {
        let mut rounds = 0..;
        eventually(&format!("{action} shares a batch"), || {
            let round = rounds.next().expect("the range is unbounded");
            // The input differs in each round: a repeated one is quarantined after three failures.
            let bad = format!("{action} {round}");
            let before = faults(kind);
            let before_calls = larger_calls(&server, "misbehave", "4");
            let actions = ["echo", "echo", "echo", &bad, "echo", "echo", "echo", "echo"];
            let answers = predict_concurrently(&server, &actions);
            for (sent, answer) in actions.iter().zip(&answers) {
                if *sent == bad {
                    let is = (answer.status, answer.error_code());
                    assert_eq!(is, (500, Some("model_failure")), "{action}");
                } else {
                    assert_eq!(
                        (answer.status, &answer.body["done"]),
                        (200, &json!("echo")),
                        "{action}"
                    );
                }
            }
            let counted = faults(kind) - before;
            assert!((counted - 1.0).abs() < 0.5, "{action}: {counted}");
            larger_calls(&server, "misbehave", "4") > before_calls
        });
    }
    let suspended = metric_sum(&server, "guesthouse_version_suspended", &[r#"model="misbehave""#]);
    assert_eq!(suspended, Some(0.0));
}

#[test]
fn one_failing_caller_does_not_suspend_a_version() {
    let (server, _folder) = misbehave(30_000, &wait_for_rows(4));
    for _ in 0..12 {
        let answers = predict_concurrently(&server, &["echo", "panic", "echo", "echo"]);
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200, 500, 200, 200]);
    }
}

#[test]
fn rejected_rows_are_reported_to_their_own_callers() {
    let (server, _folder) = misbehave(30_000, &wait_for_rows(8));
    eventually("requests share a batch", || {
        let answers =
            predict_concurrently(&server, &["echo", "reject", "echo", "echo", "reject", "echo"]);
        for (index, answer) in answers.iter().enumerate() {
            if [1, 4].contains(&index) {
                assert_eq!((answer.status, answer.error_code()), (422, Some("unacceptable_input")));
                let details = answer.body["details"].as_array().unwrap();
                assert_eq!((details.len(), &details[0]["row"]), (1, &json!(0)), "{answer:?}");
            } else {
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        }
        larger_calls(&server, "misbehave", "4") > 0.5
    });
}

#[test]
fn an_endless_row_does_not_time_out_its_batch() {
    let (server, _folder) = misbehave(8_000, &wait_for_rows(4));
    eventually("requests share a batch", || {
        let answers = predict_concurrently(&server, &["echo", "spin", "echo"]);
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200, 504, 200]);
        larger_calls(&server, "misbehave", "2") > 0.5
    });
}

#[test]
fn a_batch_whose_callers_disconnected_is_cancelled() {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 600_000);
    setup.config.push_str(
        "inference_threads = 1\nthreads_per_version = 1\npredict_milliseconds_at_most = 600000\n",
    );
    setup.config.push_str("[models.misbehave.batching]\n");
    setup.config.push_str(&wait_for_rows(2));
    let server = Server::start(&setup);
    let connect = || {
        let body = json!({"action": "spin"}).to_string();
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let head =
            format!("POST /models/misbehave/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {DEMO_KEY}");
        write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream
    };
    let (first, second) = (connect(), connect());
    let busy = || metric_sum(&server, "guesthouse_instances", &["\"misbehave\"", "state=\"busy\""]);
    eventually("the guest runs", || busy() == Some(1.0));
    drop(first);
    drop(second);
    // The only inference thread is free again.
    server.wait_for("the cancellation", |line| line["kind"] == "cancelled");
    let echo = server.post("/models/misbehave/predict", &json!({"action": "echo"}));
    assert_eq!(echo.status, 200);
}

#[test]
fn a_request_waits_for_the_maximum_queue_delay() {
    let (server, _folder) = misbehave(30_000, "max_queue_delay_microseconds = 300_000\n");
    let begin = Instant::now();
    assert_eq!(predict_concurrently(&server, &["echo"])[0].status, 200);
    assert!(begin.elapsed() >= Duration::from_millis(300), "{:?}", begin.elapsed());
}

#[test]
fn isolated_requests_are_never_batched() {
    for config in [
        "[models.misbehave.batching]\nenabled = false\n",
        "[models.misbehave]\nisolation = \"fresh\"\n",
    ] {
        let folder = temporary_folder();
        let mut setup = Setup::misbehave(folder.path(), 30_000);
        setup.config.push_str("inference_threads = 1\nthreads_per_version = 1\n");
        setup.config.push_str(config);
        let server = Server::start(&setup);
        let answers = predict_concurrently(&server, &["echo"; 16]);
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        assert!(larger_calls(&server, "misbehave", "1") < 0.5, "{config}");
        // The rows of one request still share a call.
        let rows = json!({"actions": vec!["echo"; 8]});
        assert_eq!(server.post("/models/misbehave/batch_predict", &rows).status, 200);
        assert!(larger_calls(&server, "misbehave", "4") > 0.5, "{config}");
    }
}

#[test]
fn a_request_that_waits_past_its_timeout_is_rejected() {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 20_000);
    setup.config.push_str("threads_per_version = 1\n");
    let server = &Server::start(&setup);
    let infer = |action: &str, timeout: u64| {
        let input = json!({"name": "action", "datatype": "BYTES", "shape": [1], "data": [action]});
        let body = json!({"parameters": {"timeout": timeout}, "inputs": [input]});
        server.post("/v2/models/misbehave/infer", &body)
    };
    std::thread::scope(|scope| {
        let spinning = scope.spawn(|| infer("spin", 0));
        server.wait_for_metric(r#"model="misbehave",version="1.0.0",state="busy"} 1"#);
        let late = infer("echo", 1000);
        assert_eq!((late.status, late.error_code()), (503, Some("overloaded")), "{late:?}");
        assert!(!spinning.is_finished(), "rejected after the thread became free");
        assert_eq!(spinning.join().unwrap().status, 504);
    });
    let refused =
        metric_sum(server, "guesthouse_rejections_total", &["queue_timeout", "misbehave"]);
    assert_eq!(refused, Some(1.0));
    // Requests without a timeout, or with a sufficient one, are answered.
    assert_eq!((infer("echo", 0).status, infer("echo", 60_000_000).status), (200, 200));
}
