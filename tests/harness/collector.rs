//! A collector of traces: OTLP over gRPC, with the published messages over a published HTTP/2.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// The longest that a span may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes spans until it is dropped.
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
    /// Listen on a port of its own.
    ///
    /// # Panics
    /// The machine gives no port or no thread.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("there is a free port");
        let address = listener.local_addr().expect("it listens somewhere");
        let received = Arc::<Received>::default();
        let to = Arc::clone(&received);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&to)));
            }
        });
        Self { address, received, _runtime: runtime }
    }

    /// For the configuration of a server.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans, as soon as there is what is wanted of them.
    ///
    /// # Panics
    /// It does not come.
    pub fn wait_for(&self, wanted: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let deadline = Instant::now() + PATIENCE;
        let mut messages = self.received.messages.lock().expect("no test panics with the lock");
        loop {
            let resources = messages.iter().flat_map(|message| &message.resource_spans);
            let scopes = resources.flat_map(|resource| &resource.scope_spans);
            let spans: Vec<_> = scopes.flat_map(|scope| scope.spans.clone()).collect();
            if wanted(&spans) {
                return spans;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for spans: {spans:#?}");
            let waited = self.received.grown.wait_timeout(messages, left);
            (messages, _) = waited.expect("no test panics with the lock");
        }
    }

    /// Everything that came, as text.
    ///
    /// # Panics
    /// Another test has, with the lock.
    pub fn everything(&self) -> String {
        format!("{:?}", self.received.messages.lock().expect("no test panics with the lock"))
    }
}

/// How a connection ends concerns the server under test only.
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
            // Five bytes of gRPC's own come first: not compressed, and the length.
            let message = ExportTraceServiceRequest::decode(bytes.get(5..)?).ok()?;
            received.messages.lock().expect("no test panics with the lock").push(message);
            received.grown.notify_all();
            // An empty message, and that all is well.
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
