use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::{Answer, DEMO_KEY, Server, Setup};
use serde_json::{Value, json};

/// How many requests a version takes at once in these tests, before it has measured anything: one
/// thread's worth.
const LIMIT: usize = 16;

/// Two versions of the misbehaving guest, the first of them stable, with one thread for each.
fn server(folder: &std::path::Path) -> Server {
    let pack = |version| Misbehave { version, ..Misbehave::default() }.pack(folder);
    let artifacts = vec![pack("1.0.0"), pack("1.1.0")];
    let config = "[limits]\nthreads_per_version = 1\npredict_milliseconds = 60000\n\
                  [models.misbehave]\nsplit = { \"1.0.0\" = 1_000_000, \"1.1.0\" = 0 }\n";
    Server::start(&Setup { artifacts, config: config.to_owned(), ..Setup::default() })
}

/// Requests for the stable version that do not end until they are dropped.
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

/// An answer within a moment, or a refusal at once.
fn ask(server: &Server, path: &str, body: &Value) -> Answer {
    let moment = [("X-Request-Timeout-Ms", "1000")];
    server.send("POST", path, &moment, body.to_string().as_bytes())
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
    }
}

fn is_refused(answer: &Answer) -> bool {
    let refused = answer.status == 503;
    if refused {
        assert_eq!(answer.error_code(), Some("overloaded"), "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    refused
}

#[test]
fn what_is_least_urgent_is_refused_first() {
    let folder = temporary_folder();
    let server = server(folder.path());
    let (echo, many) = (json!({"action": "echo"}), json!({"instances": [{"action": "echo"}]}));
    let stable = || is_refused(&ask(&server, "/models/misbehave/predict", &echo));
    let batch = || is_refused(&ask(&server, "/models/misbehave/batch_predict", &many));
    let path = "/models/misbehave/versions/1.1.0/predict";
    let candidate = || is_refused(&ask(&server, path, &echo));
    assert!(!stable() && !batch() && !candidate());

    let mut busy = occupy(&server, LIMIT * 6 / 10);
    until("batches are refused", batch);
    assert!(!candidate(), "there is room for a candidate");
    busy.extend(occupy(&server, LIMIT * 8 / 10 - busy.len()));
    until("candidates are refused", candidate);
    assert!(!stable(), "there is room for the stable version");
    // More until there is room for nobody: one that was asked may have held a place meanwhile.
    until("everything is refused", || {
        busy.extend(occupy(&server, LIMIT));
        stable()
            && batch()
            && candidate()
            && !server.would_read("/models/misbehave/predict", 100_000)
    });
    // What is not asked of the model is answered as ever.
    assert_eq!(server.get("/healthz").status, 200);

    drop(busy);
    until("there is room again", || {
        let answer = server.post("/models/misbehave/batch_predict", &many);
        answer.status == 200 && server.post(path, &echo).status == 200
    });
}

#[test]
fn a_flood_is_answered_in_time_or_refused() {
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
    assert_eq!(answered + refused, answers.len(), "nothing is late, lost or wrong");
    assert!(answered > 0 && refused > 0, "{answered} answered, {refused} refused");
    assert_eq!(server.post("/models/misbehave/predict", &json!({"action": "echo"})).status, 200);
}
