use std::io::Read as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::grpc::{ModelInferRequest, ModelStreamInferResponse, ServerReadyRequest};
use guesthouse_tests::{DEADLINE, DEMO_KEY, Server, Setup, Signal, eventually, eventually_some};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::block_in_place;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::grpc::{Client, assert_refused, channel, client, keyed, texts, with_key};

/// A server whose guest computes until its request is cancelled.
fn misbehaving(limits: &str) -> (Server, TempDir) {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 600_000);
    setup.config.push_str("predict_milliseconds_at_most = 600000\n");
    setup.config.push_str(limits);
    (Server::start(&setup), folder)
}

fn action(id: usize, action: &str) -> ModelInferRequest {
    let message = texts("misbehave", "action", &[action]);
    ModelInferRequest { id: id.to_string(), ..message }
}

/// A request stream that the test feeds.
fn request_channel() -> (UnboundedSender<ModelInferRequest>, impl Stream<Item = ModelInferRequest>)
{
    let (sender, mut receiver) = unbounded_channel();
    let mut next = move |context: &mut std::task::Context<'_>| receiver.poll_recv(context);
    (sender, PollFn(Box::new(move |context| next(context))))
}

type Poll<T> = Box<dyn FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<T>> + Send>;

struct PollFn<T>(Poll<T>);

impl<T> Stream for PollFn<T> {
    type Item = T;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        (self.0)(context)
    }
}

async fn open(
    client: &mut Client,
    messages: impl Stream<Item = ModelInferRequest> + Send + 'static,
) -> Streaming<ModelStreamInferResponse> {
    client.model_stream_infer(keyed(messages)).await.unwrap().into_inner()
}

async fn next(answers: &mut Streaming<ModelStreamInferResponse>) -> ModelStreamInferResponse {
    answers.message().await.unwrap().unwrap()
}

fn id(answer: &ModelStreamInferResponse) -> usize {
    answer.infer_response.as_ref().unwrap().id.parse().unwrap()
}

fn is_busy(server: &Server, instances: usize) -> bool {
    let line = format!(r#"model="misbehave",version="1.0.0",state="busy"}} {instances}"#);
    server.metrics().contains(&line)
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_keep_the_order_and_errors_do_not_end_a_stream() {
    let (server, _folder) = misbehaving("");
    let mut client = client(&server).await;
    let actions = ["work", "echo", "reject", "work", "no such action", "echo", "panic", "echo"];
    let messages: Vec<_> = (0..40).map(|id| action(id, actions[id % actions.len()])).collect();
    let mut answers = open(&mut client, tokio_stream::iter(messages)).await;
    for number in 0..40 {
        let answer = next(&mut answers).await;
        assert_eq!(id(&answer), number);
        let is_good = ["work", "echo"].contains(&actions[number % actions.len()]);
        // Failures of single requests neither end the stream nor suspend the version.
        assert!(is_good == answer.error_message.is_empty(), "{number}: {answer:?}");
    }
    assert!(answers.message().await.unwrap().is_none());
    // Each request has its own log line, and the stream has one.
    let lines = || {
        let lines = server.lines();
        let of_stream = |line: &&Value| {
            line["route"].as_str().is_some_and(|route| route.ends_with("/ModelStreamInfer"))
        };
        lines.iter().filter(of_stream).map(|line| line["status"].clone()).collect::<Vec<_>>()
    };
    block_in_place(|| eventually("41 log lines", || lines().len() == 41));
    assert!(lines().contains(&json!(422)) && lines().contains(&json!(500)), "{:?}", lines());
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_the_key_ends_the_stream() {
    let server = Server::start(&Setup::toxicity());
    let made = server.admin("POST", "keys", &json!({"name": "ann", "scopes": ["predict:*"]}));
    let key = made.body["secret"].as_str().unwrap();
    let mut client = client(&server).await;
    let (send, messages) = request_channel();
    let answers = client.model_stream_infer(with_key(messages, key)).await;
    let mut answers = answers.unwrap().into_inner();
    send.send(ModelInferRequest { id: "7".to_owned(), ..texts("nobody", "text", &["a"]) }).unwrap();
    let answer = next(&mut answers).await;
    assert!(answer.error_message.contains("Request for unknown model"), "{answer:?}");
    assert_eq!(id(&answer), 7);
    send.send(crate::grpc::nice()).unwrap();
    assert!(next(&mut answers).await.error_message.is_empty());
    let path = format!("keys/{}", made.body["key"]["id"].as_str().unwrap());
    assert_eq!(server.admin("DELETE", &path, &Value::Null).status, 200);
    send.send(crate::grpc::nice()).unwrap();
    assert_refused(answers.message().await, Code::Unauthenticated, "unauthorized");
    // Without a key, no stream is opened.
    let refused = client.model_stream_infer(tokio_stream::empty()).await;
    assert_refused(refused, Code::Unauthenticated, "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_no_responses_is_throttled() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &["identity_bytes"]));
    let mut client = client(&server).await;
    let text = "a".repeat(1 << 20);
    let mut message = texts("identity_bytes", "INPUT0", &[&text]);
    message.inputs[0].shape = vec![1, 1];
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let messages = tokio_stream::iter(0..2000).map(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        message.clone()
    });
    let mut answers = open(&mut client, messages).await;
    // The stream is stalled if no message is taken while many other requests are answered.
    let stalled = block_in_place(|| {
        eventually_some("the stream stalls", || {
            let before = sent.load(Ordering::Relaxed);
            (0..300).for_each(|_| assert_eq!(server.get("/healthz").status, 200));
            (before >= 16 && sent.load(Ordering::Relaxed) == before).then_some(before)
        })
    });
    assert!((16..200).contains(&stalled), "{stalled} messages were read");
    // One response more than messages were taken: the stream resumes.
    for _ in 0..=stalled {
        assert!(next(&mut answers).await.error_message.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnect_frees_the_instance() {
    let (server, _folder) = misbehaving("");
    for is_stream in [false, true] {
        let mut client = client(&server).await;
        let call = tokio::spawn(async move {
            if is_stream {
                let (send, messages) = request_channel();
                send.send(action(0, "spin")).unwrap();
                let mut answers = open(&mut client, messages).await;
                next(&mut answers).await;
            } else {
                let _ = client.model_infer(keyed(action(0, "spin"))).await;
            }
        });
        block_in_place(|| eventually("the guest spins", || is_busy(&server, 1)));
        // Nothing but the disconnect ends it: the time limit is ten minutes.
        call.abort();
        block_in_place(|| eventually("the instance is free", || is_busy(&server, 0)));
    }
    let left = |line: &Value| line["status"] == 499 && line["grpc_status"] == "CANCELLED";
    let line = server.wait_for("the log line", |line| left(line) && line["model"] == "misbehave");
    assert_eq!(line["caller"], "demo");
    assert!(server.stop().0.success(), "requests were left to drain");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_streams_do_not_delay_the_shutdown() {
    // Longer than `DEADLINE`.
    let mut setup = Setup::toxicity();
    setup.config.push_str("\n[limits]\ndrain_seconds = 3600\nlinger_seconds = 3600\n");
    let server = Server::start(&setup);
    let channel = channel(&server).await;
    let mut client = Client::new(channel.clone());
    let (send, messages) = request_channel();
    let mut answers = open(&mut client, messages).await;
    send.send(crate::grpc::nice()).unwrap();
    assert!(next(&mut answers).await.error_message.is_empty());
    let mut health = HealthClient::new(channel);
    let watch = health.watch(HealthCheckRequest { service: String::new() }).await;
    let mut watch = watch.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let unknown = HealthCheckRequest { service: "nobody".to_owned() };
    let mut unknown = health.watch(unknown).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    server.signal(Signal::TERM);
    // Watchers are notified before anything else stops.
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(!client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    send.send(crate::grpc::nice()).unwrap();
    assert!(
        next(&mut answers).await.error_message.is_empty(),
        "an open stream is not served any more"
    );
    let stopping = tokio::task::spawn_blocking(move || server.stop());
    for outcome in [answers.message().await.map(drop), watch.message().await.map(drop)] {
        assert_refused(outcome, Code::Unavailable, "not_ready");
    }
    assert!(stopping.await.unwrap().0.success(), "requests were left to drain");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_over_the_drain_limit_are_interrupted() {
    let (server, _folder) = misbehaving("drain_seconds = 1\n");
    let mut client = client(&server).await;
    let (send, messages) = request_channel();
    let mut answers = open(&mut client, messages).await;
    send.send(action(0, "spin")).unwrap();
    let mut other = client.clone();
    let unary = tokio::spawn(async move { other.model_infer(keyed(action(0, "spin"))).await });
    block_in_place(|| eventually("guests spin", || is_busy(&server, 2) || is_busy(&server, 1)));
    let stopping = tokio::task::spawn_blocking(move || server.stop());
    let of_stream: Result<_, Status> = answers.message().await;
    assert_refused(of_stream, Code::Unavailable, "not_ready");
    assert_refused(unary.await.unwrap(), Code::Unavailable, "not_ready");
    assert!(!stopping.await.unwrap().0.success(), "no request was interrupted");
}

/// Waits until the server has closed idle connections this many times in a row.
fn wait_for_idle_limits(server: &Server, times: usize) {
    for _ in 0..times {
        let mut silent = TcpStream::connect(server.grpc_address()).unwrap();
        silent.set_read_timeout(Some(DEADLINE)).unwrap();
        let _ = silent.read(&mut [0; 100]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_outlives_the_idle_connection_limit() {
    let mut setup = Setup::toxicity();
    setup.config.push_str("\n[limits]\nhead_seconds = 1\nbody_seconds = 1\n");
    let server = Server::start(&setup);
    let mut client = client(&server).await;
    let (send, messages) = request_channel();
    let mut answers = open(&mut client, messages).await;
    for _ in 0..2 {
        block_in_place(|| wait_for_idle_limits(&server, 4));
        send.send(crate::grpc::nice()).unwrap();
        assert!(next(&mut answers).await.error_message.is_empty());
    }
    drop(send);
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_responses_are_not_read_is_closed() {
    let folder = temporary_folder();
    let mut setup = Setup::fixtures(folder.path(), &["identity_bytes"]);
    setup.config = format!(
        "{}\n",
        setup.config.replace("[limits]", "[limits]\nhead_seconds = 1\nbody_seconds = 1")
    );
    let server = Server::start(&setup);
    let mut client = client(&server).await;
    let text = "a".repeat(1 << 20);
    let mut message = texts("identity_bytes", "INPUT0", &[&text]);
    message.inputs[0].shape = vec![1, 1];
    let messages = tokio_stream::iter(vec![message; 4]).chain(tokio_stream::pending());
    let _answers = open(&mut client, messages).await;
    let closed = r#"guesthouse_connections_open{listener="grpc"} 0"#;
    block_in_place(|| eventually("the connection is closed", || server.metrics().contains(closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_past_its_grpc_timeout_is_deadline_exceeded() {
    let (server, _folder) = misbehaving("");
    let over = |line: &Value| line["grpc_status"] == "DEADLINE_EXCEEDED";
    for path in ["ModelInfer", "ModelStreamInfer"] {
        let message = prost::Message::encode_to_vec(&action(0, "spin"));
        let mut caller = crate::grpc_limits::Caller::connect(&server).await;
        let headers = [("x-api-key", DEMO_KEY), ("grpc-timeout", "300m")];
        let mut call = caller.begin(path, &headers);
        call.send(&message, path == "ModelInfer");
        assert_eq!(
            call.end().await,
            (Code::DeadlineExceeded, Some("deadline_exceeded".to_owned()))
        );
    }
    let line = server.wait_for("the log line", over);
    assert_eq!((&line["status"], &line["caller"]), (&json!(504), &json!("demo")));
    block_in_place(|| eventually("the instances are free", || is_busy(&server, 0)));
}
