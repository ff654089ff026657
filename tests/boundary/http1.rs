use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::client::send_raw;
use guesthouse_tests::{DEADLINE, DEMO_KEY, Server, Setup};
use rustix::net::sockopt::set_socket_linger;
use serde_json::{Value, json};

fn setup(limits: &str) -> Setup {
    let mut setup = Setup::toxicity();
    setup.config.push_str(&format!("\n[limits]\n{limits}\n"));
    setup
}

/// The head of a prediction request with a body of this length.
fn head(path: &str, version: &str, more: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/{version}\r\nHost: a\r\nX-API-Key: {DEMO_KEY}\r\n{more}\
         Content-Length: {length}\r\n\r\n"
    )
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Reads a response: its head, and its body by `Content-Length`.
fn read_response(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut seen = Vec::new();
    let end = loop {
        if let Some(end) = seen.windows(4).position(|part| part == b"\r\n\r\n") {
            break end + 4;
        }
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    };
    let head = String::from_utf8(seen[..end].to_vec()).unwrap();
    let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

fn header<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value)
}

fn status(head: &str) -> u16 {
    head.split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a response starts with a status line")
}

/// The statuses of all responses until the server closes the connection.
fn statuses(mut stream: TcpStream) -> Vec<u16> {
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    all.match_indices("HTTP/1.").map(|(at, _)| status(&all[at..])).collect()
}

#[test]
fn a_half_closed_connection_is_answered() {
    let folder = temporary_folder();
    let setup = Setup::misbehave(folder.path(), 20_000);
    let server = Server::start(&setup);
    let echo = json!({"action": "echo"}).to_string();
    // This request is answered at its deadline, long after the client closed its sending side.
    let spin = json!({"action": "spin"}).to_string();
    let path = "/models/misbehave/predict";
    let slow = head(path, "1.1", "X-Request-Timeout-Ms: 500\r\n", spin.len()) + &spin;
    let quick = head(path, "1.1", "", echo.len()) + &echo;
    let chunked = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: {DEMO_KEY}\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{echo}\r\n0\r\n\r\n",
        echo.len()
    );
    let older = head(path, "1.0", "", echo.len()) + &echo;
    let cut_off = head(path, "1.1", "", echo.len() + 1) + &echo;
    let probe = "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n".to_owned();
    for (requests, expected) in [
        (quick.clone(), &[200][..]),
        (slow.clone(), &[504]),
        (chunked, &[200]),
        (older, &[200]),
        (probe.clone(), &[200]),
        ([&slow[..], &quick, &slow, &probe].concat(), &[504, 200, 504, 200]),
        (cut_off.clone(), &[400]),
    ] {
        let mut stream = connect(server.address());
        stream.write_all(requests.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(statuses(stream), expected, "{requests}");
    }
    // A connection that cannot serve another request does not offer to.
    let mut stream = connect(server.address());
    stream.write_all(cut_off.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let (answer, _) = read_response(&mut stream);
    assert_eq!(header(&answer, "connection"), Some("close"), "{answer}");
    assert_eq!(header(&answer, "keep-alive"), None, "{answer}");
    let mut stream = connect(server.admin_address());
    stream.write_all(b"GET /admin/v1/status HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(statuses(stream), [401]);
}

/// However a client disconnects, the only inference thread is free before the time limit of the
/// request.
#[test]
fn any_kind_of_disconnect_frees_the_guest() {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 600_000);
    setup.config.push_str(
        "inference_threads = 1\nthreads_per_version = 1\npredict_milliseconds_at_most = 600000\n",
    );
    let server = Server::start(&setup);
    let path = "/models/misbehave/predict";
    let spin = json!({"action": "spin"}).to_string();
    let request = head(path, "1.1", "", spin.len()) + &spin;
    let echo = json!({"action": "echo"}).to_string();
    type Leave = fn(TcpStream);
    let leave: [(&str, Leave); 4] = [
        ("closes", drop),
        ("resets", |stream| set_socket_linger(&stream, Some(Duration::ZERO)).unwrap()),
        ("half-closes, then closes", |stream| stream.shutdown(Shutdown::Write).unwrap()),
        ("sends more, then closes", |mut stream| stream.write_all(b"GET / HTTP/1.1\r\n").unwrap()),
    ];
    for (how, leave) in leave {
        let mut stream = connect(server.address());
        stream.write_all(request.as_bytes()).unwrap();
        // The thread is busy once another request has to wait for it.
        let soon = [("X-Request-Timeout-Ms", "200")];
        while server.send("POST", path, &soon, echo.as_bytes()).status != 504 {}
        leave(stream);
        assert_eq!(server.send("POST", path, &[], echo.as_bytes()).status, 200, "{how}");
    }
    server.wait_for("a log line with status 499", |line| {
        line["target"] == "request" && line["status"] == 499
    });
}

/// How long the server keeps a connection open.
fn open_for(mut stream: TcpStream) -> Duration {
    let begun = Instant::now();
    // The server closes the connection normally or with a reset.
    let _ = stream.read_to_end(&mut Vec::new());
    begun.elapsed()
}

#[test]
fn idle_connections_outlive_the_head_limit_as_announced() {
    let server = Server::start(&setup("head_seconds = 1\nidle_seconds = 4"));
    let ask = |request: &str| {
        let mut stream = connect(server.address());
        stream.write_all(request.as_bytes()).unwrap();
        let (head, _) = read_response(&mut stream);
        assert_eq!(status(&head), 200, "{head}");
        (stream, head)
    };
    let (idle, kept) = ask("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(header(&kept, "keep-alive"), Some("timeout=3"), "{kept}");
    assert_eq!(header(&kept, "connection"), Some("keep-alive"), "{kept}");
    let (older, kept) = ask("GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(header(&kept, "keep-alive"), Some("timeout=3"), "{kept}");
    // One connection without any request, and one with half of a second request.
    let silent = connect(server.address());
    let (mut half, _) = ask("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
    half.write_all(b"GET /healthz HTTP/1.1\r\nHost: h").unwrap();
    let [idle, older, silent, half] = std::thread::scope(|scope| {
        [idle, older, silent, half]
            .map(|stream| scope.spawn(|| open_for(stream)))
            .map(|thread| thread.join().unwrap())
    });
    assert!(silent < idle && half < idle, "{silent:?}, {half:?}, {idle:?}");
    // As announced, and a second more for requests in transit.
    assert!(idle > Duration::from_secs(3) && older > Duration::from_secs(3), "{idle:?} {older:?}");
}

#[test]
fn a_connection_is_closed_if_the_client_does_not_keep_it() {
    let server = Server::start(&setup("head_seconds = 3600\nidle_seconds = 3600"));
    for closing in [
        "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET /healthz HTTP/1.0\r\n\r\n",
    ] {
        let mut stream = connect(server.address());
        stream.write_all(closing.as_bytes()).unwrap();
        let (closed, _) = read_response(&mut stream);
        assert_eq!((status(&closed), header(&closed, "keep-alive")), (200, None), "{closed}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the connection is open");
    }
}

#[test]
fn idle_connections_are_closed_at_the_connection_limit() {
    let limits = "connections = 8\nhead_seconds = 1\nidle_seconds = 600";
    let server = Server::start(&setup(limits));
    let mut idle = Vec::new();
    for _ in 0..32 {
        let mut stream = connect(server.address());
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(status(&read_response(&mut stream).0), 200);
        idle.push(stream);
    }
    server.assert_healthy();
}

#[test]
fn a_rejection_does_not_wait_for_the_body() {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 20_000);
    setup.config.push_str("body_seconds = 3600\n");
    setup.config.push_str("[models.misbehave]\nrate = { per_second = 0.001, burst = 1 }\n");
    let server = Server::start(&setup);
    let echo = json!({"action": "echo"});
    assert_eq!(server.post("/models/misbehave/predict", &echo).status, 200);
    let wrong_type = "Content-Type: text/csv\r\n";
    let refused = [
        ("/models/misbehave/predict", "X-API-Key: other\r\n", 100, 400),
        ("/models/misbehave/predict", "", 100, 429),
        ("/models/absent/predict", "", 100, 404),
        ("/models/toxicity/predict", "", 9 << 20, 413),
        ("/models/toxicity/predict", wrong_type, 100, 415),
        ("/models/toxicity/versions/9/predict", "", 100, 404),
        ("/nowhere", "", 100, 404),
        ("/healthz", "", 100, 405),
        ("/v2/models/toxicity/infer", wrong_type, 100, 415),
    ];
    for (path, more, length, expected) in refused {
        for expect in ["", "Expect: 100-continue\r\n"] {
            let case = format!("{path} {more} {expect}");
            let mut stream = connect(server.address());
            let request = head(path, "1.1", &format!("{more}{expect}"), length);
            stream.write_all(request.as_bytes()).unwrap();
            let (answer, _) = read_response(&mut stream);
            assert_eq!(status(&answer), expected, "{case}");
            if expect.is_empty() {
                // A client that sends the body nevertheless can reuse the connection. It was still
                // open, so the response did not wait for the body.
                stream.write_all(&vec![b' '; length]).unwrap();
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
                assert_eq!(status(&read_response(&mut stream).0), 200, "{case}");
            } else {
                // The server cannot know whether the body follows.
                assert_eq!(header(&answer, "connection"), Some("close"), "{case}");
                assert_eq!(statuses(stream), [0_u16; 0], "{case}");
            }
        }
    }
    let mut stream = connect(server.admin_address());
    stream.write_all(head("/admin/v1/deploy", "1.1", "", 64 << 10).as_bytes()).unwrap();
    assert!([401, 403].contains(&status(&read_response(&mut stream).0)));
    // The connection is still open, so the response did not wait for the body.
    stream.write_all(&vec![b' '; 64 << 10]).unwrap();
    stream.write_all(b"GET /admin/v1/status HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(status(&read_response(&mut stream).0), 401);
}

/// A client that reads no response before it has sent everything still finds the response.
#[test]
fn a_client_that_keeps_sending_receives_the_rejection() {
    let server = Server::start(&setup(""));
    let body = vec![b' '; 20 << 20];
    for more in ["", "Expect: 100-continue\r\n", "Connection: close\r\n"] {
        let mut stream = connect(server.address());
        let request = head("/v1/predict", "1.1", more, body.len());
        stream.write_all(request.as_bytes()).unwrap();
        stream.write_all(&body).unwrap();
        assert_eq!(status(&read_response(&mut stream).0), 413, "{more}");
    }
    // Rejected while the head is parsed.
    let mut stream = connect(server.address());
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}", "a".repeat(4 << 20));
    stream.write_all(long.as_bytes()).unwrap();
    assert_eq!(status(&read_response(&mut stream).0), 431);
}

#[test]
fn a_missing_duplicate_or_invalid_host_gets_400() {
    let server = Server::start(&setup(""));
    for (request, expected) in [
        ("GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\nConnection: close\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nhost: b\r\nConnection: close\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: u@a\r\nConnection: close\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n", 400),
        ("GET http://a/healthz HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        ("GET http://a/healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200),
        ("GET /healthz HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n", 200),
        ("GET /healthz HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n", 200),
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
        ("GET /healthz HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    ] {
        let answer = send_raw(server.address(), request.as_bytes());
        assert_eq!(status(&answer), expected, "{request}{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error_code"] == "malformed_request", expected == 400, "{body}");
    }
    let admin = "GET /admin/v1/status HTTP/1.1\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&send_raw(server.admin_address(), admin.as_bytes())), 400);
}

/// The content type that `curl -d` sends by default.
#[test]
fn url_encoded_forms_get_415_everywhere() {
    let server = Server::start(&setup(""));
    let tensor = json!({"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]});
    let infer = json!({"inputs": [tensor]});
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    for (path, body) in [
        ("/v1/predict", json!({"text": "a"})),
        ("/v1/batch_predict", json!({"texts": ["a"]})),
        ("/models/toxicity/predict", json!({"text": "a"})),
        ("/v2/models/toxicity/infer", infer.clone()),
    ] {
        let body = body.to_string();
        let answer = server.send("POST", path, &[form], body.as_bytes());
        assert_eq!(answer.status, 415, "{path} {answer:?}");
        assert!(answer.body.to_string().contains("Content-Type: application/json"), "{answer:?}");
        // Without a content type, the body is JSON.
        let request = head(path, "1.1", "Connection: close\r\n", body.len()) + &body;
        assert_eq!(status(&send_raw(server.address(), request.as_bytes())), 200, "{path}");
    }
    for path in ["/v2/repository/index", "/v2/repository/models/toxicity/load"] {
        let key = ("X-API-Key", guesthouse_tests::client::DEMO_ADMIN_KEY);
        let url = server.url(path);
        let answer = guesthouse_tests::client::send("POST", &url, &[key, form], b"{}");
        assert_eq!(answer.status, 415, "{path} {answer:?}");
    }
    for (method, path) in [
        ("POST", "models/toxicity/promote"),
        ("POST", "models/toxicity/rollback"),
        ("POST", "keys"),
        ("PUT", "log"),
        ("POST", "deploy"),
    ] {
        let answer = server.admin_with(method, path, &[form], &json!({"version": "1.0.0"}));
        assert_eq!(answer.status, 415, "{path} {answer:?}");
    }
}

#[test]
fn duplicate_json_keys_get_400() {
    let server = Server::start(&setup(""));
    let tensor = r#"{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}"#;
    for (path, body) in [
        ("/v1/predict", r#"{"text": "a", "text": "a"}"#.to_owned()),
        ("/v1/predict", r#"{"text": "a", "t\u0065xt": "b"}"#.to_owned()),
        ("/v1/predict", r#"{"request_id": "a", "text": "a", "request_id": "b"}"#.to_owned()),
        ("/v1/batch_predict", r#"{"instances": [{"text": "a", "text": "b"}]}"#.to_owned()),
        ("/v1/batch_predict", r#"{"texts": ["a"], "texts": ["b"]}"#.to_owned()),
        ("/v2/models/toxicity/infer", format!(r#"{{"inputs": [{tensor}], "inputs": [{tensor}]}}"#)),
        (
            "/v2/models/toxicity/infer",
            format!(r#"{{"id": null, "id": "a", "inputs": [{tensor}]}}"#),
        ),
        ("/v2/models/toxicity/infer", format!(r#"{{"x": 1, "x": 1, "inputs": [{tensor}]}}"#)),
        (
            "/v2/models/toxicity/infer",
            format!(
                r#"{{"inputs": [{}]}}"#,
                tensor.replace("{\"name\"", "{\"name\": null, \"name\"")
            ),
        ),
    ] {
        let answer = server.send("POST", path, &[], body.as_bytes());
        assert_eq!(answer.status, 400, "{body} {answer:?}");
    }
    let body = br#"{"version": "1.0.0", "version": "2.0.0"}"#;
    let key = ("X-API-Key", guesthouse_tests::client::DEMO_ADMIN_KEY);
    let json = ("Content-Type", "application/json");
    let url = format!("http://{}/admin/v1/models/toxicity/promote", server.admin_address());
    let answer = guesthouse_tests::client::send("POST", &url, &[key, json], body);
    assert_eq!(answer.status, 400, "{answer:?}");
}

#[test]
fn a_connection_with_a_withheld_body_is_closed() {
    let server = Server::start(&setup("idle_seconds = 600\nhead_seconds = 600"));
    let mut stream = connect(server.address());
    stream.write_all(head("/nowhere", "1.1", "", 100).as_bytes()).unwrap();
    assert_eq!(status(&read_response(&mut stream).0), 404);
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    assert!(rest.is_empty());
}
