use std::fs;
use std::time::{Duration, Instant};

use guesthouse_tests::client::{self, Answer};
use guesthouse_tests::{Server, Setup, Signal};
use serde_json::{Value, json};

/// The toxicity model, with more in its configuration.
fn setup(top: &str, of_model: &str) -> Setup {
    let setup = Setup::toxicity();
    Setup { config: format!("{of_model}\n{top}"), ..setup }
}

const MODEL: &str = "default_model = \"toxicity\"\n[models.toxicity]\n";

fn ask(server: &Server, key: &str) -> Answer {
    let body = br#"{"text": "You are nice"}"#;
    client::send("POST", &server.url("/predict"), &[("X-API-Key", key)], body)
}

fn make(server: &Server, name: &str, rate: &Value) -> String {
    let body = json!({"name": name, "scopes": ["predict:*"], "rate": rate});
    server.admin("POST", "keys", &body).body["secret"].as_str().unwrap().to_owned()
}

/// The seconds after which a refused caller is to come back.
fn retry_after(answer: &Answer) -> u64 {
    assert_eq!((answer.status, answer.error_code()), (429, Some("rate_limited")), "{answer:?}");
    answer.header("retry-after").unwrap().parse().unwrap()
}

/// Four requests by a new key that may make three at once and one every two seconds: the key, what was
/// said of its limit with the three, and the refusal. All of them within a second, because the times that
/// are told are of whole ones.
fn burst(server: &Server) -> (String, Vec<String>, Answer) {
    let deadline = Instant::now() + Duration::from_secs(300);
    for number in 0.. {
        let rate = json!({"per_second": 0.5, "burst": 3});
        let key = make(server, &format!("slow-{number}"), &rate);
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
        if began.elapsed() < Duration::from_millis(900) {
            return (key, states, refused);
        }
        assert!(Instant::now() < deadline, "the machine takes too long for four requests");
    }
    unreachable!("there are numbers enough")
}

#[test]
fn a_burst_is_answered_then_nothing_until_the_time_that_is_told() {
    let server = Server::start(&Setup::toxicity());
    let other = make(&server, "other", &json!({"per_second": 0.001, "burst": 1}));
    let (slow, states, refused) = burst(&server);
    assert_eq!(states, ["\"key\";r=2;t=2", "\"key\";r=1;t=4", "\"key\";r=0;t=2"]);
    let seconds = retry_after(&refused);
    assert!((1..=2).contains(&seconds), "{seconds}");
    assert_eq!(refused.header("ratelimit"), Some(&*format!("\"key\";r=0;t={seconds}")));
    // Another key has not been held up, and neither has one without a limit.
    assert_eq!(ask(&server, &other).status, 200);
    let demo = ask(&server, client::DEMO_KEY);
    assert_eq!((demo.status, demo.header("ratelimit")), (200, None));
    // Refused before its body is read: it need not come at all.
    let head = format!(
        "POST /predict HTTP/1.1\r\nHost: h\r\nX-API-Key: {other}\r\nContent-Length: 9\r\n\
         Expect: 100-continue\r\nConnection: close\r\n\r\n"
    );
    let answer = client::send_raw(server.address(), head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    let until = Instant::now() + Duration::from_secs(seconds);
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
    assert_eq!(ask(&server, &slow).status, 200, "after {seconds} s");
}

#[test]
fn all_keys_share_the_limit_of_a_model_and_default_to_one_of_their_own() {
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
    // The key's own limit, which takes nothing from the model's.
    assert!(retry_after(&ask(&server, &one)) > 90);
    assert_eq!(ask(&server, &two).status, 200);
    let refused = ask(&server, &two);
    assert!(retry_after(&refused) > 90);
    assert!(refused.header("ratelimit").unwrap().contains("\"model\";r=0"), "{refused:?}");
    // The catalogue has the key's, and not the model's.
    let models =
        |key: &str| client::send("GET", &server.url("/models"), &[("X-API-Key", key)], b"");
    assert!(retry_after(&models(&one)) > 90);
    let three = make(&server, "three", &Value::Null);
    let told = models(&three);
    assert_eq!((told.status, told.header("ratelimit-policy")), (200, Some("\"key\";q=2;w=200")));
}

#[test]
fn a_limit_that_is_changed_holds_and_one_that_is_not_keeps_count() {
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
        ("configuration reloaded", "configuration not reloaded: the last good one holds");
    reload(model("rate = { per_second = 0.001, burst = 100 }") + &top(1), good);
    assert_eq!(ask(&server, &key).status, 429, "the same limit, and as much left of it");
    reload(model("") + &top(2), good);
    assert_eq!((ask(&server, &key).status, ask(&server, &key).status), (200, 200));
    assert_eq!(ask(&server, &key).status, 429);
    reload(model("") + "[rate_limit]\nburst = 1\n", bad);
    // A name that an operator's key has: nothing of the file holds.
    let taken = format!("[[keys]]\nname = \"ann\"\nsha256 = \"{}\"\n", "0".repeat(64));
    reload(model("") + &taken, bad);
    assert_eq!(ask(&server, &key).status, 429);
    reload(model(""), good);
    let free = ask(&server, &key);
    assert_eq!((free.status, free.header("ratelimit")), (200, None));
}
