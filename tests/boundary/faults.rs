use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::{HttpResponse, Server, Setup};
use serde_json::json;

/// A time limit that no fault reaches, in milliseconds.
const LONG_LIMIT: u32 = 20_000;

/// A short time limit, for guests that never return.
const SHORT_LIMIT: u32 = 500;

fn server(predict_milliseconds: u32) -> (Server, tempfile::TempDir) {
    let folder = temporary_folder();
    (Server::start(&Setup::misbehave(folder.path(), predict_milliseconds)), folder)
}

/// A server on which only the misbehaving model has a short time limit.
fn server_with_short_limit(limits: &str) -> (Server, tempfile::TempDir) {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), LONG_LIMIT);
    let own = format!("[models.misbehave]\npredict_milliseconds = {SHORT_LIMIT}\n");
    setup.config.push_str(&(limits.to_owned() + &own));
    (Server::start(&setup), folder)
}

/// Requests that should succeed have the long time limit.
fn ask(server: &Server, action: &str) -> HttpResponse {
    let body = json!({ "action": action }).to_string();
    let ample = LONG_LIMIT.to_string();
    let time = [("X-Request-Timeout-Ms", ample.as_str())];
    let time = if action == "echo" { &time[..] } else { &[] };
    server.send("POST", "/models/misbehave/predict", time, body.as_bytes())
}

/// Asserts that a fault fails its own request, and that the next requests of the same and of
/// another model succeed.
fn assert_fails_one_request(server: &Server, action: &str, status: u16, code: &str, kind: &str) {
    let answer = ask(server, action);
    assert_eq!((answer.status, answer.error_code()), (status, Some(code)), "{action}: {answer:?}");
    let line = server.wait_for(kind, |line| line["target"] == "fault" && line["kind"] == kind);
    assert_eq!(line["model"], "misbehave");
    let after = ask(server, "echo");
    assert_eq!((after.status, &after.body["done"]), (200, &json!("echo")), "after {action}");
    server.assert_healthy();
}

#[test]
fn a_faulting_guest_fails_one_request() {
    let (server, _folder) = server(LONG_LIMIT);
    for (action, kind) in [
        ("panic", "trap"),
        ("recurse", "trap"),
        ("fail", "failed"),
        ("allocate", "out_of_memory"),
        ("wrong-name", "bad_output"),
        ("wrong-type", "bad_output"),
        ("wrong-rows", "bad_output"),
        ("wrong-length", "bad_output"),
        ("no-output", "bad_output"),
        ("not-a-number", "bad_output"),
        ("reject-row-99", "bad_output"),
        ("huge-output", "trap"),
        ("exit", "trap"),
        ("sleep", "trap"),
    ] {
        assert_fails_one_request(&server, action, 500, "model_failure", kind);
    }
}

#[test]
fn a_healthy_version_is_unaffected_by_faults_of_another() {
    /// Stops the load however the test ends.
    struct StopLoad<'a>(&'a AtomicBool);
    impl Drop for StopLoad<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (server, _folder) = server_with_short_limit("");
    let (server, over) = (&server, &AtomicBool::new(false));
    let ways = [
        "reject",
        "fail",
        "panic",
        "spin",
        "spin-memory",
        "spin-host-call",
        "grow",
        "count",
        "allocate",
        "recurse",
        "flood-log",
        "sleep",
        "print",
        "exit",
        "read-file",
        "connect",
        "wrong-name",
        "wrong-type",
        "wrong-rows",
        "wrong-length",
        "not-a-number",
        "no-output",
        "huge-output",
        "no such action",
    ];
    std::thread::scope(|scope| {
        let load = move || {
            let mut answers = 0;
            while !over.load(Ordering::Relaxed) {
                server.assert_healthy();
                answers += 1;
            }
            answers
        };
        let load = [scope.spawn(load), scope.spawn(load)];
        let end = StopLoad(over);
        for way in ways.iter().cycle().take(2 * ways.len()) {
            ask(server, way);
            assert_eq!(ask(server, "echo").status, 200, "after {way}");
        }
        drop(end);
        let answers: usize = load.map(|load| load.join().unwrap()).iter().sum();
        assert!(answers > 4 * ways.len(), "only {answers} requests succeeded");
    });
}

#[test]
fn faults_are_counted_by_kind_and_version() {
    let (server, _folder) = server(LONG_LIMIT);
    for (action, times) in [("panic", 3), ("recurse", 2), ("wrong-rows", 1), ("echo", 4)] {
        (0..times).for_each(|_| drop(ask(&server, action)));
    }
    let metrics = server.metrics();
    for line in [
        "# TYPE guesthouse_faults_total counter",
        r#"guesthouse_faults_total{model="misbehave",version="1.0.0",kind="trap",trap="unreachable"} 3"#,
        r#"guesthouse_faults_total{model="misbehave",version="1.0.0",kind="trap",trap="stack_overflow"} 2"#,
        r#"guesthouse_faults_total{model="misbehave",version="1.0.0",kind="bad_output",trap=""} 1"#,
        r#"guesthouse_version_suspended{model="misbehave",version="1.0.0"} 0"#,
        r#"guesthouse_version_snapshot{model="toxicity",version="1.0.0"} 1"#,
    ] {
        assert!(metrics.lines().any(|is| is == line), "{line} is not in\n{metrics}");
    }
    for start in [
        r#"guesthouse_preinit_step_seconds{model="misbehave",version="1.0.0",step="init"} "#,
        r#"guesthouse_preinit_peak_memory_bytes{model="misbehave",version="1.0.0"} "#,
        r#"guesthouse_instances{model="misbehave",version="1.0.0",state="idle"} "#,
        r#"guesthouse_instances_made_total{model="misbehave",version="1.0.0"} "#,
    ] {
        assert!(metrics.lines().any(|is| is.starts_with(start)), "{start} is not in\n{metrics}");
    }
    assert!(!metrics.contains(r#"model="toxicity",version="1.0.0",kind="#), "{metrics}");
}

#[test]
fn a_spinning_guest_is_interrupted_while_others_are_served() {
    let (server, _folder) = server_with_short_limit("");
    let server = &server;
    std::thread::scope(|scope| {
        let spinning = scope.spawn(move || {
            let started = Instant::now();
            let answer = ask(server, "spin");
            (answer, started.elapsed())
        });
        while !spinning.is_finished() {
            server.assert_healthy();
        }
        let (answer, took) = spinning.join().unwrap();
        let error = (answer.status, answer.error_code());
        assert_eq!(error, (504, Some("deadline_exceeded")), "{answer:?}");
        assert!(took >= Duration::from_millis(500), "interrupted before its deadline: {took:?}");
    });
    for action in ["spin", "spin-memory", "spin-host-call"] {
        assert_fails_one_request(server, action, 504, "deadline_exceeded", "deadline");
    }
}

#[test]
fn more_spinning_requests_than_threads_all_time_out() {
    let (server, _folder) = server_with_short_limit("");
    let server = &server;
    std::thread::scope(|scope| {
        let spinning: Vec<_> = (0..16).map(|_| scope.spawn(move || ask(server, "spin"))).collect();
        for answer in spinning.into_iter().map(|thread| thread.join().unwrap()) {
            let error = (answer.status, answer.error_code());
            assert_eq!(error, (504, Some("deadline_exceeded")), "{answer:?}");
        }
    });
    assert_eq!(ask(server, "echo").status, 200);
    server.assert_healthy();
}

#[test]
fn a_full_queue_rejects_with_503() {
    let (server, _folder) = server_with_short_limit("inference_threads = 1\nqueued_batches = 1\n");
    let server = &server;
    let answers: Vec<HttpResponse> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..16).map(|_| scope.spawn(move || ask(server, "spin"))).collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let overloaded: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
    assert!(overloaded.len() >= 16 - 4, "one request runs and one is queued: {answers:?}");
    for answer in overloaded {
        assert_eq!(answer.error_code(), Some("overloaded"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    server.wait_until_healthy();
}

#[test]
fn rejected_rows_get_422_with_their_indices() {
    let (server, _folder) = server(LONG_LIMIT);
    let mut actions = vec!["echo"; 20];
    // The guest takes 8 rows per call: row 17 is row 1 of the third call.
    actions[17] = "reject";
    let answer = server.post("/models/misbehave/batch_predict", &json!({ "actions": actions }));
    assert_eq!((answer.status, answer.error_code()), (422, Some("unacceptable_input")));
    assert_eq!(answer.body["details"][0]["row"], 17);
    assert_eq!(answer.body["details"][0]["field"], "action");
    assert!(answer.body["message"].as_str().unwrap().contains("row 17"), "{answer:?}");
}

#[test]
fn the_sandbox_has_no_files_network_environment_or_clock() {
    let (server, _folder) = server(LONG_LIMIT);
    for (action, wanted) in [
        ("read-file", "Err("),
        ("list-folder", "Err("),
        ("connect", "Err("),
        ("environment", "Ok([])"),
        ("clock", "tv_sec: 0"),
    ] {
        let answer = ask(&server, action);
        assert_eq!((answer.status, answer.error_code()), (500, Some("model_failure")));
        // What the guest observed is in the log, not in the response.
        let line = server.wait_for(action, |line| {
            let message = line["message"].as_str().unwrap_or_default();
            line["target"] == "fault" && message.contains(wanted)
        });
        assert_eq!(line["kind"], "failed", "{action}");
    }
    // Standard output is discarded.
    assert_eq!(ask(&server, "print").status, 200);
}

#[test]
fn excess_log_lines_of_a_guest_are_dropped_and_counted() {
    let (server, _folder) = server(LONG_LIMIT);
    let answer = ask(&server, "flood-log");
    assert!(matches!(answer.status, 200 | 504), "{answer:?}");
    let dropped = server.wait_for("the number of dropped lines", |line| {
        line["message"].as_str().is_some_and(|message| message.contains("over the log budget"))
    });
    assert!(dropped["lines"].as_u64().unwrap() > 1000, "{dropped}");
    let floods = server
        .lines()
        .iter()
        .filter(|line| line["message"].as_str().is_some_and(|message| message.starts_with("flood")))
        .count();
    assert!(floods <= 8, "{floods} lines were logged");
    server.assert_healthy();
}
