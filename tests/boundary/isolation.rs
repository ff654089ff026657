use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::{DEMO_KEY, HttpResponse, Server, Setup};
use serde_json::json;

/// A time limit that nothing here reaches, in milliseconds.
const LONG_LIMIT: u32 = 20_000;

fn server(predict_milliseconds: u32, more: &str) -> (Server, tempfile::TempDir) {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), predict_milliseconds);
    setup.config.push_str(more);
    (Server::start(&setup), folder)
}

fn ask(server: &Server, action: &str) -> HttpResponse {
    server.post("/models/misbehave/predict", &json!({ "action": action }))
}

fn count(server: &Server) -> u32 {
    let answer = ask(server, "count");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["done"].as_str().unwrap().parse().unwrap()
}

#[test]
fn fresh_instances_have_no_state_and_reused_ones_do() {
    let (server, _folder) = server(LONG_LIMIT, "[models.misbehave]\nisolation = \"fresh\"\n");
    assert!((0..50).all(|_| count(&server) == 1));
    let (server, _folder) = self::server(LONG_LIMIT, "threads_per_version = 1\n");
    // The golden example ran in the same instance but did not count.
    let counts: Vec<_> = (0..50).map(|_| count(&server)).collect();
    assert_eq!(counts, (1..=50).collect::<Vec<_>>());
}

#[test]
fn a_reused_instance_is_replaced_at_its_limits() {
    let few = "threads_per_version = 1\n[models.misbehave]\n\
               isolation = { reuse = { max_batches = 5 } }\n";
    let (server, _folder) = server(LONG_LIMIT, few);
    let counts: Vec<_> = (0..20).map(|_| count(&server)).collect();
    assert!(counts.iter().all(|count| *count <= 5), "{counts:?}");
    assert!(counts.iter().filter(|count| **count == 1).count() >= 4, "{counts:?}");
    // The limit is 256 MiB: 1000 calls that leak 1 MiB each succeed only if instances are replaced.
    let growing = "[models.misbehave]\nisolation = { reuse = { max_memory_growth_mib = 16 } }\n";
    let (server, _folder) = self::server(LONG_LIMIT, growing);
    assert!((0..1000).all(|_| ask(&server, "grow").status == 200));
}

#[test]
fn a_version_never_exceeds_its_reserved_instances() {
    // The limit leaves room for these two versions and not one instance more. One of the two
    // misbehaving instances is busy while the other traps and is replaced again and again. The
    // healthy version makes a new instance for every request and must find room for both of its
    // callers.
    let config = "threads_per_version = 2\ninference_threads = 8\ninstances = 4\n\
                  [models.toxicity]\nisolation = \"fresh\"\n";
    let (server, _folder) = server(LONG_LIMIT, config);
    let server = &server;
    let spin = json!({"action": "spin"}).to_string();
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let time = [("X-Request-Timeout-Ms", "3000")];
            server.send("POST", "/models/misbehave/predict", &time, spin.as_bytes());
            over.store(true, Ordering::Relaxed);
        });
        let healthy = move || {
            while !over.load(Ordering::Relaxed) {
                server.assert_healthy();
            }
        };
        scope.spawn(healthy);
        scope.spawn(healthy);
        while !over.load(Ordering::Relaxed) {
            assert_eq!(ask(server, "panic").error_code(), Some("model_failure"));
            assert_eq!(ask(server, "echo").status, 200);
        }
    });
}

#[test]
fn the_limits_of_a_model_apply_to_it_alone() {
    // Enough stack for a call of the guest, and a hundredth of what this recursion needs to fill 4
    // MiB.
    let small = "[models.misbehave]\nstack_kib = 64\ninstances = 1\naccept_non_finite = true\n";
    let (server, _folder) = server(LONG_LIMIT, small);
    let answer = ask(&server, "not-a-number");
    assert_eq!((answer.status, &answer.body["score"]), (200, &json!(null)), "{answer:?}");
    assert_eq!(ask(&server, "recurse").error_code(), Some("model_failure"));
    let line = server.wait_for("the trap", |line| line["kind"] == "trap");
    assert_eq!(line["trap"], "stack_overflow");
    // The instance that trapped is replaced after its caller has the response.
    server.wait_for_metric(r#"model="misbehave",version="1.0.0",state="idle"} 1"#);
    server.assert_healthy();
    // With one instance, the second request waits for the first.
    let server = &server;
    std::thread::scope(|scope| {
        let spinning = scope.spawn(move || {
            let short = [("X-Request-Timeout-Ms", "5000")];
            let body = json!({"action": "spin"}).to_string();
            server.send("POST", "/models/misbehave/predict", &short, body.as_bytes())
        });
        server.wait_for_metric(r#"model="misbehave",version="1.0.0",state="busy"} 1"#);
        let waiting = scope.spawn(move || ask(server, "echo"));
        while !waiting.is_finished() {
            let metrics = server.metrics();
            assert!(!metrics.contains(r#"model="misbehave",version="1.0.0",state="busy"} 2"#));
        }
        assert_eq!(waiting.join().unwrap().status, 200);
        assert_eq!(spinning.join().unwrap().status, 504);
    });
}

#[test]
fn all_instances_give_bit_identical_results() {
    let bodies = |server: &Server| {
        let texts = ["You are nice", "what a load of rubbish", "idiot", "Beyoncé 見学"];
        let answers = texts.map(|text| server.post("/v1/predict", &json!({ "text": text })));
        answers.map(|answer| answer.body["score"].to_string())
    };
    let mut setup = Setup::toxicity();
    let reused = Server::start(&setup);
    let wanted = bodies(&reused);
    assert!((0..20).all(|_| bodies(&reused) == wanted));
    setup.config.push_str("isolation = \"fresh\"\n");
    let fresh = Server::start(&setup);
    assert!((0..20).all(|_| bodies(&fresh) == wanted));
}

#[test]
fn without_address_space_for_a_pool_instances_still_work() {
    // 40 GiB: a fraction of what the pool reserves, and plenty for everything else.
    let mut setup = Setup { address_space_kib: Some(40 << 20), ..Setup::toxicity() };
    setup.config.push_str("isolation = \"fresh\"\n");
    let server = Server::start(&setup);
    let warning = server.wait_for("the warning", |line| {
        line["message"].as_str().is_some_and(|message| message.starts_with("no pool of instances"))
    });
    assert_eq!(warning["level"], "WARN");
    (0..20).for_each(|_| server.assert_healthy());
}

#[test]
fn a_request_timeout_is_capped_by_the_servers_limit() {
    let body = json!({"action": "spin-memory"}).to_string();
    let path = "/models/misbehave/predict";
    let ask = |server: &Server, milliseconds: &str| {
        let started = Instant::now();
        let headers = [("X-Request-Timeout-Ms", milliseconds)];
        (server.send("POST", path, &headers, body.as_bytes()), started.elapsed())
    };
    // The limits of model and server are beyond `DEADLINE`, so the response shows that the request's
    // own timeout applies.
    let (patient, _folder) = server(600_000, "predict_milliseconds_at_most = 600000\n");
    let (answer, took) = ask(&patient, "100");
    assert_eq!((answer.status, answer.error_code()), (504, Some("deadline_exceeded")));
    assert!(took >= Duration::from_millis(100), "{took:?}");
    for bad in ["0", "-1", "1.5", "soon", ""] {
        let (answer, _) = ask(&patient, bad);
        assert_eq!((answer.status, answer.error_code()), (400, Some("malformed_request")), "{bad}");
    }
    // Here the request's timeout and the model's limit are, so the server's limit applies.
    let (capping, _folder) = server(600_000, "predict_milliseconds_at_most = 2000\n");
    let (answer, took) = ask(&capping, "600000");
    assert_eq!(answer.status, 504);
    assert!(took >= Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_disconnect_frees_the_guest_and_is_logged() {
    // One thread, and a time limit far beyond `DEADLINE`.
    let config = "inference_threads = 1\nthreads_per_version = 1\n\
                  predict_milliseconds_at_most = 600000\n";
    let (server, _folder) = server(600_000, config);
    let body = json!({"action": "spin"}).to_string();
    let mut stream = TcpStream::connect(server.address()).unwrap();
    write!(
        stream,
        "POST /models/misbehave/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {DEMO_KEY}\r\n\
         X-Request-Id: gone-1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    // The only thread is busy once another request has to wait for it.
    let path = "/models/misbehave/predict";
    let echo = json!({"action": "echo"}).to_string();
    let soon = [("X-Request-Timeout-Ms", "200")];
    while server.send("POST", path, &soon, echo.as_bytes()).status != 504 {}
    drop(stream);
    assert_eq!(ask(&server, "echo").status, 200);
    server.wait_for("the cancellation", |line| line["kind"] == "cancelled");
    let line = server
        .wait_for("gone-1", |line| line["target"] == "request" && line["request_id"] == "gone-1");
    assert_eq!(line["status"], 499);
    assert_eq!(line["route"], "/models/{model}/predict");
}

#[test]
fn an_endless_version_leaves_threads_to_others() {
    let (server, _folder) = server(3000, "");
    let server = &server;
    std::thread::scope(|scope| {
        let spinning: Vec<_> = (0..32).map(|_| scope.spawn(move || ask(server, "spin"))).collect();
        while spinning.iter().any(|asking| !asking.is_finished()) {
            server.assert_healthy();
        }
    });
}

#[test]
fn a_failing_version_is_suspended_for_the_key_and_probed() {
    // Several callers fail, with another input each time.
    let sticky = "[models.misbehave]\nsticky_header = \"X-User-Id\"\n";
    let (server, _folder) = server(LONG_LIMIT, sticky);
    let ask_as = |user: &str, action: &str| {
        let body = json!({ "action": action }).to_string();
        let headers = [("X-User-Id", user)];
        server.send("POST", "/models/misbehave/predict", &headers, body.as_bytes()).status
    };
    let users = ["one", "two", "three", "four"];
    for turn in 0..10 {
        users.iter().for_each(|user| _ = ask_as(user, &format!("unknown {turn}")));
    }
    let line = server
        .wait_for("the log line", |line| line["message"] == "version suspended for an API key");
    assert_eq!((&line["model"], &line["level"]), (&json!("misbehave"), &json!("WARN")));
    assert_eq!(ask_as("one", "echo"), 429);
    let model = server.send("GET", "/models/misbehave", &[], b"");
    assert_eq!(model.body["versions"][0]["suspended"], false, "suspended for all keys");
    server.assert_healthy();
    server.eventually("the key is admitted again", |server| ask(server, "echo").status == 200);
    assert!((0..20).all(|_| ask(&server, "echo").status == 200));
}
