use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use guesthouse_tests::artifacts::{growing, temporary_folder};
use guesthouse_tests::client::{self, DEMO_ADMIN_KEY, HttpResponse};
use guesthouse_tests::grpc::{ModelReadyRequest, ModelStatisticsRequest, RepositoryIndexRequest};
use guesthouse_tests::{DEMO_KEY, Server, Setup};
use prost::Message as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::grpc::{
    assert_refused, channel, client as grpc_client, keyed, nice, texts, with, with_key,
};
use crate::grpc_limits::Caller;

/// All endpoints that describe models; those with an entity tag come first.
const PATHS: [&str; 9] = [
    "/models",
    "/openapi.json",
    "/models/one",
    "/models/one/openapi.json",
    "/models/one/versions/1.0.0/schema",
    "/models/one/versions/1.0.0/proto",
    "/models/one/resolve",
    "/v2/models/stats",
    "/v2/models/one/stats",
];

/// How many of them have an entity tag.
const NAMED: usize = 6;

fn setup(names: &[&str]) -> (Setup, TempDir) {
    let folder = temporary_folder();
    let artifacts = names.iter().map(|name| growing(name, "1.0.0", 1, folder.path())).collect();
    (Setup { artifacts, ..Setup::default() }, folder)
}

fn get(server: &Server, path: &str, key: &str, headers: &[(&str, &str)]) -> HttpResponse {
    ask(&server.url(path), key, headers)
}

/// Gets a page without decompressing it; a body that is not JSON becomes null.
fn ask(url: &str, key: &str, headers: &[(&str, &str)]) -> HttpResponse {
    let client = client::http().no_gzip().no_zstd().build().unwrap();
    let mut request = client.get(url).header("X-API-Key", key);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().unwrap();
    let header = |(name, value): (&_, &reqwest::header::HeaderValue)| {
        let name: &reqwest::header::HeaderName = name;
        (name.to_string(), value.to_str().unwrap().to_owned())
    };
    let (status, headers) = (response.status().as_u16(), response.headers().iter().map(header));
    let headers = headers.collect();
    let body = serde_json::from_slice(&response.bytes().unwrap()).unwrap_or_default();
    HttpResponse { status, headers, body }
}

fn make_key(server: &Server, name: &str, scopes: &[&str], rate: &Value) -> String {
    let body = json!({"name": name, "scopes": scopes, "rate": rate});
    let answer = server.admin("POST", "keys", &body);
    answer.body["secret"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

#[test]
fn an_unchanged_page_gets_304() {
    let (setup, _folder) = setup(&["one"]);
    let server = Server::start(&setup);
    for path in &PATHS[..NAMED] {
        let answer = get(&server, path, DEMO_KEY, &[("Accept-Encoding", "identity")]);
        let tag = answer.header("etag").unwrap_or_else(|| panic!("{path}")).to_owned();
        assert!(tag.starts_with('"'), "a strong name: {tag}");
        assert_eq!(answer.header("cache-control"), Some("private, no-cache"), "{path}");
        let named = [("If-None-Match", &*tag), ("Accept-Encoding", "identity")];
        let again = get(&server, path, DEMO_KEY, &named);
        assert_eq!((again.status, again.header("etag")), (304, Some(&*tag)), "{path}");
        // Another encoding has another entity tag, unless the page is too small to be compressed.
        let packed = get(&server, path, DEMO_KEY, &[("Accept-Encoding", "gzip"), named[0]]);
        assert!(packed.status == 304 || packed.header("etag") != Some(&*tag), "{path}");
        // Without a valid key, a client does not learn whether the page has changed.
        assert_eq!(get(&server, path, "other", &named).status, 401, "{path}");
    }
    let before = get(&server, "/models", DEMO_KEY, &[]);
    let tag = before.header("etag").unwrap();
    let folder = temporary_folder();
    server.deploy(&growing("two", "1.0.0", 1, folder.path()));
    let after = get(&server, "/models", DEMO_KEY, &[("If-None-Match", tag)]);
    assert_eq!((after.status, after.body["models"].as_array().unwrap().len()), (200, 2));
}

#[test]
fn an_acknowledged_change_is_in_every_later_page() {
    let (setup, folder) = setup(&["one", "two"]);
    let server = Server::start(&setup);
    let two = folder.path().join("two-1.0.0.wasm");
    let second = growing("one", "1.1.0", 1, folder.path());
    server.deploy(&second);
    let read = || {
        // Cached pages would show if they were older than the change.
        let models = get(&server, "/models", DEMO_KEY, &[]).body;
        let one = get(&server, "/models/one", DEMO_KEY, &[]).body;
        assert_eq!(models["models"][0], one);
        let document = get(&server, "/openapi.json", DEMO_KEY, &[]).body;
        let index = index(&server, DEMO_ADMIN_KEY).body;
        let statistics = get(&server, "/v2/models/stats", DEMO_KEY, &[]).body;
        (one, document, index, statistics)
    };
    for _ in 0..3 {
        for (change, version) in [("promote", "1.1.0"), ("rollback", "1.0.0")] {
            let body = match change {
                "promote" => json!({"version": version}),
                _ => json!({}),
            };
            let answer = server.admin("POST", &format!("models/one/{change}"), &body);
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(read().0["stable"], version);
        }
        let path = "/models/two/predict";
        let (_, document, index, statistics) = read();
        assert!(document["paths"][path].is_object());
        assert!(index.to_string().contains("\"two\""));
        assert!(statistics.to_string().contains("\"two\""));
        let gone = server.admin("DELETE", "models/two/versions/1.0.0", &Value::Null);
        assert_eq!(gone.status, 200, "{gone:?}");
        let (_, document, _, statistics) = read();
        assert!(document["paths"][path].is_null());
        assert!(!statistics.to_string().contains("\"two\""));
        let deployed = server.deploy(&two);
        assert_eq!(deployed["state"], "done", "{deployed}");
    }
}

fn index(server: &Server, key: &str) -> HttpResponse {
    client::send("POST", &server.url("/v2/repository/index"), &[("X-API-Key", key)], b"")
}

#[test]
fn cached_pages_respect_the_scopes_of_each_key() {
    let (setup, _folder) = setup(&["one", "two", "three"]);
    let server = Server::start(&setup);
    let scopes: [&[&str]; 4] =
        [&["predict:*"], &["predict:one"], &["predict:two", "predict:one"], &["predict:three"]];
    let keys: Vec<_> = scopes
        .iter()
        .enumerate()
        .map(|(number, scopes)| make_key(&server, &format!("k{number}"), scopes, &Value::Null))
        .collect();
    let same = make_key(&server, "same", scopes[2], &Value::Null);
    for _ in 0..3 {
        for (key, scopes) in keys.iter().zip(scopes) {
            for path in ["/models", "/openapi.json", "/v2/models/stats"] {
                let text = get(&server, path, key, &[]).body.to_string();
                for model in ["one", "two", "three"] {
                    let may = scopes.iter().any(|scope| {
                        *scope == "predict:*" || scope.strip_prefix("predict:") == Some(model)
                    });
                    assert_eq!(text.contains(&format!("\"{model}\"")), may, "{path} {model}");
                }
            }
        }
        let other = get(&server, "/models/one", &keys[3], &[]);
        assert_eq!((other.status, other.error_code()), (403, Some("forbidden")));
    }
    // Pages that are equal for two keys have the same entity tag.
    for path in ["/models", "/openapi.json"] {
        let tag = |key: &str| get(&server, path, key, &[]).header("etag").unwrap().to_owned();
        assert_eq!(tag(&same), tag(&keys[2]));
        assert_ne!(tag(&same), tag(&keys[0]));
    }
}

/// A rate that allows one request.
fn single_request_rate() -> Value {
    json!({"per_second": 0.001, "burst": 1})
}

#[test]
fn catalogue_requests_count_against_the_rate_limit() {
    let (setup, _folder) = setup(&["one"]);
    let server = Server::start(&setup);
    let rate = single_request_rate();
    for (number, path) in PATHS.iter().enumerate() {
        let key = make_key(&server, &format!("slow-{number}"), &["predict:one"], &rate);
        let first = get(&server, path, &key, &[]);
        assert_eq!((first.status, first.header("ratelimit-policy").is_some()), (200, true));
        let second = get(&server, path, &key, &[("If-None-Match", "*")]);
        assert_eq!((second.status, second.error_code()), (429, Some("rate_limited")), "{path}");
        assert!(second.header("retry-after").is_some(), "{path}");
    }
    let operator = make_key(&server, "slow-operator", &["admin"], &rate);
    let index = || index(&server, &operator);
    assert_eq!((index().status, index().status), (200, 429));
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_catalogue_calls_count_against_the_rate_limit() {
    let (setup, _folder) = setup(&["one"]);
    let server = Server::start(&setup);
    let rate = single_request_rate();
    let operator = make_key(&server, "slow-operator", &["admin"], &rate);
    let mut client = grpc_client(&server).await;
    let key = make_key(&server, "slow-grpc", &["predict:one"], &rate);
    let ask = || with_key(ModelStatisticsRequest::default(), &key);
    assert_eq!(client.model_statistics(ask()).await.unwrap().into_inner().model_stats.len(), 1);
    let refused = client.model_statistics(ask()).await;
    assert_refused(refused, Code::ResourceExhausted, "rate_limited");
    let index = || with_key(RepositoryIndexRequest::default(), &operator);
    assert_eq!(client.repository_index(index()).await.unwrap().into_inner().models.len(), 1);
    assert_refused(client.repository_index(index()).await, Code::ResourceExhausted, "rate_limited");
}

#[test]
fn concurrent_catalogue_requests_are_all_answered() {
    let names: Vec<_> = (0..12).map(|number| format!("m{number}")).collect();
    let folder = temporary_folder();
    let artifacts: Vec<PathBuf> =
        names.iter().map(|name| growing(name, "1.0.0", 1, folder.path())).collect();
    let server = Server::start_with(&Setup { artifacts, ..Setup::default() }, |repository| {
        // Each of these fails at once and is listed.
        for number in 0..50 {
            let path = repository.join(format!("broken-{number}.wasm"));
            std::fs::write(path, format!("no artifact {number}")).unwrap();
        }
    });
    let server = Arc::new(server);
    let callers: Vec<_> = ["/models", "/openapi.json", "/metrics", "/v2/models/stats", "/docs"]
        .into_iter()
        .flat_map(|path| std::iter::repeat_n(path, 4))
        .map(|path| {
            let server = Arc::clone(&server);
            thread::spawn(move || {
                for _ in 0..20 {
                    let (status, text) = raw(&server, path);
                    assert_eq!(status, 200, "{path}");
                    assert!(path == "/docs" || text.contains("m11"), "{path}");
                }
            })
        })
        .collect();
    for _ in 0..50 {
        let answer = server.post("/models/m3/predict", &json!({"text": "four"}));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    // A scrape includes everything answered before it began.
    let counted = |text: &str| text.contains("model=\"m4\"") && text.contains("code=\"200\"} 1\n");
    assert_eq!(server.post("/models/m4/predict", &json!({"text": "four"})).status, 200);
    let metrics = server.metrics();
    assert!(metrics.lines().any(|line| counted(&format!("{line}\n"))), "{metrics}");
}

fn raw(server: &Server, path: &str) -> (u16, String) {
    let client = client::http().build().unwrap();
    let answer = client.get(server.url(path)).header("X-API-Key", DEMO_KEY).send().unwrap();
    (answer.status().as_u16(), answer.text().unwrap())
}

#[test]
fn metrics_are_on_the_configured_listener_for_its_keys() {
    let (setup, _folder) = setup(&["one"]);
    let scrape = |address, key: &str| {
        let address: std::net::SocketAddr = address;
        ask(&format!("http://{address}/metrics"), key, &[]).status
    };
    let config = "[metrics]\nlistener = \"admin\"\n".to_owned();
    let server =
        Server::start(&Setup { config, artifacts: setup.artifacts.clone(), ..Setup::default() });
    assert_eq!(scrape(server.address(), DEMO_ADMIN_KEY), 404);
    assert_eq!(scrape(server.admin_address(), "other"), 200);
    let document = get(&server, "/openapi.json", DEMO_KEY, &[]).body;
    assert!(document["paths"]["/metrics"].is_null());
    for (listener, at_admin) in [("public", false), ("admin", true)] {
        let config = format!("[metrics]\nlistener = \"{listener}\"\nkey = true\n");
        let artifacts = setup.artifacts.clone();
        let server = Server::start(&Setup { config, artifacts, ..Setup::default() });
        let address = if at_admin { server.admin_address() } else { server.address() };
        let one = make_key(&server, "one", &["predict:one"], &Value::Null);
        for (key, status) in [("other", 401), (&*one, 403), (DEMO_KEY, 200), (DEMO_ADMIN_KEY, 200)]
        {
            assert_eq!(scrape(address, key), status, "{listener} {key}");
        }
    }
}

#[test]
fn a_model_named_stats_has_metadata_and_statistics() {
    let (setup, _folder) = setup(&["stats", "one"]);
    let server = Server::start(&setup);
    let answer = get(&server, "/v2/models/stats", DEMO_KEY, &[]).body;
    assert_eq!((&answer["name"], &answer["versions"]), (&json!("stats"), &json!(["1.0.0"])));
    assert_eq!(answer["inputs"][0]["name"], "text");
    assert_eq!(answer["model_stats"].as_array().unwrap().len(), 2);
    let one = make_key(&server, "one", &["predict:one"], &Value::Null);
    let other = get(&server, "/v2/models/stats", &one, &[]).body;
    assert!(other["name"].is_null());
    assert_eq!(other["model_stats"].as_array().unwrap().len(), 1);
    let own = get(&server, "/v2/models/stats/versions/1.0.0", DEMO_KEY, &[]).body;
    assert_eq!(own["name"], "stats");
    let document = client::http().build().unwrap().get(server.url("/openapi.json"));
    let document = document.header("X-API-Key", DEMO_KEY).send().unwrap().text().unwrap();
    assert_eq!(document.matches("\"/v2/models/stats\":").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_model_is_not_ready() {
    let server = Server::start(&Setup::toxicity());
    let mut client = grpc_client(&server).await;
    for (name, version, ready) in [
        ("toxicity", "", true),
        ("toxicity", "9", false),
        ("nobody", "", false),
        ("nobody", "1", false),
    ] {
        let message = ModelReadyRequest { name: name.to_owned(), version: version.to_owned() };
        let answer = client.model_ready(keyed(message)).await.unwrap().into_inner();
        assert_eq!(answer.ready, ready, "{name} {version}");
    }
    // Without a key, even this is rejected.
    let message = ModelReadyRequest { name: "nobody".to_owned(), version: String::new() };
    assert_refused(client.model_ready(message).await, Code::Unauthenticated, "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_grpc_encoding_lists_the_accepted_ones() {
    let server = Server::start(&Setup::toxicity());
    let mut client = grpc_client(&server).await;
    let headers = [("x-api-key", DEMO_KEY), ("grpc-encoding", "br")];
    let status = client.model_infer(with(nice(), &headers)).await.unwrap_err();
    let accepted = status.metadata().get("grpc-accept-encoding").unwrap().to_str().unwrap();
    assert_eq!((status.code(), accepted), (Code::Unimplemented, "identity,deflate,gzip"));
    let mut health = HealthClient::new(channel(&server).await);
    let ask = || HealthCheckRequest { service: String::new() };
    let status = health.check(with(ask(), &headers)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.metadata().get("grpc-accept-encoding").is_some());
    // Clients that compress all messages compress this one too.
    let mut packed = health.send_compressed(CompressionEncoding::Gzip);
    packed.check(ask()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_timeout_overrides_the_models_time_limit() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::misbehave(folder.path(), 100));
    // The client library would enforce the timeout itself.
    let mut caller = Caller::connect(&server).await;
    let message = texts("misbehave", "action", &["spin"]).encode_to_vec();
    for (wanted, at_least) in [("50m", 50), ("2S", 2000)] {
        let headers = [("x-api-key", DEMO_KEY), ("grpc-timeout", wanted)];
        let begin = Instant::now();
        let mut call = caller.begin("ModelInfer", &headers);
        call.send(&message, true);
        assert_eq!(call.end().await.0, Code::DeadlineExceeded);
        assert!(begin.elapsed() >= Duration::from_millis(at_least), "{wanted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anonymous_health_watches_do_not_exclude_keyed_ones() {
    let server = Server::start(&Setup::toxicity());
    let ask = || HealthCheckRequest { service: String::new() };
    let (mut watches, mut channels) = (Vec::new(), Vec::new());
    let refused = 'full: loop {
        let mut health = HealthClient::new(channel(&server).await);
        channels.push(health.clone());
        // Fewer than the streams that one connection may have.
        for _ in 0..50 {
            match health.watch(ask()).await {
                Ok(watch) => watches.push(watch.into_inner()),
                Err(status) => break 'full status,
            }
        }
        assert!(watches.len() < 10_000, "watches are not limited");
    };
    assert_eq!(refused.code(), Code::Unavailable);
    let mut health = HealthClient::new(channel(&server).await);
    // An invalid key counts as no key.
    let bad = health.watch(with_key(ask(), "other")).await;
    assert_eq!(bad.map(drop).unwrap_err().code(), Code::Unavailable);
    let mut good = health.watch(keyed(ask())).await.unwrap().into_inner();
    assert!(good.message().await.unwrap().is_some());
}
