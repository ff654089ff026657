use std::collections::BTreeSet;

use guesthouse_tests::client::send;
use guesthouse_tests::{Server, Setup};
use serde_json::json;

#[test]
fn the_curl_command_of_the_readme_works() {
    let server = Server::start(&Setup::toxicity());
    let headers = [("Content-Type", "application/json"), ("X-API-Key", "local-demo-key")];
    let url = server.url("/v1/predict");
    let answer = send("POST", &url, &headers, br#"{"text":"You are nice"}"#);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.body["label"], "clean");
    assert_eq!(answer.body["model"], "toxicity");
    assert_eq!(answer.body["model_version"], "1.0.0");
    assert!(answer.body["score"].as_f64().unwrap() < 0.04);
    assert_eq!(answer.header("x-model-version"), Some("1.0.0"));
}

#[test]
fn versions_are_selected_by_major_range_and_number() {
    let server = Server::start(&Setup::toxicity());
    // Its score is 0.59, between the thresholds of the two versions.
    let body = json!({"text": "Most of this page is boring nonsense"});
    for (path, version, label, reason) in [
        ("/v1/predict", "1.0.0", "toxic", "range"),
        ("/v2/predict", "2.0.0", "clean", "range"),
        ("/models/toxicity/versions/1.0.0/predict", "1.0.0", "toxic", "pin"),
        ("/models/toxicity/versions/=2.0.0/predict", "2.0.0", "clean", "pin"),
        ("/models/toxicity/versions/%5E1.0/predict", "1.0.0", "toxic", "range"),
        ("/models/toxicity/versions/~2.0/predict", "2.0.0", "clean", "range"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(answer.body["model_version"], version, "{path}");
        assert_eq!(answer.body["label"], label, "{path}");
        assert_eq!(answer.header("x-route-reason"), Some(reason), "{path}");
    }
    let batch = json!({"texts": ["You are nice", "You are an idiot"]});
    for path in [
        "/v1/batch_predict",
        "/v2/batch_predict",
        "/batch_predict",
        "/models/toxicity/batch_predict",
        "/models/toxicity/versions/1.0.0/batch_predict",
    ] {
        let answer = server.post(path, &batch);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(answer.body["results"][0]["label"], "clean", "{path}");
        assert_eq!(answer.body["results"][1]["label"], "toxic", "{path}");
    }
}

#[test]
fn a_split_of_nine_to_one_is_kept_and_logged() {
    const REQUESTS: u32 = 4000;
    let server = Server::start(&Setup::toxicity());
    let body = json!({"text": "You are nice"});
    let mut second = 0_u32;
    for index in 0..REQUESTS {
        let path = if index % 2 == 0 { "/predict" } else { "/models/toxicity/predict" };
        let answer = server.post(path, &body);
        assert_eq!(answer.header("x-route-reason"), Some("split"));
        second += u32::from(answer.body["model_version"] == "2.0.0");
    }
    // Four standard deviations of a binomial distribution with p = 0.1.
    let (mean, deviation) = (f64::from(REQUESTS) * 0.1, (f64::from(REQUESTS) * 0.09).sqrt());
    assert!((f64::from(second) - mean).abs() <= 4.0 * deviation, "{second} of {REQUESTS}");
    let (status, lines) = server.stop();
    assert!(status.success());
    let counted = |version: &str| {
        let counts = lines.iter().rev().find(|line| {
            line["target"] == "traffic" && line["version"] == version && line["reason"] == "split"
        });
        counts.map(|line| line["requests"].as_u64().unwrap())
    };
    assert_eq!(counted("2.0.0"), Some(u64::from(second)));
    assert_eq!(counted("1.0.0"), Some(u64::from(REQUESTS - second)));
}

#[test]
fn raising_a_weight_moves_no_sticky_caller_back() {
    let keys: Vec<String> = (0..300).map(|index| format!("user-{index}")).collect();
    let versions = |second: u32| {
        let mut setup = Setup::toxicity();
        let (from, to) = ("900_000", (1_000_000 - second).to_string());
        setup.config = setup.config.replace(from, &to).replace("100_000", &second.to_string());
        setup.config.push_str("sticky_header = \"X-User-Id\"\n");
        let server = Server::start(&setup);
        let ask = |key: &String| {
            let body = json!({"text": "You are nice"}).to_string();
            let answer = server.send("POST", "/predict", &[("X-User-Id", key)], body.as_bytes());
            answer.header("x-model-version").unwrap().to_owned()
        };
        let first: Vec<String> = keys.iter().map(ask).collect();
        assert_eq!(first, keys.iter().map(ask).collect::<Vec<_>>());
        first
    };
    let (tenth, third) = (versions(100_000), versions(300_000));
    // The counts come from another implementation of the published rule.
    let count = |all: &[String]| all.iter().filter(|version| *version == "2.0.0").count();
    assert_eq!((count(&tenth), count(&third)), (32, 88));
    assert!(tenth.iter().zip(&third).all(|(before, after)| before == after || after == "2.0.0"));
}

#[test]
fn a_request_id_is_returned_or_generated() {
    let server = Server::start(&Setup::toxicity());
    let text = json!({"text": "You are nice"});
    let body = text.to_string();
    let by_header =
        server.send("POST", "/v1/predict", &[("X-Request-Id", "header-1")], body.as_bytes());
    assert_eq!(by_header.body["request_id"], "header-1");
    assert_eq!(by_header.header("x-request-id"), Some("header-1"));
    let both = json!({"text": "You are nice", "request_id": "body-1"}).to_string();
    for path in ["/v1/predict", "/predict"] {
        let answer = server.send("POST", path, &[("X-Request-Id", "header-1")], both.as_bytes());
        assert_eq!((answer.status, &answer.body["request_id"]), (200, &json!("body-1")));
        assert_eq!(answer.header("x-request-id"), Some("body-1"));
    }
    let rejected = server.post("/v1/predict", &json!({"text": "", "request_id": "body-2"}));
    assert_eq!((rejected.status, &rejected.body["request_id"]), (422, &json!("body-2")));
    let batch = server.post("/v1/batch_predict", &json!({"texts": ["a"], "request_id": "body-3"}));
    assert_eq!((batch.status, &batch.body["request_id"]), (200, &json!("body-3")));
    let made: BTreeSet<_> = (0..100)
        .map(|_| server.post("/v1/predict", &text).body["request_id"].to_string())
        .collect();
    assert_eq!(made.len(), 100);
    // An id that could break a header or a log line is replaced.
    let answer =
        server.send("POST", "/v1/predict", &[("X-Request-Id", "with space")], body.as_bytes());
    assert_ne!(answer.body["request_id"], "with space");
}

#[test]
fn white_space_around_a_text_is_ignored() {
    let server = Server::start(&Setup::toxicity());
    let bare = server.post("/v1/predict", &json!({"text": "You are nice"}));
    for padded in ["  You are nice\n", "\u{3000}You are nice\u{a0}\t"] {
        let answer = server.post("/v1/predict", &json!({ "text": padded }));
        assert_eq!(answer.body["score"], bare.body["score"], "{padded:?}");
    }
    // 2000 characters of four bytes each, after white space is stripped.
    let longest = format!("   {}   ", "😀".repeat(2000));
    assert_eq!(server.post("/v1/predict", &json!({ "text": longest })).status, 200);
    let too_long = "😀".repeat(2001);
    assert_eq!(server.post("/v1/predict", &json!({ "text": too_long })).status, 422);
}

#[test]
fn health_needs_no_key_and_the_catalogue_does() {
    let server = Server::start(&Setup::toxicity());
    assert_eq!(server.get("/healthz").status, 200);
    let ready = server.get("/readyz");
    // Model names need a key, so this response contains none.
    assert_eq!((ready.status, &ready.body), (200, &json!({"status": "ready"})));
    assert_eq!(server.get("/models").status, 401);
    let models = server.send("GET", "/models", &[], b"");
    assert_eq!(models.body["models"][0]["model"], "toxicity");
    assert_eq!(models.body["models"][0]["versions"][1]["version"], "2.0.0");
    let model = server.send("GET", "/models/toxicity", &[], b"");
    assert_eq!(model.body["versions"][0]["state"], "ready");
    let version = server.send("GET", "/models/toxicity/versions/1", &[], b"");
    assert_eq!(version.body["version"], "1.0.0");
    assert_eq!(version.body["signature"]["inputs"][0]["name"], "text");
    assert_eq!(server.send("GET", "/models/absent", &[], b"").status, 404);
}
