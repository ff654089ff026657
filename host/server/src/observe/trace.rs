//! Distributed tracing: W3C trace context in requests and responses, and spans for a collector
//! (OTLP over gRPC).
//!
//! Spans are created from times that are measured anyway, for sampled requests only; other requests
//! just have a trace id. Spans contain models, versions, endpoints and statuses, and no texts of
//! callers. Without the address of a collector, no spans are created. Spans wait in a bounded queue
//! that is sent by a separate thread: they are dropped if the queue is full or the collector does
//! not accept them in time.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span, SpanData,
    SpanExporter, SpanProcessor,
};

use guesthouse_runtime::clock;
use guesthouse_runtime::measure::Counter;
use guesthouse_runtime::stages::{RecordStage, Stage};

/// The most spans that wait to be sent: a second of some 400 sampled requests, about 2 MiB.
const QUEUED_SPANS: usize = 2048;

/// The most spans of one message: a quarter of the queue.
const MESSAGE_SPANS: usize = 512;

/// The interval between messages.
const SEND_INTERVAL: Duration = Duration::from_secs(1);

/// The timeout of a message. Only further spans wait for it.
const SEND_TIME: Duration = Duration::from_secs(3);

/// The longest `tracestate` that is propagated, in bytes; the specification requires at least this.
const MAX_STATE_LENGTH: usize = 512;

/// The settings of tracing.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// The address of the collector; without one, no spans are created.
    pub endpoint: Option<String>,
    /// The share of requests that are sampled, unless the caller has decided.
    pub sample: f64,
    /// The service name in spans.
    pub service: String,
}

/// Creates spans and sends them to the collector.
#[derive(Debug)]
pub struct Tracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    sent: Arc<SpanCounts>,
}

/// The counters of spans by outcome.
#[derive(Debug, Default)]
pub struct SpanCounts {
    /// Spans that the collector has accepted.
    pub exported: Counter,
    /// Spans that could not be sent.
    pub failed: Counter,
    /// Spans that were dropped because the queue was full.
    pub dropped: Counter,
    /// Spans in the queue.
    waiting: AtomicUsize,
}

impl Tracer {
    /// Create a tracer if the settings have the address of a collector. It connects later. Must be
    /// called on a tokio runtime, on which spans are sent.
    ///
    /// # Errors
    /// The address is invalid.
    pub fn start(settings: &TraceSettings) -> Result<Option<Self>, ExporterBuildError> {
        let Some(endpoint) = &settings.endpoint else { return Ok(None) };
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic();
        let exporter = exporter.with_endpoint(endpoint).with_timeout(SEND_TIME).build()?;
        let sent = Arc::<SpanCounts>::default();
        let exporter = CountingExporter { exporter, sent: Arc::clone(&sent) };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUED_SPANS)
            .with_max_export_batch_size(MESSAGE_SPANS)
            .with_scheduled_delay(SEND_INTERVAL);
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches.build());
        let sampler = Sampler::TraceIdRatioBased(settings.sample);
        let resource = Resource::builder_empty()
            .with_service_name(settings.service.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(CountingProcessor {
                queue: processor.build(),
                sent: Arc::clone(&sent),
            })
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("guesthouse");
        Ok(Some(Self { provider, tracer, sent }))
    }

    /// The counters of spans by outcome.
    pub fn span_counts(&self) -> &SpanCounts {
        &self.sent
    }

    /// Send the queued spans, for at most this time, and stop. Blocks.
    pub fn shutdown(&self, time: Duration) {
        // Failures are counted by the exporter.
        let _ = self.provider.shutdown_with_timeout(time);
    }
}

/// Counts the spans for which the queue has no room; the library drops them without a counter.
#[derive(Debug)]
struct CountingProcessor {
    queue: BatchSpanProcessor,
    sent: Arc<SpanCounts>,
}

impl SpanProcessor for CountingProcessor {
    fn on_start(&self, span: &mut Span, parent_context: &Context) {
        self.queue.on_start(span, parent_context);
    }

    fn on_end(&self, span: SpanData) {
        let waiting = &self.sent.waiting;
        if waiting.fetch_add(1, Ordering::Relaxed) >= QUEUED_SPANS {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return self.sent.dropped.count();
        }
        self.queue.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.queue.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.queue.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.queue.set_resource(resource);
    }
}

/// Counts the successes and failures of an exporter.
#[derive(Debug)]
struct CountingExporter {
    exporter: opentelemetry_otlp::SpanExporter,
    sent: Arc<SpanCounts>,
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let (count, spans) = (batch.len(), batch.len() as u64);
        let outcome = self.exporter.export(batch).await;
        let counter = if outcome.is_ok() { &self.sent.exported } else { &self.sent.failed };
        counter.add(spans);
        self.sent.waiting.fetch_sub(count, Ordering::Relaxed);
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// The trace context of a request.
#[derive(Debug, Clone)]
pub struct TraceContext {
    context: SpanContext,
    /// Whether the context is that of a span of this server instead of the caller's.
    is_ours: bool,
    trace: Option<Arc<RequestSpans>>,
}

impl TraceContext {
    /// Extract the caller's context from the headers `traceparent` and `tracestate`, and start a
    /// span if there is a tracer. Returns `None` if there is neither. Invalid headers are ignored.
    pub fn start(
        tracer: Option<&Tracer>,
        parent: Option<&str>,
        state: Option<&str>,
    ) -> Option<Self> {
        let parent = parent.and_then(|parent| parse(parent, state));
        let Some(Tracer { tracer, .. }) = tracer else {
            return parent.map(|context| Self { context, is_ours: false, trace: None });
        };
        let parent_context = match parent {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        let builder = tracer.span_builder("request").with_kind(SpanKind::Server);
        let (started, began) = (Instant::now(), clock::now());
        let root = tracer.build_with_context(builder.with_start_time(began), &parent_context);
        let context = root.span_context().clone();
        let trace = root.is_recording().then(|| {
            let (tracer, root) = (tracer.clone(), Mutex::new(Some(root)));
            Arc::new(RequestSpans { tracer, context: context.clone(), root, started, began })
        });
        Some(Self { context, is_ours: true, trace })
    }

    /// The trace id; its text form has 32 hexadecimal digits.
    pub fn trace_id(&self) -> TraceId {
        self.context.trace_id()
    }

    /// The spans of the request, if it is sampled.
    pub fn spans(&self) -> Option<Arc<RequestSpans>> {
        self.trace.clone()
    }

    /// The recorder of the request's stages, if it is sampled.
    pub fn recorder(&self) -> Option<Arc<dyn RecordStage>> {
        self.trace.clone().map(|trace| trace as _)
    }

    /// The value of the response header with the server's span, if there is one.
    pub fn response_header(&self) -> Option<String> {
        let (trace, span) = (self.context.trace_id(), self.context.span_id());
        let flags = self.context.trace_flags() & TraceFlags::SAMPLED;
        self.is_ours.then(|| format!("00-{trace}-{span}-{flags:02x}"))
    }
}

/// The headers of a trace context.
struct TraceHeaders<'a> {
    parent: &'a str,
    state: Option<&'a str>,
}

impl Extractor for TraceHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(self.parent),
            "tracestate" => self.state,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// The length of `traceparent` in version 00; later versions may append fields.
const PARENT_LENGTH: usize = 55;

/// Parse a trace context. Invalid headers are ignored.
fn parse(parent: &str, state: Option<&str>) -> Option<SpanContext> {
    let parent = parent.trim();
    // The library also accepts ids and flags of the wrong length, signs, and a trailing `-`.
    let (fields, more) = parent.split_at_checked(PARENT_LENGTH)?;
    let is_shaped = fields.split('-').map(str::len).eq([2, 32, 16, 2])
        && fields.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if !is_shaped || fields.starts_with("00-") && !more.is_empty() {
        return None;
    }
    let state = state.filter(|state| state.len() <= MAX_STATE_LENGTH);
    let headers = TraceHeaders { parent, state };
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

/// The spans of a sampled request.
pub struct RequestSpans {
    tracer: SdkTracer,
    context: SpanContext,
    /// Until the request is over.
    root: Mutex<Option<opentelemetry_sdk::trace::Span>>,
    started: Instant,
    began: SystemTime,
}

impl fmt::Debug for RequestSpans {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Trace").field(&self.context.trace_id()).finish()
    }
}

/// The attributes of a request's span.
#[derive(Debug)]
pub struct RequestSummary<'a> {
    /// The method, or a placeholder for unknown ones.
    pub method: &'static str,
    /// The pattern of the endpoint.
    pub route: Option<&'a str>,
    /// The response status.
    pub status: u16,
    /// The error code of an error response.
    pub error_code: Option<&'static str>,
    /// The model and the version, if the request was routed.
    pub version: Option<(&'a str, String)>,
    /// Why the version was chosen.
    pub reason: Option<&'static str>,
}

impl RequestSpans {
    /// End the request's span.
    pub fn finish(&self, summary: &RequestSummary<'_>) {
        let root = self.root.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut root) = root else { return };
        root.update_name(format!("{} {}", summary.method, summary.route.unwrap_or("none")));
        let text = |key: &'static str, value: &str| KeyValue::new(key, value.to_owned());
        root.set_attribute(text("http.request.method", summary.method));
        root.set_attribute(KeyValue::new("http.response.status_code", i64::from(summary.status)));
        if let Some(route) = summary.route {
            root.set_attribute(text("http.route", route));
        }
        if let Some((model, version)) = &summary.version {
            root.set_attribute(text("guesthouse.model", model));
            root.set_attribute(text("guesthouse.version", version));
        }
        if let Some(reason) = summary.reason {
            root.set_attribute(text("guesthouse.route_reason", reason));
        }
        if let Some(code) = summary.error_code {
            root.set_attribute(text("error.type", code));
        }
        if summary.status >= 500 {
            root.set_status(Status::error(""));
        }
        // By the same clock as the child spans.
        root.end_with_timestamp(self.began + self.started.elapsed());
    }
}

impl RecordStage for RequestSpans {
    fn record(&self, stage: Stage, since: Instant, until: Instant) {
        let parent_context = Context::new().with_remote_span_context(self.context.clone());
        let time = |at: Instant| self.began + at.saturating_duration_since(self.started);
        let builder = self.tracer.span_builder(stage.as_str()).with_start_time(time(since));
        let mut span = self.tracer.build_with_context(builder, &parent_context);
        span.end_with_timestamp(time(until));
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceState;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn a_valid_trace_context_is_extracted() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let context = parse(&parent, Some("vendor=value")).unwrap();
        assert_eq!(context.trace_id().to_string(), TRACE);
        assert_eq!(context.trace_state().get("vendor"), Some("value"));
        assert!(context.is_sampled());
        let later = parse(&format!("01-{TRACE}-{SPAN}-00-more"), None).unwrap();
        assert!(!later.is_sampled());
        let traced = TraceContext::start(None, Some(&parent), None).unwrap();
        assert_eq!(
            (traced.trace_id().to_string(), traced.response_header()),
            (TRACE.to_owned(), None)
        );
    }

    #[test]
    fn an_invalid_trace_context_is_ignored() {
        let (zeros, upper) = ("0".repeat(32), TRACE.to_uppercase());
        for garbage in [
            String::new(),
            "canary".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{upper}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-0"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{}-{SPAN}-001", &TRACE[1..]),
            format!("00-{}é-{SPAN}-01", &TRACE[..30]),
        ] {
            assert!(parse(&garbage, None).is_none(), "{garbage}");
            assert!(TraceContext::start(None, Some(&garbage), None).is_none(), "{garbage}");
        }
        let state = format!("a={}", "b".repeat(600));
        let context = parse(&format!("00-{TRACE}-{SPAN}-01"), Some(&state)).unwrap();
        assert_eq!(context.trace_state(), &TraceState::default());
    }
}
