use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use guesthouse_tests::{DEADLINE, DEMO_KEY, Server, Setup, Signal, client};
use reqwest::blocking::Client;
use reqwest::{StatusCode, Version};
use serde_json::{Value, json};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame of this type with these flags on this stream.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn settings() -> Vec<u8> {
    frame(4, 0, 0, b"")
}

/// `GET /healthz` as the only frame of its stream.
fn healthz(stream: u32) -> Vec<u8> {
    // From the static table of RFC 7541: method GET and scheme http; `:path` and `:authority` with
    // literal values.
    frame(1, 0x5, stream, b"\x82\x86\x04\x08/healthz\x41\x01a")
}

/// `POST /v1/predict` with a key; the body follows.
fn predict(stream: u32) -> Vec<u8> {
    let head = &b"\x83\x86\x04\x0b/v1/predict\x41\x01a\x00\x09x-api-key"[..];
    let length = u8::try_from(DEMO_KEY.len()).unwrap();
    frame(1, 0x4, stream, &[head, &[length], DEMO_KEY.as_bytes()].concat())
}

fn setup(limits: &str) -> Setup {
    let mut setup = Setup::toxicity();
    setup.config.push_str(&format!("\n[limits]\n{limits}\n"));
    setup
}

fn open(server: &Server, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// Everything until the server closes the connection, normally or with a reset.
fn read_to_end(mut stream: TcpStream) -> Vec<u8> {
    let mut read_to_end = Vec::new();
    if let Err(error) = stream.read_to_end(&mut read_to_end) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the connection is not closed");
    }
    read_to_end
}

/// Reads until `wanted` accepts the bytes read so far.
fn read_until(stream: &mut TcpStream, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut seen = Vec::new();
    while !wanted(&seen) {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).unwrap();
        assert_ne!(count, 0, "the connection is closed: {:?}", frame_types(&seen));
        seen.extend_from_slice(&piece[..count]);
    }
    seen
}

/// The types of the frames in these bytes.
fn frame_types(mut bytes: &[u8]) -> Vec<u8> {
    let mut frame_types = Vec::new();
    while let [a, b, c, kind, ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        frame_types.push(*kind);
        bytes = bytes.get(9 + length..).unwrap_or_default();
    }
    frame_types
}

fn client() -> Client {
    client::http().http2_prior_knowledge().build().unwrap()
}

#[test]
fn concurrent_requests_on_one_connection_succeed() {
    let server = Server::start(&setup(""));
    let client = client();
    let ask = |text: &str| {
        let request = client.post(server.url("/v1/predict")).header("X-API-Key", DEMO_KEY);
        request.json(&json!({ "text": text })).send().unwrap()
    };
    let score = |text: &str| {
        // A server without measurements admits few concurrent requests and rejects the others with
        // 503.
        let response = std::iter::repeat_with(|| ask(text))
            .find(|response| response.status() != StatusCode::SERVICE_UNAVAILABLE)
            .unwrap();
        assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
        assert!(response.headers().contains_key("x-request-id"));
        response.json::<Value>().unwrap()["score"].clone()
    };
    let texts: Vec<_> = (0..64).map(|number| format!("You are nice {number}")).collect();
    let scores: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = texts.iter().map(|text| scope.spawn(|| score(text))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let batch = server.post("/v1/batch_predict", &json!({ "texts": texts }));
    let wanted: Vec<_> = batch.body["results"].as_array().unwrap().iter().collect();
    for (score, wanted) in scores.iter().zip(wanted) {
        assert!((score.as_f64().unwrap() - wanted["score"].as_f64().unwrap()).abs() < 1e-6);
    }
    // Errors are the same as over HTTP/1.1.
    let response = client.post(server.url("/v1/predict")).body("{").send().unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let huge = client.post(server.url("/v1/predict")).header("X-API-Key", DEMO_KEY);
    let huge = huge.body(vec![b'a'; 20 << 20]).send().unwrap();
    assert_eq!(huge.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let output = Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "-w", "%{http_code} %{http_version}"])
        .args(["--http2-prior-knowledge", &server.url("/healthz")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "200 2");
    server.assert_healthy();
}

#[test]
fn connections_without_requests_are_closed() {
    let server = Server::start(&setup("connections = 8\nhead_seconds = 1\nidle_seconds = 1"));
    let greeting = [PREFACE, &settings()].concat();
    let half_head = frame(1, 0x1, 1, b"\x82\x86");
    let silent: Vec<_> = (0..4)
        .flat_map(|_| {
            [
                // A part of the preface, which could still become HTTP/1.1.
                open(&server, &PREFACE[..10]),
                open(&server, PREFACE),
                open(&server, &greeting),
                open(&server, &[&greeting[..], &half_head].concat()),
            ]
        })
        .collect();
    assert_eq!(server.get("/healthz").status, 200);
    for stream in silent {
        read_to_end(stream);
    }
    // A connection that had a response receives GOAWAY.
    let idle = read_to_end(open(&server, &[&greeting[..], &healthz(1)].concat()));
    let frame_types = frame_types(&idle);
    assert!(
        frame_types.contains(&1) && frame_types.contains(&7),
        "HEADERS and GOAWAY: {frame_types:?}"
    );
    server.assert_healthy();
}

#[test]
fn idle_connections_do_not_delay_the_shutdown() {
    let server = Server::start(&setup("drain_seconds = 3600\nhead_seconds = 3600"));
    let greeting = [PREFACE, &settings()].concat();
    let _silent = open(&server, &PREFACE[..5]);
    let _greeted = open(&server, &greeting);
    // It acknowledges no ping of the graceful shutdown.
    let mut answered = open(&server, &[&greeting[..], &healthz(1)].concat());
    read_until(&mut answered, |seen| seen.windows(5).any(|part| part == b"alive"));
    let kept = client();
    assert_eq!(kept.get(server.url("/healthz")).send().unwrap().status(), StatusCode::OK);
    let (status, _) = server.stop();
    assert!(status.success(), "requests were left to drain");
}

#[test]
fn requests_in_progress_complete_during_the_shutdown() {
    let server = Server::start(&setup("drain_seconds = 300"));
    let begin = [PREFACE, &settings(), &predict(1), &healthz(3)].concat();
    let mut stream = open(&server, &begin);
    // Frames are processed in order, so the first request is in progress when the second is
    // answered.
    let mut seen = read_until(&mut stream, |seen| seen.windows(5).any(|part| part == b"alive"));
    server.signal(Signal::INT);
    server.wait_for("the drain", |line| line["message"] == "draining");
    stream.write_all(&frame(0, 1, 1, br#"{"text": "You are nice"}"#)).unwrap();
    seen.extend(read_to_end(stream));
    assert!(seen.windows(5).any(|part| part == b"clean"), "{}", String::from_utf8_lossy(&seen));
    assert!(server.wait_for_end().0.success());
}

#[test]
fn oversized_heads_are_rejected() {
    let server = Server::start(&setup(""));
    let client = client();
    let long = client.get(server.url("/healthz")).header("X-Long", "a".repeat(15_000));
    assert_eq!(long.send().unwrap().status(), StatusCode::OK);
    let longer = client.get(server.url("/healthz")).header("X-Long", "a".repeat(100_000));
    let refused = longer.send().map(|response| response.status());
    assert!(
        matches!(refused, Err(_) | Ok(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)),
        "{refused:?}"
    );
    server.assert_healthy();
}

#[test]
fn a_rapid_reset_flood_is_disconnected() {
    let server = Server::start(&setup(""));
    let mut flood = [PREFACE, &settings()].concat();
    for stream in (1..40_000).step_by(2) {
        flood.extend(healthz(stream));
        // CANCEL.
        flood.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    // The connection may be closed before everything is sent.
    let _ = stream.write_all(&flood);
    let frame_types = frame_types(&read_to_end(stream));
    let answers = frame_types.iter().filter(|kind| **kind == 1).count();
    assert!(answers < 10_000, "{answers} answers");
    server.assert_healthy();
}

#[test]
fn streams_over_the_limit_are_reset_one_by_one() {
    let server = Server::start(&setup("body_seconds = 10"));
    // Requests whose bodies never arrive.
    let mut bytes = [PREFACE, &settings()].concat();
    (1..300).step_by(2).for_each(|stream| bytes.extend(predict(stream)));
    let mut stream = open(&server, &bytes);
    let count =
        |seen: &[u8], wanted| frame_types(seen).iter().filter(|kind| **kind == wanted).count();
    // Of 150 streams, 100 time out and 50 are reset.
    let seen = read_until(&mut stream, |seen| count(seen, 1) >= 100);
    assert!(count(&seen, 3) >= 50, "{:?}", frame_types(&seen));
    server.assert_healthy();
}

/// A request for `/healthz` with these headers as literals without indexing.
fn healthz_with(stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut head = b"\x82\x86\x04\x08/healthz".to_vec();
    let literal = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    for (name, value) in headers {
        head.extend([&[0], &literal(name)[..], &literal(value)].concat());
    }
    frame(1, 0x5, stream, &head)
}

#[test]
fn a_missing_or_contradictory_host_gets_400() {
    let server = Server::start(&setup(""));
    for (headers, is_good) in [
        (&[(":authority", "a")][..], true),
        (&[("host", "a")], true),
        (&[(":authority", "a"), ("host", "A")], true),
        (&[(":authority", "a"), ("host", "b")], false),
        (&[("host", "a"), ("host", "a")], false),
        (&[], false),
    ] {
        let mut stream = open(&server, &[PREFACE, &settings(), &healthz_with(1, headers)].concat());
        let seen = read_until(&mut stream, |seen| {
            seen.windows(5).any(|part| part == b"alive")
                || seen.windows(9).any(|part| part == b"malformed")
        });
        assert_eq!(seen.windows(5).any(|part| part == b"alive"), is_good, "{headers:?}");
    }
}

#[test]
fn a_rejection_does_not_wait_for_the_body() {
    let server = Server::start(&setup("body_seconds = 3600"));
    let mut other = predict(1);
    // A key that is not known.
    *other.last_mut().unwrap() ^= 1;
    let mut stream = open(&server, &[PREFACE, &settings(), &other].concat());
    let mut seen =
        read_until(&mut stream, |seen| seen.windows(12).any(|part| part == b"unauthorized"));
    // A client that sends its body nevertheless is not reset, and can use the connection again.
    stream.write_all(&frame(0, 1, 1, &[b' '; 1000])).unwrap();
    stream.write_all(&healthz(3)).unwrap();
    seen.extend(read_until(&mut stream, |seen| seen.windows(5).any(|part| part == b"alive")));
    assert!(!frame_types(&seen).contains(&3), "a stream is reset: {:?}", frame_types(&seen));
}

#[test]
fn an_idle_connection_outlives_the_head_limit() {
    let server = Server::start(&setup("head_seconds = 1\nidle_seconds = 4"));
    let begun = Instant::now();
    let greeting = [PREFACE, &settings()].concat();
    let silent = std::thread::scope(|scope| {
        let silent = scope.spawn(|| {
            read_to_end(open(&server, &greeting));
            begun.elapsed()
        });
        read_to_end(open(&server, &[&greeting[..], &healthz(1)].concat()));
        silent.join().unwrap()
    });
    let idle = begun.elapsed();
    assert!(idle >= Duration::from_secs(4) && silent < idle, "{silent:?} {idle:?}");
}
