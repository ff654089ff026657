//! Requests of all kinds that arrive in random order get the same responses as alone, whichever
//! requests they share a batch with.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::{HttpResponse, Server, Setup};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

/// The number of elements in a row of `simple` and `simple_string`.
const SIZE: usize = 16;

/// The number of rounds.
const ROUNDS: u32 = 12;

/// A request whose only correct response is known.
#[derive(Debug, Clone)]
enum TestRequest {
    /// Rows of two arrays, with the requested outputs in their order.
    Simple { rows: Vec<[i32; 2]>, outputs: Vec<&'static str>, id: Option<String> },
    /// Rows of texts, some of which are not numbers.
    Texts { rows: Vec<Option<i32>> },
    /// A row of any length.
    Sum { numbers: Vec<i16> },
    /// A row for the misbehaving guest.
    Act { action: &'static str },
}

fn test_request() -> impl Strategy<Value = TestRequest> {
    let outputs = prop::sample::select(vec![
        vec![],
        vec!["OUTPUT0"],
        vec!["OUTPUT1"],
        vec!["OUTPUT0", "OUTPUT1"],
        vec!["OUTPUT1", "OUTPUT0"],
    ]);
    let id = prop::option::of("[a-z]{1,8}");
    let simple = (vec(any::<[i32; 2]>(), 1..5), outputs, id)
        .prop_map(|(rows, outputs, id)| TestRequest::Simple { rows, outputs, id });
    let number = prop::option::weighted(0.9, -1_000_000..1_000_000);
    let texts = vec(number, 1..4).prop_map(|rows| TestRequest::Texts { rows });
    let sum = vec(any::<i16>(), 0..80).prop_map(|numbers| TestRequest::Sum { numbers });
    // Mostly successes: a version that only fails is suspended.
    let actions = ["echo", "echo", "echo", "echo", "echo", "echo", "panic", "fail", "reject"];
    let act = prop::sample::select(actions.to_vec()).prop_map(|action| TestRequest::Act { action });
    prop_oneof![3 => simple, 2 => texts, 2 => sum, 2 => act]
}

impl TestRequest {
    fn send(&self, server: &Server) -> HttpResponse {
        let tensor = |name: &str, datatype: &str, rows: usize, size: usize, data: Value| json!({"name": name, "datatype": datatype, "shape": [rows, size], "data": data});
        let infer =
            |model: &str, body: &Value| server.post(&format!("/v2/models/{model}/infer"), body);
        match self {
            Self::Simple { rows, outputs, id } => {
                let data = |of: fn(&[i32; 2]) -> i32| {
                    json!(rows.iter().flat_map(|row| [of(row); SIZE]).collect::<Vec<_>>())
                };
                let input = |name, data| tensor(name, "INT32", rows.len(), SIZE, data);
                let inputs =
                    [input("INPUT1", data(|row| row[1])), input("INPUT0", data(|row| row[0]))];
                let mut body = json!({ "inputs": inputs });
                if !outputs.is_empty() {
                    body["outputs"] = outputs.iter().map(|name| json!({ "name": name })).collect();
                }
                if let Some(id) = id {
                    body["id"] = json!(id);
                }
                infer("simple", &body)
            }
            Self::Texts { rows } => {
                let text = |row: &Option<i32>| row.map_or("none".to_owned(), |row| row.to_string());
                let texts: Vec<_> = rows.iter().flat_map(|row| vec![text(row); SIZE]).collect();
                let input = |name, data| tensor(name, "BYTES", rows.len(), SIZE, data);
                let ones = json!(vec!["1"; texts.len()]);
                infer(
                    "simple_string",
                    &json!({"inputs": [input("INPUT0", json!(texts)), input("INPUT1", ones)]}),
                )
            }
            Self::Sum { numbers } => {
                let input = tensor("INPUT0", "FP32", 1, numbers.len(), json!(numbers));
                infer("row_sum", &json!({ "inputs": [input] }))
            }
            Self::Act { action } => {
                server.post("/models/misbehave/predict", &json!({ "action": action }))
            }
        }
    }

    /// Asserts that the response is the correct one.
    fn assert_correct(&self, answer: &HttpResponse) {
        let outputs = || {
            assert_eq!(answer.status, 200, "{self:?} {answer:?}");
            let outputs = answer.body["outputs"].as_array().unwrap().iter();
            outputs.map(|output| (output["name"].as_str().unwrap(), output["data"].clone()))
        };
        match self {
            Self::Simple { rows, outputs: wanted, id } => {
                let sums = rows.iter().flat_map(|row| [row[0].wrapping_add(row[1]); SIZE]);
                let rests = rows.iter().flat_map(|row| [row[0].wrapping_sub(row[1]); SIZE]);
                let (sums, rests) =
                    (json!(sums.collect::<Vec<_>>()), json!(rests.collect::<Vec<_>>()));
                let names =
                    if wanted.is_empty() { vec!["OUTPUT0", "OUTPUT1"] } else { wanted.clone() };
                let right = names
                    .into_iter()
                    .map(|name| (name, if name == "OUTPUT0" { &sums } else { &rests }));
                assert!(
                    outputs().eq(right.map(|(name, data)| (name, data.clone()))),
                    "{self:?} {answer:?}"
                );
                assert_eq!(answer.body["id"], json!(id), "{answer:?}");
            }
            Self::Texts { rows } if rows.iter().all(Option::is_some) => {
                let data = |by: i32| {
                    rows.iter().flatten().flat_map(move |row| vec![(row + by).to_string(); SIZE])
                };
                let right = [
                    ("OUTPUT0", json!(data(1).collect::<Vec<_>>())),
                    ("OUTPUT1", json!(data(-1).collect::<Vec<_>>())),
                ];
                assert!(outputs().eq(right), "{self:?} {answer:?}");
            }
            Self::Texts { rows } => {
                assert_eq!((answer.status, answer.error_code()), (422, Some("unacceptable_input")));
                let message = answer.body["error"].as_str().unwrap();
                let bad: Vec<_> = (0..rows.len()).filter(|row| rows[*row].is_none()).collect();
                assert!(
                    bad.iter().any(|row| message.contains(&format!("row {row}:"))),
                    "{self:?} {answer:?}"
                );
            }
            Self::Sum { numbers } => {
                // Integers of this size have an exact sum as floats.
                let sum: i32 = numbers.iter().map(|number| i32::from(*number)).sum();
                let right = json!([f64::from(sum)]);
                assert!(
                    outputs().all(|(_, data)| data[0].as_f64() == right[0].as_f64()),
                    "{self:?} {answer:?}"
                );
            }
            Self::Act { action } => {
                let right = match *action {
                    "echo" => (200, None),
                    "reject" => (422, Some("unacceptable_input")),
                    _ => (500, Some("model_failure")),
                };
                assert_eq!((answer.status, answer.error_code()), right, "{self:?} {answer:?}");
            }
        }
    }
}

/// How many guest calls `simple` had.
fn calls(server: &Server) -> f64 {
    let metrics = server.metrics();
    let is_it = |line: &&str| {
        line.starts_with("guesthouse_batch_size_rows_count{") && line.contains("model=\"simple\"")
    };
    let counts = metrics.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next());
    counts.filter_map(|count| count.parse::<f64>().ok()).sum()
}

#[test]
fn mixed_batches_give_each_request_its_own_result() {
    let folder = temporary_folder();
    let mut setup = Setup::fixtures(folder.path(), &["simple", "simple_string", "row_sum"]);
    setup.artifacts.push(Misbehave::default().pack(folder.path()));
    // A time limit that no queueing delay reaches, and a delay in which batches fill.
    setup.config = setup.config.replace("[limits]\n", "[limits]\npredict_milliseconds = 30_000\n");
    for model in ["simple", "simple_string", "row_sum", "misbehave"] {
        setup.config +=
            &format!("[models.{model}.batching]\nmax_queue_delay_microseconds = 20_000\n");
    }
    let server = Server::start(&setup);
    let mut runner = TestRunner::new(Config {
        cases: ROUNDS,
        failure_persistence: None,
        max_shrink_iters: 50,
        ..Config::default()
    });
    let round = vec((test_request(), 0_u32..50), 1..24);
    let simple = AtomicUsize::new(0);
    let outcome = runner.run(&round, |round| {
        let of_simple = round
            .iter()
            .filter(|(test_request, _)| matches!(test_request, TestRequest::Simple { .. }));
        simple.fetch_add(of_simple.count(), Ordering::Relaxed);
        let ask = |(test_request, delay): &(TestRequest, u32)| {
            // Yielding a different number of times randomizes the order of arrival.
            (0..*delay).for_each(|_| thread::yield_now());
            test_request.send(&server)
        };
        thread::scope(|scope| {
            let asking: Vec<_> = round.iter().map(|each| scope.spawn(|| ask(each))).collect();
            for (asking, (test_request, _)) in asking.into_iter().zip(&round) {
                test_request.assert_correct(&asking.join().unwrap());
            }
        });
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let (calls, requests) = (calls(&server), simple.load(Ordering::Relaxed) as f64);
    assert!(calls > 0.0 && calls < requests, "{requests} requests took {calls} calls");
}
