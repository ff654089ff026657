//! An OpenTelemetry collector for tests: OTLP over gRPC, with the published message types on top of
//! `h2`.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::DEADLINE;

/// Receives spans until it is dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    received: Arc<Received>,
    _runtime: Runtime,
}

#[derive(Debug, Default)]
struct Received {
    messages: Mutex<Vec<ExportTraceServiceRequest>>,
    grown: Condvar,
}

impl Collector {
    /// Starts a collector on a free port.
    ///
    /// # Panics
    /// The system provides no port or no thread.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("there is a free port");
        let address = listener.local_addr().expect("the listener has an address");
        let received = Arc::<Received>::default();
        let destination = Arc::clone(&received);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&destination)));
            }
        });
        Self { address, received, _runtime: runtime }
    }

    /// The endpoint to put into a server's configuration.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until `wanted` accepts the spans received so far and returns them.
    ///
    /// # Panics
    /// That does not happen before the [deadline](crate::DEADLINE).
    pub fn wait_for(&self, wanted: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let deadline = Instant::now() + DEADLINE;
        let mut messages = self.received.messages.lock().expect("no test panics with the lock");
        loop {
            let resources = messages.iter().flat_map(|message| &message.resource_spans);
            let scopes = resources.flat_map(|resource| &resource.scope_spans);
            let spans: Vec<_> = scopes.flat_map(|scope| scope.spans.clone()).collect();
            if wanted(&spans) {
                return spans;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not within {DEADLINE:?}: spans {spans:#?}");
            let waited = self.received.grown.wait_timeout(messages, left);
            (messages, _) = waited.expect("no test panics with the lock");
        }
    }

    /// Everything received so far, in its debug form.
    ///
    /// # Panics
    /// Another thread panicked while it held the lock.
    pub fn everything(&self) -> String {
        format!("{:?}", self.received.messages.lock().expect("no test panics with the lock"))
    }
}

/// Serves one connection. Errors are ignored: they are the concern of the server under test.
async fn serve(stream: TcpStream, received: Arc<Received>) -> Option<()> {
    let mut connection = h2::server::handshake(stream).await.ok()?;
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let received = Arc::clone(&received);
        tokio::spawn(async move {
            let mut body = request.into_body();
            let mut bytes = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                bytes.extend_from_slice(&data);
            }
            // A gRPC message starts with five bytes: the compression flag and the length.
            let message = ExportTraceServiceRequest::decode(bytes.get(5..)?).ok()?;
            received.messages.lock().expect("no test panics with the lock").push(message);
            received.grown.notify_all();
            // Respond with an empty message and the status OK.
            let head = ureq::http::Response::builder().header("content-type", "application/grpc");
            let mut stream = respond.send_response(head.body(()).ok()?, false).ok()?;
            stream.send_data(vec![0; 5].into(), false).ok()?;
            let mut trailers = ureq::http::HeaderMap::new();
            trailers.insert("grpc-status", ureq::http::HeaderValue::from_static("0"));
            stream.send_trailers(trailers).ok()
        });
    }
    Some(())
}
