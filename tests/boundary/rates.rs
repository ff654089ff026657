use std::fs;
use std::time::{Duration, Instant};

use guesthouse_tests::client::{self, HttpResponse};
use guesthouse_tests::{Server, Setup, Signal, eventually_some};
use serde_json::{Value, json};

/// The toxicity model with these sections in its configuration.
fn setup(top: &str, of_model: &str) -> Setup {
    let setup = Setup::toxicity();
    Setup { config: format!("{of_model}\n{top}"), ..setup }
}

const MODEL: &str = "default_model = \"toxicity\"\n[models.toxicity]\n";

fn ask(server: &Server, key: &str) -> HttpResponse {
    let body = br#"{"text": "You are nice"}"#;
    client::send("POST", &server.url("/predict"), &[("X-API-Key", key)], body)
}

fn make(server: &Server, name: &str, rate: &Value) -> String {
    let body = json!({"name": name, "scopes": ["predict:*"], "rate": rate});
    server.admin("POST", "keys", &body).body["secret"].as_str().unwrap().to_owned()
}

/// The seconds of `Retry-After` in a rate-limited response.
fn retry_after(answer: &HttpResponse) -> u64 {
    assert_eq!((answer.status, answer.error_code()), (429, Some("rate_limited")), "{answer:?}");
    answer.header("retry-after").unwrap().parse().unwrap()
}

/// Sends four requests with a new key that allows a burst of three and one request every two
/// seconds. Returns the key, the rate-limit headers of the first three responses, and the
/// rejection. It repeats until all of them take less than a second, because the headers contain
/// whole seconds.
fn burst(server: &Server) -> (String, Vec<String>, HttpResponse) {
    let mut numbers = 0..;
    eventually_some("four requests within a second", || {
        let name = format!("slow-{}", numbers.next().expect("the range is unbounded"));
        let key = make(server, &name, &json!({"per_second": 0.5, "burst": 3}));
        let began = Instant::now();
        let state = || {
            let answer = ask(server, &key);
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.header("ratelimit-policy"), Some("\"key\";q=3;w=6"));
            assert_eq!(answer.header("retry-after"), None);
            answer.header("ratelimit").unwrap().to_owned()
        };
        let states = (0..3).map(|_| state()).collect();
        let refused = ask(server, &key);
        (began.elapsed() < Duration::from_millis(900)).then_some((key, states, refused))
    })
}

#[test]
fn a_key_is_admitted_again_after_the_announced_time() {
    let server = Server::start(&Setup::toxicity());
    let other = make(&server, "other", &json!({"per_second": 0.001, "burst": 1}));
    let (slow, states, refused) = burst(&server);
    assert_eq!(states, ["\"key\";r=2;t=2", "\"key\";r=1;t=4", "\"key\";r=0;t=2"]);
    let seconds = retry_after(&refused);
    assert!((1..=2).contains(&seconds), "{seconds}");
    assert_eq!(refused.header("ratelimit"), Some(&*format!("\"key\";r=0;t={seconds}")));
    // Neither another key nor one without a limit is affected.
    assert_eq!(ask(&server, &other).status, 200);
    let demo = ask(&server, client::DEMO_KEY);
    assert_eq!((demo.status, demo.header("ratelimit")), (200, None));
    // Rejected before the body is read, which never arrives.
    let head = format!(
        "POST /predict HTTP/1.1\r\nHost: h\r\nX-API-Key: {other}\r\nContent-Length: 9\r\n\
         Expect: 100-continue\r\nConnection: close\r\n\r\n"
    );
    let answer = client::send_raw(server.address(), head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    // No request that is sent after the announced time is rejected.
    let announced = Instant::now() + Duration::from_secs(seconds);
    server.eventually("the key is admitted again", |server| {
        let sent = Instant::now();
        let is_admitted = ask(server, &slow).status == 200;
        assert!(is_admitted || sent < announced, "rejected after {seconds} s");
        is_admitted
    });
}

#[test]
fn keys_share_a_models_limit_and_have_their_own() {
    let model = format!("{MODEL}rate = {{ per_second = 0.01, burst = 3 }}");
    let setup = setup("[rate_limit]\nrequests_per_second = 0.01\nburst = 2", &model);
    let server = Server::start(&setup);
    let (one, two) = (make(&server, "one", &Value::Null), make(&server, "two", &Value::Null));
    let first = ask(&server, &one);
    assert_eq!(
        (first.status, first.header("ratelimit-policy"), first.header("ratelimit")),
        (
            200,
            Some("\"key\";q=2;w=200, \"model\";q=3;w=300"),
            Some("\"key\";r=1;t=100, \"model\";r=2;t=100")
        )
    );
    assert_eq!(ask(&server, &one).status, 200);
    // The key's own limit; the rejection does not count against the model's limit.
    assert!(retry_after(&ask(&server, &one)) > 90);
    assert_eq!(ask(&server, &two).status, 200);
    let refused = ask(&server, &two);
    assert!(retry_after(&refused) > 90);
    assert!(refused.header("ratelimit").unwrap().contains("\"model\";r=0"), "{refused:?}");
    // The catalogue counts against the key's limit only.
    let models =
        |key: &str| client::send("GET", &server.url("/models"), &[("X-API-Key", key)], b"");
    assert!(retry_after(&models(&one)) > 90);
    let three = make(&server, "three", &Value::Null);
    let listed = models(&three);
    assert_eq!(
        (listed.status, listed.header("ratelimit-policy")),
        (200, Some("\"key\";q=2;w=200"))
    );
}

#[test]
fn a_reload_keeps_the_count_of_unchanged_limits() {
    let model = |rate: &str| format!("{MODEL}{rate}\n");
    let top = |burst: u32| format!("[rate_limit]\nrequests_per_second = 0.001\nburst = {burst}\n");
    let server = Server::start(&setup(&top(1), &model("")));
    let key = make(&server, "ann", &Value::Null);
    assert_eq!((ask(&server, &key).status, ask(&server, &key).status), (200, 429));
    let reload = |text: String, message: &str| {
        let before = server.lines().len();
        fs::write(server.config(), text).unwrap();
        server.signal(Signal::HUP);
        server.wait_for_after(before, message, |line| line["message"] == message);
    };
    let (good, bad) =
        ("configuration reloaded", "configuration not reloaded: the last valid one stays");
    reload(model("rate = { per_second = 0.001, burst = 100 }") + &top(1), good);
    assert_eq!(ask(&server, &key).status, 429, "an unchanged limit was reset");
    reload(model("") + &top(2), good);
    assert_eq!((ask(&server, &key).status, ask(&server, &key).status), (200, 200));
    assert_eq!(ask(&server, &key).status, 429);
    reload(model("") + "[rate_limit]\nburst = 1\n", bad);
    // The name of an existing key: the whole file is rejected.
    let taken = format!("[[keys]]\nname = \"ann\"\nsha256 = \"{}\"\n", "0".repeat(64));
    reload(model("") + &taken, bad);
    assert_eq!(ask(&server, &key).status, 429);
    reload(model(""), good);
    let free = ask(&server, &key);
    assert_eq!((free.status, free.header("ratelimit")), (200, None));
}
