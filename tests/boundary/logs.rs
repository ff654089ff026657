use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use guesthouse_tests::artifacts::{Misbehave, run_host, temporary_folder};
use guesthouse_tests::client::{DEMO_KEY, send, send_raw};
use guesthouse_tests::{DEADLINE, Server, Setup, environment};
use serde_json::{Value, json};

#[test]
fn each_request_is_one_line_with_its_id() {
    let server = Server::start(&Setup::toxicity());
    let body = json!({"text": "You are nice", "request_id": "log-1"});
    assert_eq!(server.post("/v1/predict", &body).status, 200);
    let line = server.wait_for("log-1", |line| line["request_id"] == "log-1");
    assert_eq!(line["target"], "request");
    assert_eq!(line["route"], "/{major}/predict");
    assert_eq!((&line["model"], &line["version"]), (&json!("toxicity"), &json!("1.0.0")));
    assert_eq!((&line["status"], &line["caller"]), (&json!(200), &json!("demo")));
    assert_eq!((&line["reason"], &line["rows"]), (&json!("range"), &json!(1)));
    assert!(line["latency_ms"].as_f64().unwrap() > 0.0);
    let long = json!({"text": "", "request_id": "log-2"});
    assert_eq!(server.post("/v1/predict", &long).status, 422);
    let line = server.wait_for("log-2", |line| line["request_id"] == "log-2");
    assert_eq!((&line["status"], &line["error_code"]), (&json!(422), &json!("unacceptable_input")));
    let lines = server.lines();
    assert_eq!(lines.iter().filter(|line| line["request_id"] == "log-1").count(), 1);
}

#[test]
fn guest_logs_and_faults_carry_the_request_id() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::misbehave(folder.path(), 5000));
    let body = json!({"action": "panic", "request_id": "fault-1"});
    assert_eq!(server.post("/models/misbehave/predict", &body).status, 500);
    for target in ["guest", "fault", "request"] {
        server.wait_for(target, |line| {
            let id = line["request_id"].as_str().or(line["span"]["request_id"].as_str());
            line["target"] == target && id == Some("fault-1")
        });
    }
}

const CANARY: &str = "canary9f3a";

/// A server that logs at the most verbose level.
fn verbose() -> Setup {
    Setup { log: Some("trace".to_owned()), ..Setup::toxicity() }
}

fn assert_no_canary(lines: &[Value]) {
    for line in lines {
        let line = line.to_string();
        assert!(!line.to_lowercase().contains(CANARY), "{line}");
        assert!(!line.contains("local-demo-key"), "{line}");
        assert!(!line.contains("local-demo-admin-key"), "{line}");
    }
}

/// Headers that the server reads, and one that it does not.
const HEADERS: [&str; 16] = [
    "User-Agent",
    "Cookie",
    "Idempotency-Key",
    "tracestate",
    "X-Model-Version",
    "X-Request-Timeout-Ms",
    "X-User-Id",
    "Accept",
    "Accept-Encoding",
    "Content-Encoding",
    "Origin",
    "Referer",
    "Expect",
    "Forwarded",
    "X-Forwarded-For",
    CANARY,
];

/// Sends malformed requests to both listeners.
fn send_garbage(server: &Server) {
    for garbage in [
        format!("{CANARY}\r\n\r\n"),
        format!(
            "{} /{CANARY} HTTP/1.1\r\nHost: {CANARY}\r\nConnection: close\r\n\r\n",
            "CANARY9F3A"
        ),
        format!("GET / HTTP/1.1\r\n{CANARY} {CANARY}\r\n\r\n"),
        format!("GET / HTTP/{CANARY}\r\n\r\n"),
        format!("POST /v1/predict HTTP/1.1\r\nContent-Length: {CANARY}\r\n\r\n"),
        format!(
            "POST /v1/predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX-API-Key: local-demo-key\r\nConnection: close\r\n\r\n{CANARY}\r\n"
        ),
        format!("GET /%ff{CANARY} HTTP/1.1\r\nConnection: close\r\n\r\n"),
    ] {
        send_raw(server.address(), garbage.as_bytes());
        send_raw(server.admin_address(), garbage.as_bytes());
    }
}

#[test]
fn caller_data_is_not_logged_except_the_request_id() {
    let server = Server::start(&verbose());
    let text = json!({ "text": CANARY }).to_string();
    let json = ("Content-Type", "application/json");
    let key = ("X-API-Key", "local-demo-key");
    let canary_path = format!("/models/{CANARY}/versions/{CANARY}/predict?q={CANARY}");
    let unknown = json!({ CANARY: 1 }).to_string();
    let batch = json!({"texts": [CANARY, 1]}).to_string();
    let malformed = format!("{{{CANARY}");
    let bad_id = json!({"text": "a", "request_id": format!("{CANARY} {CANARY}")}).to_string();
    let named = json!({"text": "a", "idempotency_key": CANARY}).to_string();
    let multipart = format!(
        "--{CANARY}\r\nContent-Disposition: form-data; name=\"{CANARY}\"; filename=\"{CANARY}\"\r\n\
         Content-Type: {CANARY}/{CANARY}\r\n\r\n{CANARY}\r\n--{CANARY}--\r\n"
    );
    let form = format!("multipart/form-data; boundary={CANARY}");
    let bearer = format!("Bearer {CANARY}");
    let parent = format!("00-{CANARY}-{CANARY}-01");
    let mut requests = vec![
        ("/v1/predict", vec![json, key], text.as_str()),
        ("/v1/predict", vec![json, key], &unknown),
        ("/v1/predict", vec![json, key], &malformed),
        ("/v1/predict", vec![json, key], &bad_id),
        ("/v1/predict", vec![json, key], &named),
        ("/v1/batch_predict", vec![json, key], &batch),
        ("/v1/predict", vec![("Content-Type", &form), key], &multipart),
        ("/v1/predict", vec![("Content-Type", CANARY), key], &text),
        ("/v1/predict", vec![json, ("X-API-Key", CANARY)], &text),
        ("/v1/predict", vec![json, ("Authorization", &bearer)], &text),
        (&canary_path, vec![json, key], &text),
    ];
    let long_id = CANARY.repeat(20);
    for header in HEADERS {
        requests.push(("/v1/predict", vec![json, key, (header, CANARY)], &text));
    }
    requests.push(("/v1/predict", vec![json, key, ("traceparent", &parent)], &text));
    requests.push(("/v1/predict", vec![json, key, ("X-Request-Id", &long_id)], &text));
    let unknown_path = format!("/{CANARY}");
    requests.push((&unknown_path, vec![json, key], &text));
    let sent = requests.len();
    for (path, headers, body) in requests {
        send("POST", &server.url(path), &headers, body.as_bytes());
        send("GET", &server.url(path), &headers, b"");
    }
    send_garbage(&server);
    let (_, lines) = server.stop();
    assert!(lines.iter().filter(|line| line["target"] == "request").count() >= 2 * sent);
    assert_no_canary(&lines);
}

#[test]
fn operator_data_is_not_logged() {
    let server = Server::start(&verbose());
    let (body, bearer) = (json!({ CANARY: CANARY }).to_string(), format!("Bearer {CANARY}"));
    let url = |path: &str| format!("http://{}/admin/v1/{path}", server.admin_address());
    let key = ("X-API-Key", "local-demo-admin-key");
    let model = format!("models/{CANARY}/promote?reason={CANARY}");
    for (method, path, headers) in [
        ("GET", "status", vec![("X-API-Key", CANARY)]),
        ("GET", "status", vec![("Authorization", bearer.as_str())]),
        ("GET", "status", vec![key, ("User-Agent", CANARY), ("Cookie", CANARY)]),
        ("POST", &model, vec![key, ("Idempotency-Key", CANARY)]),
        ("POST", "models/toxicity/canary", vec![key, ("Content-Type", CANARY)]),
        ("POST", "deploy", vec![("X-API-Key", CANARY)]),
        ("PUT", "log", vec![key]),
        ("GET", CANARY, vec![key]),
        ("GET", &format!("history?{CANARY}={CANARY}"), vec![key]),
    ] {
        send(method, &url(path), &headers, body.as_bytes());
    }
    let unknown =
        format!("CANARY9F3A /{CANARY} HTTP/1.1\r\nHost: {CANARY}\r\nConnection: close\r\n\r\n");
    send_raw(server.admin_address(), unknown.as_bytes());
    let bad_filter = json!({"filter": format!("{CANARY}=[")}).to_string();
    let answer = send("PUT", &url("log"), &[key], bad_filter.as_bytes());
    assert_eq!(answer.status, 422, "{answer:?}");
    let (_, lines) = server.stop();
    assert!(lines.iter().filter(|line| line["target"] == "request").count() >= 10);
    assert_no_canary(&lines);
}

#[test]
fn the_filter_can_be_changed_at_run_time() {
    let server = Server::start(&Setup::toxicity());
    let ask = |id: &str| {
        let body = json!({"text": "You are nice", "request_id": id});
        assert_eq!(server.post("/v1/predict", &body).status, 200);
    };
    let shown = server.admin("GET", "log", &Value::Null);
    assert_eq!((shown.status, &shown.body["filter"]), (200, &json!("info")));
    let set = server.admin("PUT", "log", &json!({"filter": "info,request=warn"}));
    assert_eq!((set.status, &set.body["filter"]), (200, &json!("info,request=warn")), "{set:?}");
    server.wait_for("the log line", |line| line["message"] == "log levels changed");
    ask("silent");
    let bad = server.admin("PUT", "log", &json!({"filter": "info,request=loud"}));
    assert_eq!((bad.status, bad.error_code()), (422, Some("unacceptable_input")));
    let shown = server.admin("GET", "log", &Value::Null);
    assert_eq!(shown.body["filter"], "info,request=warn");
    assert_eq!(server.admin("PUT", "log", &json!({"filter": "info"})).status, 200);
    ask("loud");
    server.wait_for("loud", |line| line["request_id"] == "loud");
    assert!(!server.lines().iter().any(|line| line["request_id"] == "silent"));
    let stranger = format!("http://{}/admin/v1/log", server.admin_address());
    assert_eq!(send("GET", &stranger, &[], b"").status, 401);
}

/// More lines than the buffers of the server, the pipe and the test hold.
const FLOOD: usize = 12_000;

/// Sends unauthorized requests, each of which writes one log line.
fn flood(server: &Server) {
    let request = format!("GET /models HTTP/1.1\r\nHost: {}\r\n\r\n", server.address());
    let last = request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    for _ in 0..FLOOD / 100 {
        let answers =
            send_raw(server.address(), format!("{}{last}", request.repeat(99)).as_bytes());
        assert_eq!(answers.matches("HTTP/1.1 401").count(), 100);
    }
}

#[test]
fn an_unread_log_does_not_block_requests_or_shutdown() {
    let server = Server::start(&Setup::toxicity());
    server.pause_log_reader(true);
    flood(&server);
    server.assert_healthy();
    assert!(server.stop_unread().success());
}

#[test]
fn dropped_log_lines_are_counted() {
    let server = Server::start(&Setup::toxicity());
    server.pause_log_reader(true);
    flood(&server);
    server.pause_log_reader(false);
    let wanted = json!({"text": "You are nice", "request_id": "after-the-stall"});
    let written = |line: &Value| line["request_id"] == "after-the-stall";
    // Lines are dropped until the queue has been drained.
    server.eventually("the log is written again", |server| {
        assert_eq!(server.post("/v1/predict", &wanted).status, 200);
        server.lines().iter().any(written)
    });
    let (status, lines) = server.stop();
    assert!(status.success());
    let dropped = lines.iter().rev().find_map(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("log lines were dropped").then(|| line["lines"].as_u64())
    });
    let requests = lines.iter().filter(|line| line["route"] == "/models").count();
    assert!(dropped.flatten() >= Some((FLOOD - requests) as u64), "{dropped:?}, {requests}");
    assert!(requests < FLOOD);
}

/// Filters that are malformed, or that contain regular expressions.
fn bad_filters() -> [String; 12] {
    let field = |value: &str| format!("info,[{{request_id={value}}}]=trace");
    [
        "inof".to_owned(),
        "inof,request=info".to_owned(),
        "info,request=loud".to_owned(),
        "info;request=warn".to_owned(),
        "info,hyper".to_owned(),
        "requests=info".to_owned(),
        ",".to_owned(),
        "info,[predict]=trace".to_owned(),
        "info,request[{status}]=trace".to_owned(),
        field("a"),
        // A regular expression whose automaton needs gigabytes.
        field("~\"(((((\\\\w{9}){9}){9}){9}){9}){9}\""),
        "info,".repeat(300),
    ]
}

#[test]
fn an_invalid_filter_is_rejected_by_the_admin_api() {
    let server = Server::start(&Setup::toxicity());
    for filter in bad_filters().iter().chain([&String::new()]) {
        let bad = server.admin("PUT", "log", &json!({"filter": filter}));
        assert_eq!((bad.status, bad.error_code()), (422, Some("unacceptable_input")), "{filter}");
    }
    let shown = server.admin("GET", "log", &Value::Null);
    assert_eq!(shown.body["filter"], "info");
    for filter in ["off", "INFO", "info,hyper=warn", "warn,request", " info , request = info "] {
        let set = server.admin("PUT", "log", &json!({"filter": filter}));
        assert_eq!((set.status, &set.body["filter"]), (200, &json!(filter)), "{set:?}");
    }
    let body = json!({"text": "You are nice", "request_id": "logged"});
    assert_eq!(server.post("/v1/predict", &body).status, 200);
    server.wait_for("logged", |line| line["request_id"] == "logged");
    // Compiling that expression would show here.
    assert!(server.peak_memory_bytes() < 1 << 30);
}

#[test]
fn an_invalid_filter_is_rejected_by_the_command_line() {
    for filter in bad_filters() {
        let output = run_host(&["config", "check", "--log", &filter]);
        assert_eq!(output.status.code(), Some(1), "{filter}: {output:?}");
        let mut command = Command::new(environment::host());
        let command = command.args(["config", "check"]).env("GUESTHOUSE_LOG", &filter);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{filter}: {output:?}");
    }
    let served = run_host(&["serve", "--listen", "127.0.0.1:0", "--log", "inof"]);
    assert_eq!(served.status.code(), Some(1), "{served:?}");
    let mut command = Command::new(environment::host());
    let unset = command.args(["config", "check"]).env("GUESTHOUSE_LOG", "").output().unwrap();
    assert!(unset.status.success(), "{unset:?}");
}

/// A server whose log is read as raw lines.
struct RawLog {
    child: Child,
    lines: mpsc::Receiver<Vec<u8>>,
    seen: VecDeque<String>,
}

impl RawLog {
    fn start(format: &str, folder: &std::path::Path) -> Self {
        let repository = folder.join("repository");
        std::fs::create_dir_all(&repository).unwrap();
        Misbehave::default().pack(&repository);
        let mut command = Command::new(environment::host());
        command.args(["serve", "--demo", "--log-format", format, "--listen", "127.0.0.1:0"]);
        command.args(["--grpc-listen", "off", "--admin-listen", "127.0.0.1:0"]);
        command.arg("--repository").arg(&repository).arg("--state").arg(folder.join("state"));
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while log.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                if sender.send(std::mem::take(&mut line)).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, seen: VecDeque::new() }
    }

    /// Waits for the next line that contains this text.
    fn wait_for(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("no {wanted:?} in {:#?}", self.seen));
            let line = String::from_utf8(line).unwrap();
            self.seen.push_back(line.clone());
            if line.contains(wanted) {
                return line;
            }
        }
    }
}

impl Drop for RawLog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Line separators and other characters that terminals interpret, which the guest sends.
fn controls_terminal(letter: char) -> bool {
    letter.is_control()
        || ['\u{200f}', '\u{2028}', '\u{2029}', '\u{202e}', '\u{2066}'].contains(&letter)
}

#[test]
fn guest_messages_cannot_forge_lines_or_control_terminals() {
    for format in ["text", "json"] {
        let folder = temporary_folder();
        let mut server = RawLog::start(format, folder.path());
        let listening = server.wait_for(" listening");
        assert!(listening.contains("admin listening"), "{listening}");
        let public = server.wait_for("listening");
        let address: SocketAddr = public
            .split(['=', '"', ' ', '\n'])
            .find_map(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("{public}"));
        server.wait_for("repository folder read");
        let url = format!("http://{address}/models/misbehave/predict");
        let headers = [("X-API-Key", DEMO_KEY), ("Content-Type", "application/json")];
        for action in ["forge", "panic"] {
            let body = json!({"action": action, "request_id": format!("id-{action}")}).to_string();
            assert_eq!(send("POST", &url, &headers, body.as_bytes()).status, 500);
            // The access log's line comes last.
            while !server.wait_for(&format!("id-{action}")).contains("latency_ms") {}
        }
        let forged = server.seen.iter().filter(|line| line.contains("cleared")).count();
        assert!(forged >= 2, "fewer than two lines of the guest: {:#?}", server.seen);
        for line in &server.seen {
            let line = line.strip_suffix('\n').unwrap();
            assert!(!line.contains(controls_terminal), "{line:?}");
            let begins =
                if format == "json" { line.starts_with('{') } else { line.starts_with("20") };
            assert!(begins, "{line:?}");
        }
    }
}
