use std::thread;

use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::{HttpResponse, Server, Setup};
use serde_json::json;

const NICE: &[u8] = br#"{"text": "You are nice"}"#;

fn named(server: &Server, path: &str, key: &str, body: &[u8]) -> HttpResponse {
    server.send("POST", path, &[("Idempotency-Key", key)], body)
}

fn outcome(answer: &HttpResponse) -> (u16, Option<&str>) {
    (answer.status, answer.error_code())
}

#[test]
fn a_repeated_request_gets_the_first_response() {
    let server = Server::start(&Setup::toxicity());
    let first = named(&server, "/predict", "a-1", NICE);
    assert_eq!((first.status, first.header("idempotency-replayed")), (200, None));
    // At random, one request in ten would go to the other version.
    for _ in 0..30 {
        let again = named(&server, "/predict", "a-1", NICE);
        assert_eq!(again.header("idempotency-replayed"), Some("true"), "{again:?}");
        assert_eq!((again.status, &again.body), (200, &first.body));
        for header in ["x-model-version", "x-route-reason", "content-type"] {
            assert_eq!(again.header(header), first.header(header), "{header}");
        }
        // Each request has its own id; the body repeats the id of the first one.
        assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
    }
    let other_body = br#"{"text": "You are not nice"}"#;
    for (path, body) in [
        ("/predict", &other_body[..]),
        ("/v1/predict", NICE),
        ("/models/toxicity/versions/1/predict", NICE),
    ] {
        let answer = named(&server, path, "a-1", body);
        assert_eq!(outcome(&answer), (422, Some("idempotency_mismatch")), "{path}");
    }
    let batch = br#"{"texts": ["You are nice"]}"#;
    let first = named(&server, "/v1/batch_predict", "a-2", batch);
    assert_eq!(named(&server, "/v1/batch_predict", "a-2", batch).body, first.body);
    // Without a key, each request is computed.
    let answer = server.send("POST", "/predict", &[], NICE);
    assert_eq!((answer.status, answer.header("idempotency-replayed")), (200, None));
    let line = server.wait_for("a replay", |line| {
        line["target"] == "request" && line["request_id"] == answer.body["request_id"]
    });
    assert_eq!(line["version"], answer.body["model_version"]);
}

#[test]
fn a_body_field_can_carry_the_idempotency_key() {
    let server = Server::start(&Setup::toxicity());
    let body = json!({"text": "You are nice", "idempotency_key": "b-1"});
    let first = server.post("/v1/predict", &body);
    let again = server.post("/v1/predict", &body);
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    let other = json!({"text": "You are not nice", "idempotency_key": "b-1"});
    let answer = server.post("/v1/predict", &other);
    assert_eq!(outcome(&answer), (422, Some("idempotency_mismatch")));
    for bad in [json!(""), json!(1), json!(null), json!("x".repeat(129))] {
        let answer = server.post("/v1/predict", &json!({"text": "a", "idempotency_key": bad}));
        assert_eq!(outcome(&answer), (400, Some("malformed_request")), "{bad}");
    }
    for bad in ["", &"x".repeat(129)] {
        let answer = named(&server, "/v1/predict", bad, NICE);
        assert_eq!(outcome(&answer), (400, Some("malformed_request")), "{bad}");
    }
}

#[test]
fn errors_are_not_stored_and_concurrent_repeats_get_409() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::misbehave(folder.path(), 20_000));
    let path = "/models/misbehave/predict";
    for _ in 0..2 {
        let answer = named(&server, path, "c-1", br#"{"action": "fail"}"#);
        assert_eq!(outcome(&answer), (500, Some("model_failure")));
    }
    // A failed request releases its key.
    assert_eq!(named(&server, path, "c-1", br#"{"action": "echo"}"#).status, 200);

    // Of two concurrent requests, one runs for three seconds, and the other is rejected meanwhile.
    let spin = || {
        let headers = [("Idempotency-Key", "c-2"), ("X-Request-Timeout-Ms", "3000")];
        server.send("POST", path, &headers, br#"{"action": "spin"}"#)
    };
    let mut answers = thread::scope(|scope| {
        let threads = [scope.spawn(spin), scope.spawn(spin)];
        threads.map(|thread| thread.join().unwrap())
    });
    answers.sort_by_key(|answer| answer.status);
    assert_eq!(outcome(&answers[0]), (409, Some("idempotency_conflict")));
    assert_eq!(answers[0].header("retry-after"), Some("1"));
    assert_eq!(outcome(&answers[1]), (504, Some("deadline_exceeded")));
}

#[test]
fn stored_responses_expire() {
    let mut setup = Setup::toxicity();
    setup.config.push_str("\n[idempotency]\nseconds = 1\n");
    let server = Server::start(&setup);
    let first = named(&server, "/v1/predict", "d-1", NICE);
    server.eventually("the response expires", |server| {
        let answer = named(server, "/v1/predict", "d-1", NICE);
        assert_eq!(answer.status, 200);
        let is_new = answer.header("idempotency-replayed").is_none();
        assert_ne!(is_new, answer.body["request_id"] == first.body["request_id"]);
        is_new
    });
}
