//! One test for each promise of predictions, run over all four protocols.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::dynamic::{self, Service};
use guesthouse_tests::grpc::infer_parameter::ParameterChoice;
use guesthouse_tests::grpc::{InferParameter, ModelInferRequest};
use guesthouse_tests::{DEMO_KEY, HttpResponse, Server, Setup};
use prost_reflect::Value as Field;
use prost_reflect::prost::Message as _;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use crate::grpc;

/// More than any prediction takes.
const AMPLE_MS: u32 = 60_000;

#[derive(Debug, Clone, Copy)]
enum Protocol {
    Rest,
    OipRest,
    OipGrpc,
    /// The gRPC service made from the model's signature.
    Signature,
}

impl Protocol {
    const ALL: [Self; 4] = [Self::Rest, Self::OipRest, Self::OipGrpc, Self::Signature];
}

/// A request to the misbehaving model, within its first major version.
#[derive(Clone, Copy)]
struct Asked<'a> {
    action: &'a str,
    headers: &'a [(&'static str, &'a str)],
    /// Parameters of the Open Inference Protocol; fields of the body over REST.
    parameters: &'a [(&'a str, &'a str)],
}

fn asked(action: &str) -> Asked<'_> {
    Asked { action, headers: &[], parameters: &[] }
}

#[derive(Debug)]
struct Outcome {
    /// The error code, if it is an error.
    error: Option<String>,
    version: Option<String>,
    request_id: String,
    is_replay: bool,
    body: Vec<u8>,
}

impl Outcome {
    fn from_http(answer: &HttpResponse) -> Self {
        let header = |name| answer.header(name).map(str::to_owned);
        Self {
            error: answer.error_code().map(str::to_owned),
            version: header("x-model-version"),
            request_id: header("x-request-id").unwrap(),
            is_replay: header("idempotency-replayed").as_deref() == Some("true"),
            body: answer.body.to_string().into_bytes(),
        }
    }

    fn from_grpc<T>(outcome: Result<Response<T>, Status>, body: fn(&T) -> Vec<u8>) -> Self {
        let of = |metadata: &MetadataMap, error, body| {
            let header = |name| metadata.get(name).map(|it| it.to_str().unwrap().to_owned());
            Self {
                error,
                version: header("x-model-version"),
                request_id: header("x-request-id").unwrap(),
                is_replay: header("idempotency-replayed").as_deref() == Some("true"),
                body,
            }
        };
        match outcome {
            Ok(answer) => of(answer.metadata(), None, body(answer.get_ref())),
            Err(status) => of(status.metadata(), Some(grpc::reason(&status)), Vec::new()),
        }
    }
}

/// A server, and clients of all its protocols.
struct Clients {
    server: Server,
    runtime: Runtime,
    oip: grpc::Client,
    dynamic: dynamic::Client,
    service: Service,
}

impl Clients {
    fn start(setup: &Setup) -> Self {
        let server = Server::start(setup);
        let runtime = Runtime::new().unwrap();
        let (oip, dynamic) = runtime.block_on(async {
            let dynamic = dynamic::Client::connect(server.grpc_address(), DEMO_KEY).await;
            (grpc::client(&server).await, dynamic)
        });
        let name = "guesthouse.misbehave.v1.Misbehave";
        let service = runtime.block_on(dynamic.service(name)).unwrap();
        Self { server, runtime, oip, dynamic, service }
    }

    fn ask(&self, protocol: Protocol, asked: Asked<'_>) -> Outcome {
        match protocol {
            Protocol::Rest => {
                let mut body = json!({"action": asked.action});
                asked.parameters.iter().for_each(|(name, value)| body[*name] = json!(value));
                self.post("/models/misbehave/versions/1/predict", asked, &body)
            }
            Protocol::OipRest => {
                let parameters =
                    asked.parameters.iter().map(|(name, value)| ((*name).to_owned(), json!(value)));
                let body = json!({
                    "parameters": Value::Object(parameters.collect()),
                    "inputs": [{
                        "name": "action", "datatype": "BYTES", "shape": [1], "data": [asked.action],
                    }],
                });
                self.post("/v2/models/misbehave/versions/1/infer", asked, &body)
            }
            Protocol::OipGrpc => {
                let request = with_headers(Request::new(infer(asked)), asked);
                let answer = self.runtime.block_on(self.oip.clone().model_infer(request));
                Outcome::from_grpc(answer, |answer| answer.encode_to_vec())
            }
            Protocol::Signature => {
                let method = self.service.method("Predict");
                let action = Field::String(asked.action.to_owned());
                let message = self.service.request("Predict", &[("action", action)]);
                let request = with_headers(Request::new(message.encode_to_vec()), asked);
                let path = "/guesthouse.misbehave.v1.Misbehave/Predict";
                let answer = self.dynamic.raw(path, request, method.output());
                Outcome::from_grpc(self.runtime.block_on(answer), |answer| answer.encode_to_vec())
            }
        }
    }

    fn post(&self, path: &str, asked: Asked<'_>, body: &Value) -> Outcome {
        let headers = asked.headers.iter().map(|(name, value)| (*name, *value));
        let headers: Vec<_> = headers.collect();
        let answer = self.server.send("POST", path, &headers, body.to_string().as_bytes());
        Outcome::from_http(&answer)
    }

    fn get(&self, path: &str) -> HttpResponse {
        self.server.send("GET", path, &[], b"")
    }

    /// The version that answers.
    fn version(&self, protocol: Protocol, asked: Asked<'_>) -> String {
        let outcome = self.ask(protocol, asked);
        assert_eq!(outcome.error, None, "{protocol:?}: {outcome:?}");
        outcome.version.unwrap()
    }

    /// The version to which a caller with this key is routed.
    fn resolve(&self, key: &str) -> String {
        let answer = self.get(&format!("/models/misbehave/resolve?key={key}"));
        answer.body["version"].as_str().unwrap().to_owned()
    }

    /// How often something was done by all versions, by the statistics of the Open Inference Protocol.
    fn counted(&self, what: &str) -> u64 {
        let body = self.get("/v2/models/misbehave/stats").body;
        let versions = body["model_stats"].as_array().unwrap();
        let count = |version: &Value| match what {
            "executions" => version["execution_count"].as_u64().unwrap(),
            what => version["inference_stats"][what]["count"].as_u64().unwrap(),
        };
        versions.iter().map(count).sum()
    }
}

fn infer(asked: Asked<'_>) -> ModelInferRequest {
    let parameters = asked.parameters.iter().map(|(name, value)| {
        let choice = ParameterChoice::StringParam((*value).to_owned());
        ((*name).to_owned(), InferParameter { parameter_choice: Some(choice) })
    });
    ModelInferRequest {
        model_version: "1".to_owned(),
        parameters: parameters.collect(),
        ..grpc::texts("misbehave", "action", &[asked.action])
    }
}

fn with_headers<T>(mut request: Request<T>, asked: Asked<'_>) -> Request<T> {
    let key = [("x-api-key", DEMO_KEY)];
    for (name, value) in key.iter().chain(asked.headers) {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// Two versions, each with half of the traffic, and more lines for the model's section.
fn halves(folder: &Path, lines: &str) -> Setup {
    let artifacts = ["1.0.0", "1.1.0"]
        .map(|version| Misbehave { version, ..Misbehave::default() }.pack(folder))
        .to_vec();
    let config = format!(
        "default_model = \"misbehave\"\n[limits]\npredict_milliseconds = {AMPLE_MS}\n\
         [models.misbehave]\nsplit = {{ \"1.0.0\" = 500_000, \"1.1.0\" = 500_000 }}\n{lines}"
    );
    Setup { artifacts, config, ..Setup::default() }
}

#[test]
fn an_idempotency_key_gets_one_answer_over_every_protocol() {
    let folder = temporary_folder();
    let clients = Clients::start(&halves(folder.path(), ""));
    for protocol in Protocol::ALL {
        let key = format!("{protocol:?}");
        let headers = [("idempotency-key", key.as_str())];
        let named = |action| clients.ask(protocol, Asked { headers: &headers, ..asked(action) });
        // What fails is not kept, and leaves its key to another request.
        assert_eq!(named("fail").error.as_deref(), Some("model_failure"), "{protocol:?}");
        let first = named("echo");
        assert_eq!((&first.error, first.is_replay), (&None, false), "{protocol:?}: {first:?}");
        let executions = clients.counted("executions");
        // By chance, half of them would go to the other version.
        for _ in 0..10 {
            let again = named("echo");
            assert!(again.is_replay, "{protocol:?}: {again:?}");
            assert_eq!((&again.body, &again.version), (&first.body, &first.version));
            assert_ne!(again.request_id, first.request_id);
        }
        assert_eq!(clients.counted("executions"), executions, "{protocol:?}: nothing runs again");
        assert_eq!(named("print").error.as_deref(), Some("idempotency_mismatch"), "{protocol:?}");
        for other in Protocol::ALL.iter().filter(|other| **other as u8 != protocol as u8) {
            let outcome = clients.ask(*other, Asked { headers: &headers, ..asked("echo") });
            let word = outcome.error.as_deref();
            assert_eq!(word, Some("idempotency_mismatch"), "{protocol:?} then {other:?}");
        }
        let long = "x".repeat(129);
        let headers = [("idempotency-key", long.as_str())];
        let outcome = clients.ask(protocol, Asked { headers: &headers, ..asked("echo") });
        assert_eq!(outcome.error.as_deref(), Some("malformed_request"), "{protocol:?}");
        // Without a key, every request is a new one.
        assert!(!clients.ask(protocol, asked("echo")).is_replay);
    }
}

/// For callers that cannot set headers; a row of a model's own service has inputs and nothing else.
#[test]
fn an_idempotency_key_may_stand_beside_the_inputs() {
    let folder = temporary_folder();
    let clients = Clients::start(&halves(folder.path(), ""));
    for protocol in [Protocol::Rest, Protocol::OipRest, Protocol::OipGrpc] {
        let key = format!("{protocol:?}");
        let parameters = [("idempotency_key", key.as_str())];
        let named =
            |action| clients.ask(protocol, Asked { parameters: &parameters, ..asked(action) });
        let first = named("echo");
        assert_eq!((&first.error, first.is_replay), (&None, false), "{protocol:?}: {first:?}");
        let again = named("echo");
        assert!(again.is_replay, "{protocol:?}: {again:?}");
        assert_eq!((&again.body, &again.version), (&first.body, &first.version));
        assert_eq!(named("print").error.as_deref(), Some("idempotency_mismatch"), "{protocol:?}");
        let parameters = [("idempotency_key", "")];
        let outcome = clients.ask(protocol, Asked { parameters: &parameters, ..asked("echo") });
        assert_eq!(outcome.error.as_deref(), Some("malformed_request"), "{protocol:?}");
    }
}

#[test]
fn a_stream_with_an_idempotency_key_is_rejected() {
    let folder = temporary_folder();
    let clients = Clients::start(&halves(folder.path(), ""));
    let headers = [("idempotency-key", "a")];
    let named = Asked { headers: &headers, ..asked("echo") };
    let messages = tokio_stream::once(infer(named));
    let request = with_headers(Request::new(messages), named);
    let outcome = clients.runtime.block_on(clients.oip.clone().model_stream_infer(request));
    grpc::assert_refused(outcome.map(drop), Code::InvalidArgument, "malformed_request");
    let method = clients.service.method("PredictStream");
    let path = "/guesthouse.misbehave.v1.Misbehave/PredictStream";
    let request = with_headers(Request::new(Vec::new()), named);
    let outcome = clients.runtime.block_on(clients.dynamic.raw(path, request, method.output()));
    grpc::assert_refused(outcome, Code::InvalidArgument, "malformed_request");
}

#[test]
fn a_sampled_request_is_captured_over_every_protocol() {
    let folder = temporary_folder();
    let clients = Clients::start(&halves(folder.path(), "capture_share = 1.0\n"));
    for (index, protocol) in Protocol::ALL.into_iter().enumerate() {
        let outcome = clients.ask(protocol, asked("echo"));
        assert_eq!(clients.ask(protocol, asked("fail")).error.as_deref(), Some("model_failure"));
        let count = index + 1;
        clients.server.wait_for_metric(&format!(
            "guesthouse_captured_requests_total{{outcome=\"written\"}} {count}"
        ));
        let text = fs::read_to_string(clients.server.state().join("captures/capture.jsonl"));
        let last: Value = serde_json::from_str(text.unwrap().lines().last().unwrap()).unwrap();
        assert_eq!(last["request_id"], json!(outcome.request_id), "{protocol:?}");
        assert_eq!(
            (&last["model"], &last["version"]),
            (&json!("misbehave"), &json!(outcome.version))
        );
        for part in ["request", "response"] {
            let text = last.get(part).or_else(|| last.get(format!("{part}_base64"))).unwrap();
            assert!(text.to_string().len() > 8, "{protocol:?}: {last}");
        }
    }
}

#[test]
fn a_sticky_header_keeps_a_version_over_every_protocol() {
    let folder = temporary_folder();
    let clients = Clients::start(&halves(folder.path(), "sticky_header = \"X-User-Id\"\n"));
    let mut seen = BTreeSet::new();
    for user in ["0", "1", "2", "3", "4", "5", "6", "7"] {
        let resolved = clients.resolve(user);
        for protocol in Protocol::ALL {
            let headers = [("x-user-id", user)];
            let version = clients.version(protocol, Asked { headers: &headers, ..asked("echo") });
            assert_eq!(version, resolved, "{protocol:?} {user}");
        }
        seen.insert(resolved);
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    for protocol in Protocol::ALL {
        let version = |_| clients.version(protocol, asked("echo"));
        let versions: BTreeSet<_> = (0..40).map(version).collect();
        assert_eq!(versions.len(), 2, "{protocol:?}: without the header it goes by chance");
    }
}

/// The field is an input here, because a row of a model's own service has nothing else.
#[test]
fn a_sticky_field_keeps_a_version_over_every_protocol() {
    let folder = temporary_folder();
    let clients = Clients::start(&halves(folder.path(), "sticky_field = \"action\"\n"));
    for action in ["echo", "print"] {
        let resolved = clients.resolve(action);
        for protocol in Protocol::ALL {
            let parameters = [("action", action)];
            let parameters = match protocol {
                Protocol::OipRest | Protocol::OipGrpc => &parameters[..],
                Protocol::Rest | Protocol::Signature => &[],
            };
            for _ in 0..8 {
                let version = clients.version(protocol, Asked { parameters, ..asked(action) });
                assert_eq!(version, resolved, "{protocol:?} {action}");
            }
        }
    }
}

#[test]
fn statistics_count_every_step_over_every_protocol() {
    let folder = temporary_folder();
    let clients = Clients::start(&halves(folder.path(), ""));
    for protocol in Protocol::ALL {
        let steps = ["success", "queue", "compute_input", "compute_infer", "compute_output"];
        let before = steps.map(|step| clients.counted(step));
        assert_eq!(clients.ask(protocol, asked("echo")).error, None, "{protocol:?}");
        let counted = || steps.map(|step| clients.counted(step));
        clients.server.eventually("the request is counted", |_| counted()[0] > before[0]);
        assert_eq!(counted(), before.map(|count| count + 1), "{protocol:?}: {steps:?}");
    }
}

#[test]
fn a_deadline_ends_the_request_over_every_protocol() {
    let folder = temporary_folder();
    let clients = Clients::start(&halves(folder.path(), ""));
    for protocol in Protocol::ALL {
        let headers = [("x-request-timeout-ms", "300")];
        let outcome = clients.ask(protocol, Asked { headers: &headers, ..asked("spin") });
        assert_eq!(outcome.error.as_deref(), Some("deadline_exceeded"), "{protocol:?}");
        let headers = [("x-request-timeout-ms", "soon")];
        let outcome = clients.ask(protocol, Asked { headers: &headers, ..asked("echo") });
        assert_eq!(outcome.error.as_deref(), Some("malformed_request"), "{protocol:?}");
    }
}
