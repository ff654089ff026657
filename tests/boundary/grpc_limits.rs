use std::future::poll_fn;

use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::grpc::model_infer_request::InferInputTensor;
use guesthouse_tests::grpc::{ModelInferRequest, ServerLiveRequest};
use guesthouse_tests::{DEADLINE, DEMO_KEY, Server, Setup};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use prost::Message as _;
use prost::bytes::Bytes;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::grpc::{Client, assert_refused, client, keyed, nice, texts};

/// A client that controls each frame that it sends.
pub(crate) struct Caller(SendRequest<Bytes>);

/// A call whose request is still being sent.
pub(crate) struct Call {
    answer: ResponseFuture,
    body: SendStream<Bytes>,
}

impl Caller {
    pub(crate) async fn connect(server: &Server) -> Self {
        let stream = tokio::net::TcpStream::connect(server.grpc_address()).await.unwrap();
        let (requests, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self(requests.ready().await.unwrap())
    }

    pub(crate) fn begin(&mut self, method: &str, headers: &[(&str, &str)]) -> Call {
        let uri = format!("http://a/inference.GRPCInferenceService/{method}");
        let mut request = tonic::codegen::http::Request::post(uri);
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
            request = request.header(name, value);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (answer, body) = self.0.send_request(request.body(()).unwrap(), false).unwrap();
        Call { answer, body }
    }
}

impl Call {
    /// Sends a complete message, which may be the last one.
    pub(crate) fn send(&mut self, message: &[u8], is_last: bool) {
        self.send_part(message, message.len(), is_last);
    }

    /// Sends the beginning of a message with this announced length.
    fn send_part(&mut self, part: &[u8], length: usize, is_last: bool) {
        let length = u32::try_from(length).unwrap().to_be_bytes();
        let bytes = [&[0][..], &length, part].concat();
        self.body.send_data(bytes.into(), is_last).unwrap();
    }

    /// Waits for the end of the call; returns its code and its reason.
    pub(crate) async fn end(self) -> (Code, Option<String>) {
        let answer = tokio::time::timeout(DEADLINE, self.answer).await;
        let (parts, mut body) = answer.unwrap().unwrap().into_parts();
        let mut headers = parts.headers;
        if !headers.contains_key("grpc-status") {
            headers = trailers(&mut body).await;
        }
        let status = Status::from_header_map(&headers).unwrap();
        let details = status.get_error_details();
        (status.code(), details.error_info().map(|info| info.reason.clone()))
    }
}

async fn trailers(body: &mut RecvStream) -> tonic::codegen::http::HeaderMap {
    while let Some(data) = body.data().await {
        let length = data.unwrap().len();
        body.flow_control().release_capacity(length).unwrap();
    }
    poll_fn(|context| body.poll_trailers(context)).await.unwrap().unwrap()
}

fn setup(limits: &str) -> Setup {
    let mut setup = Setup::toxicity();
    setup.config.push_str(&format!("\n[limits]\n{limits}\n"));
    setup
}

fn refused(code: Code, word: &str) -> (Code, Option<String>) {
    (code, Some(word.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_message_limit_applies_to_compressed_messages() {
    let folder = temporary_folder();
    let mut setup = Setup::fixtures(folder.path(), &["identity_bytes"]);
    setup.config = setup.config.replace("[limits]", "[limits]\nbody_bytes = 100000");
    let server = Server::start(&setup);
    let plain = client(&server).await;
    let packed = |encoding| plain.clone().send_compressed(encoding).accept_compressed(encoding);
    let mut clients =
        [plain.clone(), packed(CompressionEncoding::Gzip), packed(CompressionEncoding::Deflate)];
    let message = |length: usize| {
        let mut message = texts("identity_bytes", "INPUT0", &[&"a".repeat(length)]);
        message.inputs[0].shape = vec![1, 1];
        message
    };
    for (number, client) in clients.iter_mut().enumerate() {
        let answer = client.model_infer(keyed(message(90_000))).await.unwrap();
        // Clients that compress requests get compressed responses.
        let encoding =
            answer.metadata().get("grpc-encoding").map(|it| it.to_str().unwrap().to_owned());
        assert_eq!(encoding.as_deref(), [None, Some("gzip"), Some("deflate")][number]);
        assert_eq!(answer.into_inner().raw_output_contents[0].len(), 90_004);
        for length in [100_000, 4 << 20] {
            let outcome = client.model_infer(keyed(message(length))).await;
            assert_refused(outcome, Code::ResourceExhausted, "payload_too_large");
        }
    }
    // A client that only accepts compression gets an uncompressed response.
    let mut taking = plain.clone().accept_compressed(CompressionEncoding::Gzip);
    let answer = taking.model_infer(keyed(message(90_000))).await.unwrap();
    assert!(answer.metadata().get("grpc-encoding").is_none());
    // An encoding that the server does not support.
    let mut unknown = keyed(message(1));
    unknown.metadata_mut().insert("grpc-encoding", "br".parse().unwrap());
    let outcome = taking.model_infer(unknown).await;
    assert_refused(outcome, Code::Unimplemented, "unsupported_media_type");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_decode_to_many_values_are_rejected() {
    let server = Server::start(&Setup::toxicity());
    let mut client = client(&server).await;
    client.model_infer(keyed(nice())).await.unwrap();
    let before = server.peak_memory_bytes();
    // Two bytes each on the wire, and hundreds in memory.
    let empty = ModelInferRequest { inputs: vec![InferInputTensor::default(); 3 << 20], ..nice() };
    assert!(empty.encoded_len() < 8 << 20);
    let outcome = client.model_infer(keyed(empty)).await;
    assert_refused(outcome, Code::ResourceExhausted, "payload_too_large");
    let grown = server.peak_memory_bytes().saturating_sub(before);
    assert!(grown < 100 << 20, "{grown} bytes more");
    let mut many = nice();
    many.raw_input_contents = vec![Vec::new(); 3 << 20];
    let outcome = client.model_infer(keyed(many)).await;
    assert_refused(outcome, Code::ResourceExhausted, "payload_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_fail_their_own_call() {
    let server = Server::start(&Setup::toxicity());
    let mut caller = Caller::connect(&server).await;
    let headers = [("x-api-key", DEMO_KEY)];
    let mut garbage = caller.begin("ModelInfer", &headers);
    garbage.send(b"\xff\xff\xff", true);
    assert_eq!(garbage.end().await, refused(Code::InvalidArgument, "malformed_request"));
    let mut cut_off = caller.begin("ModelInfer", &headers);
    cut_off.send_part(b"half", 1000, true);
    assert_eq!(cut_off.end().await, refused(Code::InvalidArgument, "malformed_request"));
    let mut empty = caller.begin("ModelInfer", &headers);
    empty.body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(empty.end().await, refused(Code::InvalidArgument, "malformed_request"));
    let mut in_stream = caller.begin("ModelStreamInfer", &headers);
    in_stream.send(b"\xff\xff\xff", false);
    assert_eq!(in_stream.end().await, refused(Code::InvalidArgument, "malformed_request"));
    let mut second = caller.begin("ModelInfer", &headers);
    second.send(&nice().encode_to_vec(), false);
    second.send(&nice().encode_to_vec(), true);
    assert_eq!(second.end().await, refused(Code::InvalidArgument, "malformed_request"));
    let mut late = caller.begin("ModelInfer", &[("x-api-key", DEMO_KEY), ("grpc-timeout", "1x")]);
    late.send(&nice().encode_to_vec(), true);
    assert_eq!(late.end().await, refused(Code::InvalidArgument, "malformed_request"));
    let mut good = caller.begin("ModelInfer", &headers);
    good.send(&nice().encode_to_vec(), true);
    assert_eq!(good.end().await.0, Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn unauthorized_calls_fail_before_the_message_arrives() {
    let server = Server::start(&setup("body_seconds = 3600"));
    let mut caller = Caller::connect(&server).await;
    for method in ["ModelInfer", "ModelStreamInfer", "ModelReady"] {
        let call = caller.begin(method, &[]);
        assert_eq!(call.end().await, refused(Code::Unauthenticated, "unauthorized"), "{method}");
    }
    let mut large = caller.begin("ModelInfer", &[("x-api-key", DEMO_KEY)]);
    large.send_part(b"", 100 << 20, false);
    assert_eq!(large.end().await, refused(Code::ResourceExhausted, "payload_too_large"));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_messages_time_out() {
    let server = Server::start(&setup("body_seconds = 1"));
    let mut caller = Caller::connect(&server).await;
    let headers = [("x-api-key", DEMO_KEY)];
    let nothing = caller.begin("ModelInfer", &headers);
    let mut half = caller.begin("ModelInfer", &headers);
    half.send_part(b"half", 1000, false);
    let mut open_ended = caller.begin("ModelInfer", &headers);
    open_ended.send(&nice().encode_to_vec(), false);
    let mut in_stream = caller.begin("ModelStreamInfer", &headers);
    in_stream.send_part(b"half", 1000, false);
    for call in [nothing, half, open_ended, in_stream] {
        assert_eq!(call.end().await, refused(Code::DeadlineExceeded, "request_timeout"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_count_as_bodies_in_flight() {
    let limits = "body_bytes = 200000\nbodies_in_flight_bytes = 200000\nbody_seconds = 3600";
    let server = Server::start(&setup(limits));
    let mut caller = Caller::connect(&server).await;
    let mut large = caller.begin("ModelStreamInfer", &[("x-api-key", DEMO_KEY)]);
    large.send_part(&[0; 50_000], 190_000, false);
    // Fills the rest of the flow-control window.
    large.body.send_data(Bytes::from(vec![0; 139_000]), false).unwrap();
    let wait_until_held = |bytes: usize| {
        let wanted = format!("guesthouse_bodies_in_flight_bytes{{}} {bytes}");
        server.eventually(&wanted, |server| server.metrics().lines().any(|line| line == wanted));
    };
    tokio::task::block_in_place(|| wait_until_held(189_000));
    let mut client = client(&server).await;
    let message = texts("toxicity", "text", &[&"a".repeat(20_000)]);
    let outcome = client.model_infer(keyed(message)).await;
    let status = assert_refused(outcome, Code::Unavailable, "overloaded");
    assert!(status.get_error_details().retry_info().is_some());
    client.server_live(ServerLiveRequest {}).await.unwrap();
    drop((large, caller));
    tokio::task::block_in_place(|| wait_until_held(0));
    client.model_infer(keyed(nice())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_use_tls_if_a_certificate_is_configured() {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let pair = rcgen::generate_simple_self_signed(names).unwrap();
    let folder = temporary_folder();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let certificate = file("certificate.pem", pair.cert.pem());
    let key = file("key.pem", pair.signing_key.serialize_pem());
    let mut setup = Setup::toxicity();
    setup.config.push_str(&format!("\n[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n"));
    let server = Server::start(&setup);
    let url = format!("https://localhost:{}", server.grpc_address().port());
    let trusting = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pair.cert.pem()));
    let endpoint = Channel::from_shared(url.clone()).unwrap().tls_config(trusting).unwrap();
    let mut client = Client::new(endpoint.connect().await.unwrap());
    client.model_infer(keyed(nice())).await.unwrap();
    let stranger = Channel::from_shared(url).unwrap().tls_config(ClientTlsConfig::new()).unwrap();
    assert!(stranger.connect().await.is_err());
    let plain = format!("http://{}", server.grpc_address());
    let mut plain = Client::new(Channel::from_shared(plain).unwrap().connect_lazy());
    assert!(plain.server_live(ServerLiveRequest {}).await.is_err());
}
