use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use guesthouse_tests::client::{send, send_raw};
use guesthouse_tests::{DEMO_KEY, HttpResponse, Server, Setup, eventually};
use serde_json::{Value, json};

/// Asserts that an error has the three common fields and reveals nothing internal.
fn assert_error(answer: &HttpResponse, status: u16, code: &str) {
    assert_eq!((answer.status, answer.error_code()), (status, Some(code)), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    let message = answer.body["message"].as_str().unwrap();
    assert!(!message.is_empty());
    for inside in ["src/", ".rs", "panicked", "wasm", "target", "Error", "::", "/home", "/tmp"] {
        assert!(!message.contains(inside), "{message}");
    }
    let id = answer.body["request_id"].as_str().unwrap();
    assert_eq!(answer.header("x-request-id"), Some(id));
}

#[test]
fn malformed_bodies_get_400() {
    let server = Server::start(&Setup::toxicity());
    let deep = format!("{}{}", r#"{"text":"#.repeat(10_000), "}".repeat(10_000));
    let deep_array = "[".repeat(1_000_000);
    let bodies: &[&[u8]] = &[
        b"",
        b"not json",
        b"{",
        br#"{"text": "a"} trailing"#,
        br#"{"text": "\ud800"}"#,
        b"{\"text\": \"\xff\xfe\"}",
        b"\"text\"",
        b"[]",
        b"null",
        b"{}",
        br#"{"text": null}"#,
        br#"{"text": 1}"#,
        br#"{"text": ["a"]}"#,
        br#"{"text": {"text": "a"}}"#,
        br#"{"text": "a", "unknown": 1}"#,
        br#"{"Text": "a"}"#,
        br#"{"text": "a", "request_id": 1}"#,
        br#"{"text": "a", "request_id": ""}"#,
        br#"{"text": "a", "request_id": "line\nbreak"}"#,
        deep.as_bytes(),
        deep_array.as_bytes(),
    ];
    for body in bodies {
        let answer = server.send("POST", "/v1/predict", &[], body);
        assert_error(&answer, 400, "malformed_request");
    }
    for body in [
        json!({"texts": []}),
        json!({"instances": []}),
        json!({"texts": "a"}),
        json!({"instances": {"text": "a"}}),
        json!({"instances": ["a"]}),
        json!({"texts": [1]}),
        json!({"texts": [null]}),
        json!({"texts": ["a"], "instances": [{"text": "a"}]}),
        json!({"texts": ["a"], "unknown": 1}),
        json!({"text": "a"}),
        json!({}),
    ] {
        let answer = server.post("/v1/batch_predict", &body);
        assert_error(&answer, 400, "malformed_request");
    }
    server.assert_healthy();
}

#[test]
fn unacceptable_values_get_422_with_their_rows() {
    let server = Server::start(&Setup::toxicity());
    for text in ["", " \n\t ", "\u{3000}", &"a".repeat(2001)] {
        let answer = server.post("/v1/predict", &json!({ "text": text }));
        assert_error(&answer, 422, "unacceptable_input");
        assert_eq!(answer.body["details"][0]["field"], "text");
    }
    let mut texts = vec!["fine"; 200];
    texts[150] = "";
    texts[199] = "";
    let answer = server.post("/v1/batch_predict", &json!({ "texts": texts }));
    assert_error(&answer, 422, "unacceptable_input");
    let rows: Vec<_> =
        answer.body["details"].as_array().unwrap().iter().map(|issue| &issue["row"]).collect();
    assert_eq!(rows, [150, 199]);
    let answer = server.post("/v1/batch_predict", &json!({"texts": vec!["a"; 1025]}));
    assert_error(&answer, 422, "unacceptable_input");
    assert_eq!(server.post("/v1/batch_predict", &json!({"texts": vec!["a"; 1024]})).status, 200);
    // A wrong type takes precedence over a wrong value, and its row is reported as well.
    let answer = server.post("/v1/batch_predict", &json!({"texts": ["", "a", 1]}));
    assert_error(&answer, 400, "malformed_request");
    assert_eq!(answer.body["details"][0]["row"], 2);
}

#[test]
fn a_request_without_a_valid_key_gets_401_first() {
    let server = Server::start(&Setup::toxicity());
    let url = server.url("/v1/predict");
    let json = ("Content-Type", "application/json");
    for headers in [
        &[json][..],
        &[json, ("X-API-Key", "")],
        &[json, ("X-API-Key", "local-demo-key2")],
        &[json, ("X-API-Key", "LOCAL-DEMO-KEY")],
        &[json, ("Authorization", "local-demo-key")],
    ] {
        assert_error(&send("POST", &url, headers, b"not json"), 401, "unauthorized");
    }
    let unknown = server.url("/models/absent/predict");
    assert_error(&send("POST", &unknown, &[json], b"{}"), 401, "unauthorized");
}

#[test]
fn unknown_paths_get_404_and_other_methods_405() {
    let server = Server::start(&Setup::toxicity());
    let body = json!({"text": "a"});
    for path in [
        "/",
        "/v3/predict",
        "/v0/predict",
        "/v01/predict",
        "/v/predict",
        "/vv1/predict",
        "/v99999999999999999999/predict",
        "/v1/explain",
        "/models/absent/predict",
        "/models/Toxicity/predict",
        "/models/..%2f..%2fetc/predict",
        "/models/toxicity/versions/9.9.9/predict",
        "/models/toxicity/versions/%5E3/predict",
    ] {
        assert_error(&server.post(path, &body), 404, "not_found");
    }
    for selector in ["latest", "1.2.3.4", "*", "%00", "^^1", &"1".repeat(300)] {
        let path = format!("/models/toxicity/versions/{selector}/predict");
        assert_error(&server.post(&path, &body), 400, "malformed_request");
    }
    // A path that is not UTF-8.
    assert_error(&server.post("/models/%ff/predict", &body), 400, "malformed_request");
    for (method, path, allow) in [
        ("GET", "/v1/predict", "POST"),
        ("PUT", "/predict", "POST"),
        ("DELETE", "/models/toxicity/predict", "POST"),
        ("POST", "/healthz", "GET,HEAD"),
    ] {
        let answer = server.send(method, path, &[], b"");
        assert_error(&answer, 405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
}

#[test]
fn unsupported_media_types_get_415() {
    let server = Server::start(&Setup::toxicity());
    let body = br#"{"text": "You are nice"}"#;
    for media_type in ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"] {
        let answer = server.send("POST", "/v1/predict", &[("Content-Type", media_type)], body);
        assert_error(&answer, 415, "unsupported_media_type");
    }
    let answer = server.send("POST", "/v1/predict", &[("Content-Encoding", "br")], body);
    assert_error(&answer, 415, "unsupported_media_type");
    for media_type in ["application/json; charset=utf-8", "Application/JSON"] {
        let answer = server.send("POST", "/v1/predict", &[("Content-Type", media_type)], body);
        assert_eq!(answer.status, 200, "{media_type}: {answer:?}");
    }
}

fn head(server: &Server, headers: &str) -> String {
    let (host, key) = (server.address(), DEMO_KEY);
    format!(
        "POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {key}\r\n\
         Content-Type: application/json\r\nConnection: close\r\n{headers}\r\n"
    )
}

/// The status and the JSON body of a raw response.
fn parse_raw(answer: &str) -> (u16, Value) {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (status.unwrap_or(0), serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn huge_bodies_get_413_and_the_client_receives_it() {
    let server = Server::start(&Setup::toxicity());
    // The whole body is sent before the response is read, as simple clients do.
    let huge = format!(r#"{{"text": "{}"}}"#, "a".repeat(20 << 20));
    let answer = server.send("POST", "/v1/predict", &[], huge.as_bytes());
    assert_error(&answer, 413, "payload_too_large");
    // A chunked body, and a client that sends `Expect: 100-continue`.
    let mut chunked = head(&server, "Transfer-Encoding: chunked\r\n").into_bytes();
    for _ in 0..20 {
        chunked.extend_from_slice(b"100000\r\n");
        chunked.extend(vec![b'a'; 1 << 20]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let (status, body) = parse_raw(&send_raw(server.address(), &chunked));
    assert_eq!((status, &body["error_code"]), (413, &json!("payload_too_large")));
    let asking = head(&server, "Expect: 100-continue\r\nContent-Length: 99999999\r\n");
    let (status, _) = parse_raw(&send_raw(server.address(), asking.as_bytes()));
    assert_eq!(status, 413);
    server.assert_healthy();
}

#[test]
fn a_client_that_sends_first_receives_an_early_rejection() {
    let server = Server::start(&Setup::toxicity());
    let body = vec![b'a'; 6 << 20];
    let (json, key) = (("Content-Type", "application/json"), ("X-API-Key", DEMO_KEY));
    for (method, path, headers, status, code) in [
        ("POST", "/v1/predict", vec![json], 401, "unauthorized"),
        ("POST", "/absent", vec![json, key], 404, "not_found"),
        ("PUT", "/v1/predict", vec![json, key], 405, "method_not_allowed"),
        (
            "POST",
            "/v1/predict",
            vec![("Content-Type", "text/plain"), key],
            415,
            "unsupported_media_type",
        ),
        ("POST", "/models/%ff/predict", vec![json, key], 400, "malformed_request"),
    ] {
        let answer = send(method, &server.url(path), &headers, &body);
        assert_error(&answer, status, code);
    }
    // A client that sends `Expect: 100-continue` is rejected without waiting for the body.
    let asking = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
        Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n";
    let (status, _) = parse_raw(&send_raw(server.address(), asking));
    assert_eq!(status, 401);
    server.assert_healthy();
}

#[test]
fn a_body_within_the_limit_takes_bounded_memory() {
    const ROOM: usize = (8 << 20) - 64;
    let server = Server::start(&Setup::toxicity());
    let fill = |value: &str| format!("{value},").repeat(ROOM / (value.len() + 1));
    for (path, start, value, status, code) in [
        ("/v1/batch_predict", "instances", r#"{"":0}"#, 422, "unacceptable_input"),
        ("/v1/batch_predict", "texts", "0", 422, "unacceptable_input"),
        ("/v1/predict", "text", "0", 413, "payload_too_large"),
        ("/v1/predict", "text", "{}", 413, "payload_too_large"),
        ("/v1/predict", "text", r#"{"":0}"#, 413, "payload_too_large"),
    ] {
        let before = server.peak_memory_bytes();
        let body = format!(r#"{{"{start}":[{}0]}}"#, fill(value));
        let answer = server.send("POST", path, &[], body.as_bytes());
        assert_error(&answer, status, code);
        let more = server.peak_memory_bytes() - before;
        assert!(more < 192 << 20, "{path} {value}: {more} bytes more");
    }
    server.assert_healthy();
}

#[test]
fn bodies_in_flight_share_one_limit() {
    let mut setup = Setup::toxicity();
    // Longer than the test runs.
    setup.config.push_str("\n[limits]\nbody_seconds = 600\nbody_bytes = 1000000\n");
    setup.config.push_str("bodies_in_flight_bytes = 1500000\n");
    let server = Server::start(&setup);
    // White space around the JSON makes a body of this size that the model accepts.
    let body = format!("{}{}", json!({"text": "You are nice"}), " ".repeat(900_000));
    let length = format!("Content-Length: {}\r\nExpect: 100-continue\r\n", body.len());
    let mut first = TcpStream::connect(server.address()).unwrap();
    first.write_all(head(&server, &length).as_bytes()).unwrap();
    // The server reserves room for what has arrived, and no more.
    let mut asked = [0; 25];
    first.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    let (sent, rest) = body.as_bytes().split_at(body.len() - 1000);
    first.write_all(sent).unwrap();
    let send = || server.send("POST", "/v1/predict", &[], body.as_bytes());
    // A whole body sent now might take the room that the first request needs.
    server.eventually("all that was sent is read", |server| {
        let metrics = server.metrics();
        let line =
            metrics.lines().find(|line| line.starts_with("guesthouse_bodies_in_flight_bytes"));
        let held = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        held >= Some(sent.len())
    });
    let refused = send();
    assert_error(&refused, 503, "overloaded");
    assert_eq!(refused.header("retry-after"), Some("1"));
    // The same body in chunks, without a length.
    let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let chunked = head(&server, "Transfer-Encoding: chunked\r\n") + &chunk;
    let (status, _) = parse_raw(&send_raw(server.address(), chunked.as_bytes()));
    assert_eq!(status, 503);
    server.assert_healthy();
    // The first request completes and releases its room.
    first.write_all(rest).unwrap();
    let mut answer = String::new();
    first.read_to_string(&mut answer).unwrap();
    assert_eq!(parse_raw(&answer).0, 200);
    eventually("there is room again", || send().status == 200);
    let (status, _) = parse_raw(&send_raw(server.address(), chunked.as_bytes()));
    assert_eq!(status, 200);
}

#[test]
fn half_sent_bodies_do_not_delay_the_shutdown() {
    let server = Server::start(&Setup::toxicity());
    for _ in 0..50 {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let head = head(&server, "Content-Length: 1000\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(b"{\"text\": \"half").unwrap();
    }
    server.assert_healthy();
    let (status, _) = server.stop();
    assert!(status.success(), "requests were left to drain");
}
