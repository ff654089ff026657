use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::{DEMO_KEY, HttpResponse, Server, Setup, eventually};
use serde_json::{Value, json};

/// The initial concurrency limit of a version with one thread.
const LIMIT: usize = 16;

/// Two versions of the misbehaving guest with one thread each; the first is stable.
fn server(folder: &std::path::Path) -> Server {
    let pack = |version| Misbehave { version, ..Misbehave::default() }.pack(folder);
    let artifacts = vec![pack("1.0.0"), pack("1.1.0")];
    let config = "[limits]\nthreads_per_version = 1\npredict_milliseconds = 60000\n\
                  [models.misbehave]\nsplit = { \"1.0.0\" = 1_000_000, \"1.1.0\" = 0 }\n";
    Server::start(&Setup { artifacts, config: config.to_owned(), ..Setup::default() })
}

/// Opens requests for the stable version that run until they are dropped.
fn occupy(server: &Server, count: usize) -> Vec<TcpStream> {
    let body = r#"{"action": "spin"}"#;
    let request = format!(
        "POST /models/misbehave/predict HTTP/1.1\r\nHost: a\r\nX-API-Key: {DEMO_KEY}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let open = |_| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    (0..count).map(open).collect()
}

/// Sends a request with a timeout of one second.
fn ask(server: &Server, path: &str, body: &Value) -> HttpResponse {
    let moment = [("X-Request-Timeout-Ms", "1000")];
    server.send("POST", path, &moment, body.to_string().as_bytes())
}

fn is_refused(answer: &HttpResponse) -> bool {
    let refused = answer.status == 503;
    if refused {
        assert_eq!(answer.error_code(), Some("overloaded"), "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    refused
}

#[test]
fn the_least_important_requests_are_rejected_first() {
    let folder = temporary_folder();
    let server = server(folder.path());
    let (echo, many) = (json!({"action": "echo"}), json!({"instances": [{"action": "echo"}]}));
    let stable = || is_refused(&ask(&server, "/models/misbehave/predict", &echo));
    let batch = || is_refused(&ask(&server, "/models/misbehave/batch_predict", &many));
    let path = "/models/misbehave/versions/1.1.0/predict";
    let candidate = || is_refused(&ask(&server, path, &echo));
    assert!(!stable() && !batch() && !candidate());

    let mut busy = occupy(&server, LIMIT * 6 / 10);
    eventually("batches are rejected", batch);
    assert!(!candidate(), "the candidate was rejected");
    busy.extend(occupy(&server, LIMIT * 8 / 10 - busy.len()));
    eventually("candidates are rejected", candidate);
    assert!(!stable(), "the stable version was rejected");
    // Probing requests hold places for a moment, so more requests are added until everything is
    // rejected.
    eventually("everything is rejected", || {
        busy.extend(occupy(&server, LIMIT));
        stable()
            && batch()
            && candidate()
            && !server.admits_body("/models/misbehave/predict", 100_000)
    });
    // Requests that need no model are still answered.
    assert_eq!(server.get("/healthz").status, 200);

    drop(busy);
    eventually("there is room again", || {
        let answer = server.post("/models/misbehave/batch_predict", &many);
        answer.status == 200 && server.post(path, &echo).status == 200
    });
}

#[test]
fn every_request_of_a_flood_is_answered_or_rejected() {
    let folder = temporary_folder();
    let server = Arc::new(server(folder.path()));
    let threads: Vec<_> = (0..LIMIT * 3)
        .map(|_| {
            let server = Arc::clone(&server);
            thread::spawn(move || {
                let ask = |_| server.post("/models/misbehave/predict", &json!({"action": "work"}));
                (0..10).map(ask).collect::<Vec<_>>()
            })
        })
        .collect();
    let answers: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    let refused = answers.iter().filter(|answer| is_refused(answer)).count();
    let answered = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(answered + refused, answers.len(), "a request was neither answered nor rejected");
    assert!(answered > 0 && refused > 0, "{answered} answered, {refused} refused");
    assert_eq!(server.post("/models/misbehave/predict", &json!({"action": "echo"})).status, 200);
}
