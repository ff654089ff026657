use std::collections::BTreeSet;

use guesthouse_tests::grpc::grpc_inference_service_client::GrpcInferenceServiceClient;
use guesthouse_tests::grpc::model_infer_request::InferInputTensor;
use guesthouse_tests::grpc::{
    ModelConfigRequest, ModelInferRequest, ModelMetadataRequest, ModelReadyRequest,
    ModelStatisticsRequest, RepositoryIndexRequest, RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest, ServerLiveRequest, ServerMetadataRequest, ServerReadyRequest,
};
use guesthouse_tests::{DEMO_KEY, Server, Setup, client};
use prost_reflect::prost::Message as _;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_types::StatusExt as _;

pub(crate) type Client = GrpcInferenceServiceClient<Channel>;

pub(crate) async fn channel(server: &Server) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", server.grpc_address())).unwrap();
    endpoint.connect().await.unwrap()
}

pub(crate) async fn client(server: &Server) -> Client {
    GrpcInferenceServiceClient::new(channel(server).await)
}

/// A request with an API key.
pub(crate) fn with_key<T>(message: T, key: &str) -> Request<T> {
    with(message, &[("x-api-key", key)])
}

/// A request with metadata.
pub(crate) fn with<T>(message: T, metadata: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// A request with the demo key.
pub(crate) fn keyed<T>(message: T) -> Request<T> {
    with_key(message, DEMO_KEY)
}

/// Byte strings in the raw form of tensors.
pub(crate) fn raw_texts(texts: &[&str]) -> Vec<u8> {
    let raw = texts.iter().flat_map(|text| {
        [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
    });
    raw.collect()
}

/// A request for a model whose only input is a text.
pub(crate) fn texts(model: &str, input: &str, texts: &[&str]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            name: input.to_owned(),
            datatype: "BYTES".to_owned(),
            shape: vec![i64::try_from(texts.len()).unwrap()],
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![raw_texts(texts)],
        ..ModelInferRequest::default()
    }
}

pub(crate) fn nice() -> ModelInferRequest {
    texts("toxicity", "text", &["You are nice"])
}

/// The machine-readable reason in the details of a status.
pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no details: {status:?}"));
    assert_eq!(info.domain, "guesthouse");
    info.reason.clone()
}

/// Asserts the code and the reason of a failed call.
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    outcome: Result<T, Status>,
    code: Code,
    word: &str,
) -> Status {
    let status = outcome.unwrap_err();
    assert_eq!((status.code(), &*reason(&status)), (code, word), "{status:?}");
    status
}

/// Creates a key with these scopes.
pub(crate) fn make_key(server: &Server, scopes: &[&str]) -> String {
    let name = format!("key-{}", scopes.join("-").replace(':', "."));
    let answer = server.admin("POST", "keys", &json!({"name": name, "scopes": scopes}));
    answer.body["secret"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

/// Makes one call, for tests of other modules.
pub(crate) fn call(server: &Server) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let live = async { client(server).await.server_live(ServerLiveRequest {}).await };
    assert!(runtime.block_on(live).unwrap().into_inner().live);
}

/// The log line of a call.
fn log_line(server: &Server, method: &str, request_id: &str) -> Value {
    server.wait_for("the log line", |line| {
        line["route"].as_str().is_some_and(|route| route.ends_with(method))
            && line["request_id"] == request_id
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prediction_equals_http_and_names_its_version() {
    let server = Server::start(&Setup::toxicity());
    let over_http = server.post("/models/toxicity/predict", &json!({"text": "You are nice"}));
    let mut client = client(&server).await;
    let mut message = nice();
    message.id = "mine".to_owned();
    let metadata = [("x-api-key", DEMO_KEY), ("x-request-id", "request-1")];
    let answer = client.model_infer(with(message, &metadata)).await.unwrap();
    let given = |name: &str| answer.metadata().get(name).unwrap().to_str().unwrap().to_owned();
    assert_eq!(given("x-request-id"), "request-1");
    let version = given("x-model-version");
    assert!(!given("x-route-reason").is_empty());
    let answer = answer.into_inner();
    assert_eq!((&*answer.model_name, &*answer.id), ("toxicity", "mine"));
    assert_eq!(answer.model_version, version);
    let label = answer.outputs.iter().position(|output| output.name == "label").unwrap();
    assert_eq!(answer.raw_output_contents[label], raw_texts(&["clean"]));
    if over_http.body["model_version"] == version {
        let score = answer.outputs.iter().position(|output| output.name == "score").unwrap();
        let score = f32::from_le_bytes(answer.raw_output_contents[score][..].try_into().unwrap());
        assert!((f64::from(score) - over_http.body["score"].as_f64().unwrap()).abs() < 1e-6);
    }
    let line = log_line(&server, "/ModelInfer", "request-1");
    let is = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (is("model"), is("version"), is("caller")),
        ("toxicity".into(), version, "demo".into())
    );
    assert_eq!((&line["status"], &line["rows"]), (&json!(200), &json!(1)));
    assert_eq!(line["grpc_status"], "OK");
    let metrics = server.metrics();
    for part in [
        r#"guesthouse_grpc_calls_total{method="/inference.GRPCInferenceService/ModelInfer",grpc_status="OK"} 1"#,
        r#"guesthouse_http_requests_total{listener="grpc",route="/inference.GRPCInferenceService/ModelInfer",code="200"} 1"#,
        r#"guesthouse_http_requests_in_flight{listener="grpc"} 0"#,
    ] {
        assert!(metrics.lines().any(|line| line == part), "{part} is not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_valid_key_only_health_is_visible() {
    let server = Server::start(&Setup::toxicity());
    let mut client = client(&server).await;
    assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let about = client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
    assert!(about.extensions.contains(&"statistics".to_owned()), "{about:?}");
    let other = make_key(&server, &["predict:other"]);
    for (key, code, word) in [
        (None, Code::Unauthenticated, "unauthorized"),
        (Some("wrong"), Code::Unauthenticated, "unauthorized"),
        (Some(&*other), Code::PermissionDenied, "forbidden"),
    ] {
        let headers: Vec<_> = key.iter().map(|key| ("x-api-key", *key)).collect();
        let name = "toxicity".to_owned();
        let version = String::new();
        let infer = client.model_infer(with(nice(), &headers)).await;
        assert_refused(infer, code, word);
        let message = ModelReadyRequest { name: name.clone(), version: version.clone() };
        assert_refused(client.model_ready(with(message, &headers)).await, code, word);
        let message = ModelMetadataRequest { name: name.clone(), version: version.clone() };
        assert_refused(client.model_metadata(with(message, &headers)).await, code, word);
        let message = ModelConfigRequest { name: name.clone(), version: version.clone() };
        assert_refused(client.model_config(with(message, &headers)).await, code, word);
        let message = ModelStatisticsRequest { name, version };
        assert_refused(client.model_statistics(with(message, &headers)).await, code, word);
    }
    // A bearer token in the `authorization` header works as well, unless both headers disagree.
    let bearer = format!("Bearer {DEMO_KEY}");
    client.model_infer(with(nice(), &[("authorization", &bearer)])).await.unwrap();
    let two = [("authorization", &*bearer), ("x-api-key", "other")];
    assert_refused(
        client.model_infer(with(nice(), &two)).await,
        Code::InvalidArgument,
        "malformed_request",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_admin_keys_load_and_unload() {
    let artifacts = vec![guesthouse_tests::artifacts::toxicity("1.0.0")];
    let server = Server::start(&Setup { artifacts, ..Setup::default() });
    let mut client = client(&server).await;
    let model_name = "toxicity".to_owned();
    let load = RepositoryModelLoadRequest { model_name, ..Default::default() };
    let model_name = "toxicity".to_owned();
    let unload = RepositoryModelUnloadRequest { model_name, ..Default::default() };
    let index = RepositoryIndexRequest::default();
    let (code, word) = (Code::PermissionDenied, "forbidden");
    assert_refused(client.repository_model_load(keyed(load.clone())).await, code, word);
    assert_refused(client.repository_model_unload(keyed(unload.clone())).await, code, word);
    assert_refused(client.repository_index(keyed(index.clone())).await, code, word);
    let key = client::DEMO_ADMIN_KEY;
    let listed = client.repository_index(with_key(index, key)).await.unwrap().into_inner();
    let versions: Vec<_> = listed.models.iter().map(|it| (&*it.version, &*it.state)).collect();
    assert_eq!(versions, [("1.0.0", "READY")]);
    client.repository_model_unload(with_key(unload, key)).await.unwrap();
    let ready = || ModelReadyRequest { name: "toxicity".to_owned(), version: String::new() };
    let answer = client.model_ready(keyed(ready())).await;
    assert!(!answer.is_ok_and(|answer| answer.into_inner().ready));
    client.repository_model_load(with_key(load, key)).await.unwrap();
    assert!(client.model_ready(keyed(ready())).await.unwrap().into_inner().ready);
    let model_name = "nobody".to_owned();
    let unknown = RepositoryModelLoadRequest { model_name, ..Default::default() };
    let status = client.repository_model_load(with_key(unknown, key)).await.unwrap_err();
    assert!(status.message().contains("failed to load"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_configuration_and_statistics_are_served() {
    let server = Server::start(&Setup::toxicity());
    let mut client = client(&server).await;
    let (name, version) = ("toxicity".to_owned(), "1".to_owned());
    let message = ModelMetadataRequest { name: name.clone(), version: version.clone() };
    let about = client.model_metadata(keyed(message)).await.unwrap().into_inner();
    assert_eq!(about.versions, ["1.0.0"]);
    let input = &about.inputs[0];
    assert_eq!((&*input.name, &*input.datatype, &input.shape), ("text", "BYTES", &vec![-1]));
    let message = ModelConfigRequest { name: name.clone(), version: version.clone() };
    let config = client.model_config(keyed(message)).await.unwrap().into_inner().config.unwrap();
    assert!(config.max_batch_size >= 1 && config.input[0].dims.is_empty(), "{config:?}");
    // TYPE_STRING
    assert_eq!(config.input[0].data_type, 13);
    client
        .model_infer(keyed(ModelInferRequest { model_version: version.clone(), ..nice() }))
        .await
        .unwrap();
    let message = ModelStatisticsRequest { name, version };
    let statistics = client.model_statistics(keyed(message)).await.unwrap().into_inner();
    let [statistics] = &statistics.model_stats[..] else { panic!("{statistics:?}") };
    assert_eq!((&*statistics.name, &*statistics.version), ("toxicity", "1.0.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_codes_reasons_and_messages() {
    let server = Server::start(&Setup::toxicity());
    let mut client = client(&server).await;
    let mut infer = async |message: ModelInferRequest| client.model_infer(keyed(message)).await;
    let unknown = ModelInferRequest { model_name: "nobody".to_owned(), ..nice() };
    let status = assert_refused(infer(unknown).await, Code::NotFound, "not_found");
    assert!(status.message().contains("Request for unknown model"), "{status:?}");
    let unknown = ModelInferRequest { model_version: "9".to_owned(), ..nice() };
    assert_refused(infer(unknown).await, Code::NotFound, "not_found");
    let malformed = ModelInferRequest { model_version: "one".to_owned(), ..nice() };
    assert_refused(infer(malformed).await, Code::InvalidArgument, "malformed_request");
    let rows = texts("toxicity", "text", &["good", "", "good", " "]);
    let status = assert_refused(infer(rows).await, Code::InvalidArgument, "unacceptable_input");
    let details = status.get_error_details();
    let fields = details.bad_request().unwrap().field_violations.iter();
    assert_eq!(fields.map(|it| &*it.field).collect::<Vec<_>>(), ["rows[1].text", "rows[3].text"]);
    assert!(details.retry_info().is_none(), "a retry would fail in the same way");
    let metadata = status.metadata();
    assert!(metadata.get("x-request-id").is_some() && metadata.get("x-model-version").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limited_call_gets_a_retry_delay() {
    let server = Server::start(&Setup::toxicity());
    let body =
        json!({"name": "slow", "scopes": ["predict:*"], "rate": {"per_second": 0.001, "burst": 1}});
    let key = server.admin("POST", "keys", &body).body["secret"].as_str().unwrap().to_owned();
    let mut client = client(&server).await;
    let first = client.model_infer(with_key(nice(), &key)).await.unwrap();
    assert!(first.metadata().get("ratelimit").is_some());
    let refused = client.model_infer(with_key(nice(), &key)).await;
    let status = assert_refused(refused, Code::ResourceExhausted, "rate_limited");
    assert!(status.metadata().get("retry-after").is_some(), "{status:?}");
    assert!(status.get_error_details().retry_info().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_methods_are_unimplemented_and_not_labels() {
    let server = Server::start(&Setup::toxicity());
    let mut grpc = tonic::client::Grpc::new(channel(&server).await);
    for path in ["/inference.GRPCInferenceService/MadeUp", "/made.Up/MadeUp", "/"] {
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<ServerLiveRequest, ServerLiveRequest>::default();
        let request = keyed(ServerLiveRequest {});
        let answer = grpc.unary(request, path.parse().unwrap(), codec).await;
        assert_refused(answer, Code::Unimplemented, "method_not_allowed");
    }
    // A request that is not gRPC gets 415.
    let url = format!("http://{}/healthz", server.grpc_address());
    let answer = guesthouse_tests::client::try_send("GET", &url, &[], b"");
    assert_eq!(answer, Some(415));
    server.wait_for("the log line", |line| line["status"] == 415);
    let logged = format!("{}{:?}", server.metrics(), server.lines());
    assert!(!logged.contains("MadeUp"), "{logged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn caller_data_is_not_logged_at_any_level() {
    const WORD: &str = "canary9f3a";
    let server = Server::start(&Setup { log: Some("trace".to_owned()), ..Setup::toxicity() });
    let mut client = client(&server).await;
    let word = || WORD.to_owned();
    let mut unknown_input = texts("toxicity", WORD, &[WORD]);
    unknown_input.id = word();
    let named = |version: &str| ModelInferRequest { model_version: version.to_owned(), ..nice() };
    let messages = [
        texts("toxicity", "text", &[WORD]),
        texts(WORD, "text", &[WORD]),
        unknown_input,
        named(WORD),
    ];
    for message in messages {
        let metadata = [("x-api-key", DEMO_KEY), ("x-other", WORD), ("user-agent", WORD)];
        let stream = tokio_stream::iter([message.clone()]);
        let _ = client.model_infer(with(message, &metadata)).await;
        let answers = client.model_stream_infer(with(stream, &metadata)).await.unwrap();
        let mut answers = answers.into_inner();
        while answers.message().await.unwrap().is_some() {}
    }
    let _ = client.model_infer(with(nice(), &[("x-api-key", WORD)])).await;
    let _ =
        client.model_infer(with(nice(), &[("x-api-key", DEMO_KEY), ("grpc-timeout", WORD)])).await;
    let message = ModelReadyRequest { name: word(), version: word() };
    let _ = client.model_ready(keyed(message)).await;
    let mut health = HealthClient::new(channel(&server).await);
    let _ = health.check(keyed(HealthCheckRequest { service: word() })).await;
    let (_, lines) = server.stop();
    assert!(lines.len() > 20, "{lines:?}");
    let logged = lines.iter().find(|line| line.to_string().contains(WORD));
    assert!(logged.is_none(), "{logged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_health_needs_no_key_and_model_health_does() {
    let server = Server::start(&Setup::toxicity());
    let mut client = HealthClient::new(channel(&server).await);
    let mut check = async |service: &str, key: Option<&str>| {
        let message = HealthCheckRequest { service: service.to_owned() };
        let headers: Vec<_> = key.iter().map(|key| ("x-api-key", *key)).collect();
        let answer = client.check(with(message, &headers)).await;
        answer.map(|answer| HealthCheckResponse::status(answer.get_ref())).map_err(|it| it.code())
    };
    for service in ["", "inference.GRPCInferenceService", "grpc.health.v1.Health"] {
        assert_eq!(check(service, None).await, Ok(ServingStatus::Serving), "{service}");
    }
    assert_eq!(check("toxicity", Some(DEMO_KEY)).await, Ok(ServingStatus::Serving));
    for (service, key) in
        [("toxicity", None), ("toxicity", Some("wrong")), ("nobody", Some(DEMO_KEY))]
    {
        assert_eq!(check(service, key).await, Err(Code::NotFound), "{service} {key:?}");
    }
}

/// Queries everything that reflection offers; returns the names of the services.
async fn reflect(server: &Server, key: &str) -> BTreeSet<String> {
    let mut client = ServerReflectionClient::new(channel(server).await);
    let ask = |question: MessageRequest| v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    };
    let questions = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("inference.GRPCInferenceService".to_owned())),
        ask(MessageRequest::FileContainingSymbol("inference.ModelInferRequest.id".to_owned())),
        ask(MessageRequest::FileByFilename("inference.proto".to_owned())),
        ask(MessageRequest::AllExtensionNumbersOfType("inference.ModelInferRequest".to_owned())),
        ask(MessageRequest::FileContainingSymbol("no.Such".to_owned())),
    ];
    let stream = tokio_stream::iter(questions);
    let mut answers =
        client.server_reflection_info(with_key(stream, key)).await.unwrap().into_inner();
    let mut next = async || answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = next().await else { panic!() };
    for _ in 0..3 {
        let MessageResponse::FileDescriptorResponse(file) = next().await else { panic!() };
        let [file] = &file.file_descriptor_proto[..] else { panic!() };
        let mut pool = prost_reflect::DescriptorPool::new();
        pool.decode_file_descriptor_proto(&file[..]).unwrap();
        let request = pool.get_message_by_name("inference.ModelInferRequest").unwrap();
        let message = prost_reflect::DynamicMessage::decode(request, &*nice().encode_to_vec());
        assert_eq!(message.unwrap().encode_to_vec(), nice().encode_to_vec());
    }
    assert!(matches!(next().await, MessageResponse::AllExtensionNumbersResponse(_)));
    let MessageResponse::ErrorResponse(error) = next().await else { panic!() };
    assert_eq!(error.error_code, i32::from(Code::NotFound));
    services.service.into_iter().map(|service| service.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_describes_all_services() {
    let server = Server::start(&Setup::toxicity());
    let services = reflect(&server, DEMO_KEY).await;
    for service in [
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ] {
        assert!(services.contains(service), "{service} is not in {services:?}");
    }
    let stream = || {
        use v1alpha::server_reflection_request::MessageRequest;
        let message_request = Some(MessageRequest::ListServices(String::new()));
        tokio_stream::iter([v1alpha::ServerReflectionRequest {
            host: String::new(),
            message_request,
        }])
    };
    let channel = channel(&server).await;
    let mut older = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let answers = older.server_reflection_info(keyed(stream())).await.unwrap();
    assert!(answers.into_inner().message().await.unwrap().is_some());
    let refused = older.server_reflection_info(stream()).await;
    assert_refused(refused, Code::Unauthenticated, "unauthorized");
}

#[test]
fn grpc_can_be_disabled() {
    let folder = guesthouse_tests::artifacts::temporary_folder();
    let config = folder.path().join("guesthouse.toml");
    std::fs::write(&config, "grpc_listen = \"off\"\n").unwrap();
    let config = config.to_string_lossy();
    let check = ["config", "check", "--config", &config];
    assert!(guesthouse_tests::artifacts::run_host(&check).status.success());
}
