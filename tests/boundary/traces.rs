use std::collections::BTreeSet;
use std::net::TcpListener;

use guesthouse_tests::collector::Collector;
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn traced(endpoint: &str, sample: f64) -> Setup {
    let mut setup = Setup::toxicity();
    let section = format!("[tracing]\nendpoint = \"{endpoint}\"\nsample = {sample:?}\n");
    setup.config.push_str(&section);
    setup
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_sampled_request_has_spans_in_the_callers_trace() {
    let collector = Collector::start();
    let server = Server::start(&traced(&collector.endpoint(), 0.0));
    let body = json!({"text": "canary9f3a", "request_id": "canary-id"}).to_string();
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let headers =
        [("traceparent", parent.as_str()), ("tracestate", "vendor=1"), ("X-Custom", "canary9f3a")];
    let answer = server.send("POST", "/v1/predict", &headers, body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    let line = server.wait_for("the log line", |line| line["request_id"] == "canary-id");
    assert_eq!(line["trace_id"], TRACE);

    let spans = collector.wait_for(|spans| spans.len() >= 5);
    let names: BTreeSet<_> = spans.iter().map(|span| span.name.as_str()).collect();
    let wanted = ["POST /{major}/predict", "encode", "guest", "instantiate", "queue"];
    assert_eq!(names, BTreeSet::from(wanted));
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    assert!(spans.iter().all(|span| span.end_time_unix_nano >= span.start_time_unix_nano));
    let root = spans.iter().find(|span| hex(&span.parent_span_id) == SPAN).unwrap();
    assert_eq!((root.name.as_str(), root.trace_state.as_str()), (wanted[0], "vendor=1"));
    let children = spans.iter().filter(|span| span.parent_span_id == root.span_id);
    assert_eq!(children.count(), 4);
    assert!(spans.iter().all(|span| {
        span.start_time_unix_nano >= root.start_time_unix_nano
            && span.end_time_unix_nano <= root.end_time_unix_nano
    }));
    let header = answer.header("traceresponse").unwrap();
    assert_eq!(header, format!("00-{TRACE}-{}-01", hex(&root.span_id)));
    let attributes = format!("{:?}", root.attributes);
    for word in ["guesthouse.model", "toxicity", "guesthouse.version", "1.0.0", "http.route"] {
        assert!(attributes.contains(word), "{word} is not in {attributes}");
    }
    let everything = collector.everything();
    assert!(everything.contains("service.name") && !everything.contains("canary"), "{everything}");
}

#[test]
fn sampling_follows_the_caller_or_the_configuration() {
    let collector = Collector::start();
    let server = Server::start(&traced(&collector.endpoint(), 0.0));
    let body = json!({"text": "You are nice"}).to_string();
    let send =
        |headers: &[(&str, &str)]| server.send("POST", "/v1/predict", headers, body.as_bytes());
    // A request that is not sampled has a trace id all the same.
    let answer = send(&[]);
    assert!(answer.header("traceresponse").unwrap().ends_with("-00"), "{answer:?}");
    let garbage = send(&[("traceparent", "garbage")]);
    assert!(garbage.header("traceresponse").unwrap().ends_with("-00"), "{garbage:?}");
    let unsampled = format!("00-{TRACE}-{SPAN}-00");
    let answer = send(&[("traceparent", &unsampled)]);
    assert!(answer.header("traceresponse").unwrap().starts_with(&format!("00-{TRACE}-")));
    // Spans are exported in order, so the last one proves that nothing else was exported before it.
    let last = format!("00-{}-{SPAN}-01", "a".repeat(32));
    assert_eq!(send(&[("traceparent", &last)]).status, 200);
    assert!(server.stop().0.success());
    let spans = collector.wait_for(|spans| spans.len() >= 5);
    assert!(spans.iter().all(|span| hex(&span.trace_id) == "a".repeat(32)), "{spans:#?}");
}

#[test]
fn without_a_collector_only_the_trace_id_is_logged() {
    let server = Server::start(&Setup::toxicity());
    let body = json!({"text": "You are nice", "request_id": "traced"}).to_string();
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let answer = server.send("POST", "/v1/predict", &[("traceparent", &parent)], body.as_bytes());
    assert_eq!((answer.status, answer.header("traceresponse")), (200, None));
    let line = server.wait_for("the log line", |line| line["request_id"] == "traced");
    assert_eq!(line["trace_id"], TRACE);
    let body = json!({"text": "You are nice", "request_id": "garbage"}).to_string();
    let headers = [("traceparent", "00-canary-canary-01")];
    assert_eq!(server.send("POST", "/v1/predict", &headers, body.as_bytes()).status, 200);
    let line = server.wait_for("the log line", |line| line["request_id"] == "garbage");
    assert_eq!(line["trace_id"], Value::Null);
}

#[test]
fn an_unreachable_collector_affects_no_request() {
    // A collector that refuses connections, and one that accepts them and never responds.
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [dead, silent.local_addr().unwrap()] {
        let server = Server::start(&traced(&format!("http://{address}"), 1.0));
        // Five spans each: more than the queue holds.
        for _ in 0..600 {
            server.assert_healthy();
        }
        // A refused connection fails quickly; with a silent collector the queue fills up.
        let outcome = if address == dead { "failed" } else { "dropped" };
        let counted = format!("guesthouse_spans_total{{outcome=\"{outcome}\"}} ");
        server.eventually(outcome, |server| {
            let metrics = server.metrics();
            metrics
                .lines()
                .any(|line| line.strip_prefix(&counted).is_some_and(|count| count != "0"))
        });
        assert!(server.stop().0.success(), "the shutdown waits for the collector");
    }
}
