use std::path::Path;

use guesthouse_tests::artifacts::{self, growing, run_host, temporary_folder};
use guesthouse_tests::dynamic::{Client, Service};
use guesthouse_tests::{DEMO_KEY, Server, Setup, client, eventually};
use prost::Message as _;
use prost_reflect::{DynamicMessage, Value};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};

const TOXICITY: &str = "guesthouse.toxicity.v1.Toxicity";

async fn connected(server: &Server) -> Client {
    Client::connect(server.grpc_address(), DEMO_KEY).await
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn field(message: &DynamicMessage, name: &str) -> Value {
    message.get_field_by_name(name).unwrap_or_else(|| panic!("no {name}")).into_owned()
}

fn number(service: &Service, message: &str, field: &str) -> Option<u32> {
    let name = service.method("Predict").parent_service().parent_file().package_name().to_owned();
    let message = service.pool.get_message_by_name(&format!("{name}.{message}")).unwrap();
    message.get_field_by_name(field).map(|field| field.number())
}

/// Artifacts of the growing model; the version decides which stage its signature has.
fn stages(folder: &Path, versions: &[&str]) -> Setup {
    let stage = |version: &str| match version {
        "1.0.0" => 1,
        version if version.starts_with("1.") => 2,
        _ => 3,
    };
    let pack = |version: &&str| growing("growing", version, stage(version), folder);
    let artifacts = versions.iter().map(pack).collect();
    Setup { artifacts, config: "default_model = \"growing\"\n".to_owned(), ..Setup::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_equal_http_bit_for_bit() {
    let server = Server::start(&Setup::toxicity());
    let client = connected(&server).await;
    let names = client.services().await;
    for wanted in [TOXICITY, "guesthouse.toxicity.v2.Toxicity"] {
        assert!(names.iter().any(|name| name == wanted), "{names:?}");
    }
    let service = client.service(TOXICITY).await.unwrap();
    for input in ["You are nice", "you are an idiot", " spaces ", "ä\u{1f600}", "x\u{0}y"] {
        let message = service.request("Predict", &[("text", text(input))]);
        let answer = client.unary(&service.method("Predict"), message).await.unwrap();
        let metadata = answer.metadata();
        assert_eq!(metadata.get("x-model-version").unwrap(), "1.0.0");
        assert_eq!(metadata.get("x-route-reason").unwrap(), "range");
        let answer = answer.into_inner();
        let wanted = server.post("/v1/predict", &json!({"text": input})).body;
        let Value::F32(score) = field(&answer, "score") else { panic!("{answer:?}") };
        // JSON has enough digits to identify the float.
        let parsed = wanted["score"].to_string().parse::<f32>().unwrap();
        assert_eq!(score.to_bits(), parsed.to_bits(), "{input:?}");
        assert_eq!(field(&answer, "label").as_str(), wanted["label"].as_str());
        assert_eq!(field(&answer, "model_version").as_str(), Some("1.0.0"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_messages_and_methods_get_their_status() {
    let server = Server::start(&Setup::toxicity());
    let client = connected(&server).await;
    let service = client.service(TOXICITY).await.unwrap();
    let output = service.method("Predict").output();
    let path = |method: &str| format!("/{TOXICITY}/{method}");
    let raw = async |path: &str, bytes: &[u8]| {
        let outcome = client.raw(path, Request::new(bytes.to_vec()), output.clone()).await;
        outcome.map(|answer| answer.into_inner()).map_err(|status| status.code())
    };
    let good = service.request("Predict", &[("text", text("You are nice"))]).encode_to_vec();
    let answer = raw(&path("Predict"), &good).await.unwrap();
    // Unknown fields are skipped: a varint, a string and a group.
    let more = [&good[..], b"\x98\x06\x07", b"\xa2\x06\x01x", b"\xab\x06\x08\x01\xac\x06"].concat();
    assert_eq!(raw(&path("Predict"), &more).await.unwrap(), answer);
    // Of a repeated singular field, the last value counts.
    let twice = [&b"\x0a\x01x"[..], &good].concat();
    assert_eq!(raw(&path("Predict"), &twice).await.unwrap(), answer);
    let bad: [&[u8]; 8] = [
        b"\xff",
        b"\x0a\x05abc",
        b"\x08\x01",
        b"\x0a\x02\xff\xfe",
        b"\x0b",
        b"",
        b"\x0a\x00",
        b"\x07",
    ];
    for bytes in bad {
        let outcome = raw(&path("Predict"), bytes).await;
        assert_eq!(outcome, Err(Code::InvalidArgument), "{bytes:?}");
    }
    let long = service.request("Predict", &[("text", text(&"x".repeat(2001)))]).encode_to_vec();
    assert_eq!(raw(&path("Predict"), &long).await, Err(Code::InvalidArgument));
    for unknown in [
        path("Explain"),
        "/guesthouse.toxicity.v3.Toxicity/Predict".to_owned(),
        "/guesthouse.nobody.v1.Nobody/Predict".to_owned(),
        "/guesthouse.toxicity.v1.toxicity/Predict".to_owned(),
    ] {
        assert_eq!(raw(&unknown, &good).await, Err(Code::Unimplemented), "{unknown}");
    }
    let stranger = Client::connect(server.grpc_address(), "").await;
    for path in
        [path("Predict"), path("PredictStream"), "/guesthouse.nobody.v1.Nobody/Predict".to_owned()]
    {
        let outcome = stranger.raw(&path, Request::new(good.clone()), output.clone()).await;
        assert_eq!(outcome.unwrap_err().code(), Code::Unauthenticated, "{path}");
    }
    // A version in the metadata conflicts with the version in the path.
    let mut pinned = Request::new(good.clone());
    pinned.metadata_mut().insert("x-model-version", "1.0.0".parse().unwrap());
    let outcome = client.raw(&path("Predict"), pinned, output.clone()).await;
    assert_eq!(outcome.unwrap_err().code(), Code::InvalidArgument);
}

/// A key for one model reveals nothing about other models.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_sees_only_services_of_its_models() {
    let server = Server::start(&Setup::text_direction());
    let key = json!({"name": "text", "scopes": ["predict:text-direction"]});
    let key = server.admin("POST", "keys", &key).body["secret"].as_str().unwrap().to_owned();
    let client = Client::connect(server.grpc_address(), &key).await;
    let names = client.services().await;
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    assert!(has("guesthouse.text_direction.v1.TextDirection"), "{names:?}");
    assert!(!has(TOXICITY), "{names:?}");
    assert!(client.service(TOXICITY).await.is_err());
    let service = client.service("guesthouse.text_direction.v1.TextDirection").await.unwrap();
    let output = service.method("Predict").output();
    for (path, code) in [
        ("/guesthouse.toxicity.v1.Toxicity/Predict", Code::PermissionDenied),
        ("/guesthouse.toxicity.v9.Toxicity/Predict", Code::PermissionDenied),
        ("/guesthouse.nobody.v1.Nobody/Predict", Code::PermissionDenied),
        ("/guesthouse.text_direction.v9.TextDirection/Predict", Code::Unimplemented),
        ("/guesthouse.text_direction.v1.TextDirection/Predict", Code::InvalidArgument),
    ] {
        let outcome = client.raw(path, Request::new(b"\x0a\x03abc".to_vec()), output.clone()).await;
        assert_eq!(outcome.unwrap_err().code(), code, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_keeps_its_order_and_survives_invalid_rows() {
    let server = Server::start(&Setup::toxicity());
    let client = connected(&server).await;
    let service = client.service(TOXICITY).await.unwrap();
    let input = |row: usize| match row % 7 {
        3 => String::new(),
        5 => "x".repeat(2001),
        _ => format!("this is text number {row}, and you are {}", ["nice", "an idiot"][row % 2]),
    };
    let rows: Vec<_> = (0..1000).collect();
    let request = |row: &usize| service.request("PredictStream", &[("text", text(&input(*row)))]);
    let messages: Vec<_> = rows.iter().map(request).collect();
    let mut answers = client
        .streaming(&service.method("PredictStream"), tokio_stream::iter(messages))
        .await
        .unwrap();
    for row in rows {
        let answer = answers.message().await.unwrap().unwrap();
        if matches!(row % 7, 3 | 5) {
            assert!(answer.has_field_by_name("error"), "{row} {answer:?}");
            let error = field(&answer, "error");
            let code = field(error.as_message().unwrap(), "error_code");
            assert_eq!(code.as_str(), Some("unacceptable_input"), "{row}");
            continue;
        }
        assert!(answer.has_field_by_name("response"), "{row} {answer:?}");
        // A sample of the rows shows whether responses are in order.
        if row % 10 == 0 {
            let response = field(&answer, "response");
            let wanted = server.post("/v1/predict", &json!({"text": input(row)})).body;
            let Value::F32(score) = field(response.as_message().unwrap(), "score") else {
                panic!()
            };
            let parsed = wanted["score"].to_string().parse::<f32>().unwrap();
            assert_eq!(score.to_bits(), parsed.to_bits(), "{row}");
        }
    }
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_responds_while_requests_are_sent() {
    let server = Server::start(&Setup::toxicity());
    let client = connected(&server).await;
    let service = client.service(TOXICITY).await.unwrap();
    let (sender, receiver) = mpsc::channel(1);
    let messages = ReceiverStream::new(receiver);
    let method = service.method("PredictStream");
    let begun = tokio::spawn({
        let (client, method) = (client.clone(), method.clone());
        async move { client.streaming(&method, messages).await }
    });
    let row = service.request("PredictStream", &[("text", text("You are nice"))]);
    sender.send(row.clone()).await.unwrap();
    let mut answers = begun.await.unwrap().unwrap();
    assert!(answers.message().await.unwrap().unwrap().has_field_by_name("response"));
    sender.send(row).await.unwrap();
    assert!(answers.message().await.unwrap().unwrap().has_field_by_name("response"));
    drop(sender);
    assert!(answers.message().await.unwrap().is_none());
}

fn deploy(server: &Server, folder: &Path, version: &str, stage: u8) {
    let operation = server.deploy(&growing("growing", version, stage, folder));
    assert_eq!(operation["state"], "done", "{operation}");
}

fn promote(server: &Server, version: &str) {
    let answer = server.admin("POST", "models/growing/promote", &json!({"version": version}));
    assert_eq!(answer.status, 200, "{answer:?}");
}

const GROWING: &str = "guesthouse.growing.v1.Growing";

#[tokio::test(flavor = "multi_thread")]
async fn old_clients_work_with_newer_minor_versions() {
    let folder = temporary_folder();
    let server = Server::start(&stages(folder.path(), &["1.0.0"]));
    let client = connected(&server).await;
    let old = client.service(GROWING).await.unwrap();
    let ask = async |service: &Service, fields: &[(&str, Value)]| {
        let message = service.request("Predict", fields);
        let outcome = client.unary(&service.method("Predict"), message).await;
        outcome.map(|answer| answer.into_inner()).map_err(|status| status.code())
    };
    let four = [("text", text("four"))];
    assert_eq!(field(&ask(&old, &four).await.unwrap(), "length"), Value::I64(4));
    let (sender, receiver) = mpsc::channel(1);
    let (method, messages) = (old.method("PredictStream"), ReceiverStream::new(receiver));
    sender.send(old.request("PredictStream", &four)).await.unwrap();
    let mut answers = client.streaming(&method, messages).await.unwrap();
    let mut streamed = async || {
        let answer = field(&answers.message().await.unwrap().unwrap(), "response");
        field(answer.as_message().unwrap(), "model_version").as_str().unwrap().to_owned()
    };
    assert_eq!(streamed().await, "1.0.0");

    deploy(&server, folder.path(), "1.1.0", 2);
    let new = client.service(GROWING).await.unwrap();
    for (message, name, wanted) in [
        ("PredictRequest", "text", Some(1)),
        ("PredictResponse", "length", Some(1)),
        ("PredictResponse", "model_version", Some(2000)),
    ] {
        assert_eq!((number(&old, message, name), number(&new, message, name)), (wanted, wanted));
    }
    assert_eq!(number(&old, "PredictRequest", "factor"), None);
    assert_eq!(number(&new, "PredictRequest", "factor"), Some(2));
    assert_eq!(number(&new, "PredictResponse", "weight"), Some(2));
    // The stable version is still the old one: it returns no weight and rejects a factor.
    let answer = ask(&new, &four).await.unwrap();
    assert_eq!(field(&answer, "model_version"), text("1.0.0"));
    assert!(!answer.has_field_by_name("weight"), "{answer:?}");
    let with_factor = |factor: f32| [("text", text("four")), ("factor", Value::F32(factor))];
    assert_eq!(ask(&new, &with_factor(3.0)).await, Err(Code::InvalidArgument));

    promote(&server, "1.1.0");
    let answer = ask(&old, &four).await.unwrap();
    assert_eq!(field(&answer, "length"), Value::I64(4));
    assert_eq!(field(&answer, "model_version"), text("1.1.0"));
    assert_eq!(answer.unknown_fields().count(), 1);
    sender.send(old.request("PredictStream", &four)).await.unwrap();
    assert_eq!(streamed().await, "1.1.0");
    assert_eq!(field(&ask(&new, &four).await.unwrap(), "weight"), Value::F32(8.0));
    // Zero is transmitted as a value, in requests and in responses.
    for (factor, weight) in [(3.0, 12.0), (0.0, 0.0), (-0.0, 0.0)] {
        let answer = ask(&new, &with_factor(factor)).await.unwrap();
        assert!(answer.has_field_by_name("weight"), "{answer:?}");
        assert_eq!(field(&answer, "weight"), Value::F32(weight), "{factor}");
    }

    // A change of field numbers is not a minor step.
    let operation = server.deploy(&growing("growing", "1.2.0", 3, folder.path()));
    assert_eq!(operation["error"]["error_code"], "contract_violation", "{operation}");
    deploy(&server, folder.path(), "2.0.0", 3);
    let next = client.service("guesthouse.growing.v2.Growing").await.unwrap();
    assert_eq!(number(&next, "PredictRequest", "factor"), Some(1));
    assert_eq!(number(&next, "PredictRequest", "text"), Some(2));
    let answer = ask(&next, &with_factor(3.0)).await.unwrap();
    assert_eq!(field(&answer, "model_version"), text("2.0.0"));
    assert_eq!(field(&ask(&old, &four).await.unwrap(), "model_version"), text("1.1.0"));
    let undeploy = server.admin("DELETE", "models/growing/versions/2.0.0", &json!(null));
    assert_eq!(undeploy.status, 200, "{undeploy:?}");
    assert!(client.service("guesthouse.growing.v2.Growing").await.is_err());
    assert_eq!(ask(&next, &with_factor(3.0)).await, Err(Code::Unimplemented));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_succeeds_or_fails_as_a_whole() {
    let folder = temporary_folder();
    let server = Server::start(&stages(folder.path(), &["1.1.0"]));
    let client = connected(&server).await;
    let service = client.service(GROWING).await.unwrap();
    let ask = async |rows: &[&[(&str, Value)]]| {
        let rows = rows.iter().map(|row| Value::Message(service.request("Predict", row)));
        let message = service.request("BatchPredict", &[("requests", Value::List(rows.collect()))]);
        client.unary(&service.method("BatchPredict"), message).await
    };
    // More rows than one guest call takes; only one of them sets the optional input.
    let texts: Vec<_> = (1..=20).map(|length| "x".repeat(length)).collect();
    let rows: Vec<_> = texts.iter().map(|row| vec![("text", text(row))]).collect();
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows[5].push(("factor", Value::F32(10.0)));
    let rows: Vec<_> = rows.iter().map(Vec::as_slice).collect();
    let answer = ask(&rows).await.unwrap().into_inner();
    let answers = field(&answer, "responses");
    let answers = answers.as_list().unwrap();
    assert_eq!(answers.len(), rows.len());
    for (row, (answer, length)) in answers.iter().zip(1_u16..).enumerate() {
        let answer = answer.as_message().unwrap();
        assert_eq!(field(answer, "length"), Value::I64(length.into()));
        let factor = if row == 5 { 10.0 } else { 2.0 };
        assert_eq!(field(answer, "weight"), Value::F32(f32::from(length) * factor), "{row}");
    }
    assert_eq!(ask(&[]).await.unwrap_err().code(), Code::InvalidArgument);
    let good = [("text", text("good"))];
    let status = ask(&[&good, &[], &good]).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let too_many = vec![&good[..]; 1025];
    assert_eq!(ask(&too_many).await.unwrap_err().code(), Code::InvalidArgument);
}

/// Every datatype round-trips through its protobuf type.
#[tokio::test(flavor = "multi_thread")]
async fn every_datatype_round_trips() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::fixtures(folder.path(), &[]));
    let client = connected(&server).await;
    let nan = f32::from_bits(0x7fc1_2345);
    let list = |values: Vec<Value>| Value::List(values);
    let floats = |values: &[f32]| list(values.iter().copied().map(Value::F32).collect());
    let of_16 = [0.0, -0.0, 1.5, -2.0, 448.0, f32::INFINITY, f32::NEG_INFINITY];
    let cases = [
        ("bool", list(vec![Value::Bool(true), Value::Bool(false)])),
        ("uint8", list(vec![Value::U32(0), Value::U32(255)])),
        ("uint16", list(vec![Value::U32(0), Value::U32(65535)])),
        ("uint32", list(vec![Value::U32(0), Value::U32(u32::MAX)])),
        ("uint64", list(vec![Value::U64(0), Value::U64(u64::MAX)])),
        ("int8", list(vec![Value::I32(-128), Value::I32(127)])),
        ("int16", list(vec![Value::I32(-32768), Value::I32(32767)])),
        ("int32", list(vec![Value::I32(i32::MIN), Value::I32(i32::MAX)])),
        ("int64", list(vec![Value::I64(i64::MIN), Value::I64(i64::MAX)])),
        ("fp16", floats(&of_16)),
        ("bf16", floats(&of_16)),
        ("fp32", floats(&[0.1, -0.0, f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, nan])),
        ("fp64", list(vec![Value::F64(0.1), Value::F64(-0.0), Value::F64(f64::MAX)])),
        (
            "bytes",
            list(vec![
                Value::Bytes(b"\xff\x00".as_ref().into()),
                Value::Bytes(b"".as_ref().into()),
            ]),
        ),
        ("text", list(vec![text("ä\u{1f600}"), text("")])),
    ];
    let mut cases: Vec<_> = cases.into_iter().collect();
    cases.extend(["int32", "bytes"].map(|name| (name, list(vec![]))));
    for (name, values) in cases {
        let full_name = format!(
            "guesthouse.identity_{name}.v1.Identity{}{}",
            name[..1].to_uppercase(),
            &name[1..]
        );
        let service = client.service(&full_name).await.unwrap();
        let message = service.request("Predict", &[("INPUT0", values)]);
        let answer = client.unary(&service.method("Predict"), message.clone()).await.unwrap();
        let mut answer = answer.into_inner();
        answer.clear_field_by_name("model_version");
        // Compared as bytes, which distinguish zeros and NaNs: the fields have the same number and
        // type.
        assert_eq!(answer.encode_to_vec(), message.encode_to_vec(), "{name}");
    }
    let service = client.service("guesthouse.identity_uint8.v1.IdentityUint8").await.unwrap();
    let message = service.request("Predict", &[("INPUT0", list(vec![Value::U32(256)]))]);
    let outcome = client.unary(&service.method("Predict"), message).await;
    assert_eq!(outcome.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnect_frees_the_guests() {
    let folder = temporary_folder();
    // A time limit far beyond `DEADLINE`.
    let mut setup = Setup::misbehave(folder.path(), 600_000);
    setup.config += "predict_milliseconds_at_most = 600000\n";
    let server = Server::start(&setup);
    let client = connected(&server).await;
    let service = client.service("guesthouse.misbehave.v1.Misbehave").await.unwrap();
    let spin = service.request("PredictStream", &[("action", text("spin"))]);
    let messages = tokio_stream::iter(vec![spin; 3]);
    let method = service.method("PredictStream");
    let answers = client.streaming(&method, messages).await.unwrap();
    let is_busy = || {
        let metrics = server.metrics();
        metrics.lines().any(|line| {
            line.starts_with("guesthouse_instances{")
                && line.contains("misbehave")
                && line.contains("busy")
                && !line.ends_with(" 0")
        })
    };
    let wait_until_busy = |wanted: bool| {
        tokio::task::block_in_place(|| {
            eventually(&format!("busy is {wanted}"), || is_busy() == wanted);
        });
    };
    wait_until_busy(true);
    drop(answers);
    drop(client);
    wait_until_busy(false);
}

/// The timeout covers the whole call; a row of a stream gets the time that is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_ends_a_call() {
    let folder = temporary_folder();
    let server = Server::start(&Setup::misbehave(folder.path(), 30_000));
    let client = connected(&server).await;
    let service = client.service("guesthouse.misbehave.v1.Misbehave").await.unwrap();
    let method = service.method("Predict");
    let message = service.request("Predict", &[("action", text("spin"))]);
    let mut request = Request::new(message.encode_to_vec());
    request.metadata_mut().insert("x-request-timeout-ms", "50".parse().unwrap());
    let path = "/guesthouse.misbehave.v1.Misbehave/Predict";
    let status = client.raw(path, request, method.output()).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    // A trap of the guest is an error of its row.
    let messages = ["echo", "panic", "echo"]
        .map(|action| service.request("PredictStream", &[("action", text(action))]));
    let method = service.method("PredictStream");
    let mut answers = client.streaming(&method, tokio_stream::iter(messages)).await.unwrap();
    for wanted in [None, Some("model_failure"), None] {
        let answer = answers.message().await.unwrap().unwrap();
        let code = answer.has_field_by_name("error").then(|| {
            let error = field(&answer, "error");
            field(error.as_message().unwrap(), "error_code").as_str().unwrap().to_owned()
        });
        assert_eq!(code.as_deref(), wanted);
    }
}

/// Models whose names map to the same package have no service.
#[tokio::test(flavor = "multi_thread")]
async fn models_with_the_same_package_have_no_service() {
    let folder = temporary_folder();
    let pack = |name: &str| growing(name, "1.0.0", 1, folder.path());
    let config = "default_model = \"a-b\"\n".to_owned();
    let setup = Setup { artifacts: vec![pack("a-b"), pack("c-d")], config, ..Setup::default() };
    let server = Server::start(&setup);
    let client = connected(&server).await;
    let service = client.service("guesthouse.a_b.v1.AB").await.unwrap();
    let ask = async || {
        let message = service.request("Predict", &[("text", text("four"))]);
        client.unary(&service.method("Predict"), message).await.map_err(|status| status.code())
    };
    assert!(ask().await.is_ok());
    let operation = server.deploy(&pack("a_b"));
    assert_eq!(operation["state"], "done", "{operation}");
    assert_eq!(ask().await.unwrap_err(), Code::Unimplemented);
    let names = client.services().await;
    assert!(!names.iter().any(|name| name.starts_with("guesthouse.a_b.")), "{names:?}");
    assert!(names.iter().any(|name| name == "guesthouse.c_d.v1.CD"), "{names:?}");
    let undeploy = server.admin("DELETE", "models/a_b/versions/1.0.0", &json!(null));
    assert_eq!(undeploy.status, 200, "{undeploy:?}");
    assert!(ask().await.is_ok());
}

#[test]
fn the_proto_command_and_endpoint_agree() {
    let server = Server::start(&Setup::toxicity());
    for version in ["1.0.0", "2.0.0"] {
        let artifact = artifacts::toxicity(version);
        let output = run_host(&["proto", &artifact.to_string_lossy()]);
        assert!(output.status.success(), "{output:?}");
        let url = server.url(&format!("/models/toxicity/versions/{version}/proto"));
        let answer = client::http().build().unwrap().get(url).header("x-api-key", DEMO_KEY);
        let answer = answer.send().unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!(answer.text().unwrap(), String::from_utf8(output.stdout).unwrap());
    }
    let path = "/models/toxicity/versions/1.0.0/proto";
    let answer = client::send("GET", &server.url(path), &[], b"");
    assert_eq!((answer.status, answer.error_code()), (401, Some("unauthorized")));
    let answer = server.send("GET", "/models/toxicity/versions/9.0.0/proto", &[], b"");
    assert_eq!((answer.status, answer.error_code()), (404, Some("not_found")));
    let folder = temporary_folder();
    let file = folder.path().join("no.wasm");
    std::fs::write(&file, b"no").unwrap();
    let output = run_host(&["proto", &file.to_string_lossy()]);
    assert_eq!(output.status.code(), Some(1));
}
