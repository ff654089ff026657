//! Traces of requests: W3C trace context in and out, and spans to a collector (OTLP over gRPC).
//!
//! Spans are made from times that are measured anyway, for requests that are sampled; for others there
//! is a trace id and nothing else. They carry models, versions, endpoints and statuses, and no text of a
//! caller. Without a collector's address nothing of this runs. Spans wait in a bounded queue, which is
//! sent by a thread of its own: what does not fit, and what a collector does not take in time, is lost.

use std::fmt;
use std::str::FromStr as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
    TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span, SpanData,
    SpanExporter, SpanProcessor,
};

use guesthouse_runtime::clock;
use guesthouse_runtime::measure::Counter;
use guesthouse_runtime::stages::{RecordStage, Stage};

/// Spans that wait to be sent: a second of some 400 sampled requests, about 2 MiB.
const QUEUED_SPANS: usize = 2048;

/// Spans of one message: a quarter of the queue.
const MESSAGE_SPANS: usize = 512;

/// How long spans wait for others.
const SEND_INTERVAL: Duration = Duration::from_secs(1);

/// How long a collector may take for a message. Nobody waits for it but the spans behind.
const SEND_TIME: Duration = Duration::from_secs(3);

/// The longest `tracestate` that is passed on, in bytes; the specification asks for as much.
const MAX_STATE_LENGTH: usize = 512;

/// Where spans go, and of which requests.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// The collector's address; without one, there are no spans.
    pub endpoint: Option<String>,
    /// The share of requests that are sampled, unless whoever called has decided.
    pub sample: f64,
    /// What the server calls itself.
    pub service: String,
}

/// The source of spans.
#[derive(Debug)]
pub struct Tracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    sent: Arc<SpanCounts>,
}

/// What became of spans.
#[derive(Debug, Default)]
pub struct SpanCounts {
    /// The collector has taken them.
    pub exported: Counter,
    /// It has not.
    pub failed: Counter,
    /// There was no room for them.
    pub dropped: Counter,
    /// Neither yet.
    waiting: AtomicUsize,
}

impl Tracer {
    /// A tracer, if there is a collector's address. Nobody connects yet. Must be called on a runtime,
    /// on which the sending takes place.
    ///
    /// # Errors
    /// The address is none.
    pub fn start(settings: &TraceSettings) -> Result<Option<Self>, ExporterBuildError> {
        let Some(endpoint) = &settings.endpoint else { return Ok(None) };
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic();
        let exporter = exporter.with_endpoint(endpoint).with_timeout(SEND_TIME).build()?;
        let sent = Arc::<SpanCounts>::default();
        let exporter = Counting { exporter, sent: Arc::clone(&sent) };
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
            .with_span_processor(Bounded { queue: processor.build(), sent: Arc::clone(&sent) })
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("guesthouse");
        Ok(Some(Self { provider, tracer, sent }))
    }

    /// What became of spans.
    pub fn span_counts(&self) -> &SpanCounts {
        &self.sent
    }

    /// Send what waits, for that long at most. Blocks.
    pub fn shutdown(&self, time: Duration) {
        // Counted where it fails.
        let _ = self.provider.shutdown_with_timeout(time);
    }
}

/// A queue that counts what it has no room for, which the library's own does for nobody to see.
#[derive(Debug)]
struct Bounded {
    queue: BatchSpanProcessor,
    sent: Arc<SpanCounts>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, around: &Context) {
        self.queue.on_start(span, around);
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

/// An exporter whose successes and failures are counted.
#[derive(Debug)]
struct Counting {
    exporter: opentelemetry_otlp::SpanExporter,
    sent: Arc<SpanCounts>,
}

impl SpanExporter for Counting {
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

/// What a request belongs to, as its caller or the tracer says.
#[derive(Debug, Clone)]
pub struct TraceContext {
    context: SpanContext,
    /// Whether the context is that of a span of ours, rather than the caller's.
    is_ours: bool,
    trace: Option<Arc<RequestSpans>>,
}

impl TraceContext {
    /// What the headers `traceparent` and `tracestate` say, and the tracer makes of it. Nothing, if
    /// neither knows of a trace; what is no trace context counts as not there.
    pub fn start(
        tracer: Option<&Tracer>,
        parent: Option<&str>,
        state: Option<&str>,
    ) -> Option<Self> {
        let parent = parent.and_then(|parent| parse(parent, state));
        let Some(Tracer { tracer, .. }) = tracer else {
            return parent.map(|context| Self { context, is_ours: false, trace: None });
        };
        let around = match parent {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        let builder = tracer.span_builder("request").with_kind(SpanKind::Server);
        let (started, began) = (Instant::now(), clock::now());
        let root = tracer.build_with_context(builder.with_start_time(began), &around);
        let context = root.span_context().clone();
        let trace = root.is_recording().then(|| {
            let (tracer, root) = (tracer.clone(), Mutex::new(Some(root)));
            Arc::new(RequestSpans { tracer, context: context.clone(), root, started, began })
        });
        Some(Self { context, is_ours: true, trace })
    }

    /// Thirty-two hexadecimal digits.
    pub fn trace_id(&self) -> TraceId {
        self.context.trace_id()
    }

    /// Where the spans of the request go, if it is sampled.
    pub fn spans(&self) -> Option<Arc<RequestSpans>> {
        self.trace.clone()
    }

    /// Where the stages of the request go, if it is sampled.
    pub fn recorder(&self) -> Option<Arc<dyn RecordStage>> {
        self.trace.clone().map(|trace| trace as _)
    }

    /// The value of the header that tells the caller of the server's place in the trace, if it has one.
    pub fn response_header(&self) -> Option<String> {
        let (trace, span) = (self.context.trace_id(), self.context.span_id());
        let flags = self.context.trace_flags() & TraceFlags::SAMPLED;
        self.is_ours.then(|| format!("00-{trace}-{span}-{flags:02x}"))
    }
}

/// A trace context by its headers: version 00 of the specification, and of later ones what is the same.
fn parse(parent: &str, state: Option<&str>) -> Option<SpanContext> {
    let mut parts = parent.trim().split('-');
    let mut part = |length: usize| {
        let part = parts.next()?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (part.len() == length && part.bytes().all(is_hex)).then_some(part)
    };
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    if version == "ff" || version == "00" && parts.next().is_some() {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let state = state.filter(|state| state.len() <= MAX_STATE_LENGTH);
    let state = state.and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default();
    Some(SpanContext::new(trace, span, flags, true, state)).filter(SpanContext::is_valid)
}

/// The spans of one sampled request.
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

/// What the line of a request says, for its span.
#[derive(Debug)]
pub struct RequestSummary<'a> {
    /// A known one.
    pub method: &'static str,
    /// The endpoint's pattern.
    pub route: Option<&'a str>,
    /// Of the answer.
    pub status: u16,
    /// Why there is an error.
    pub error_code: Option<&'static str>,
    /// Model and version, if one was chosen.
    pub version: Option<(&'a str, String)>,
    /// Why it was chosen.
    pub reason: Option<&'static str>,
}

impl RequestSpans {
    /// The request is over.
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
        // By the clock that its parts are timed by.
        root.end_with_timestamp(self.began + self.started.elapsed());
    }
}

impl RecordStage for RequestSpans {
    fn record(&self, stage: Stage, since: Instant, until: Instant) {
        let around = Context::new().with_remote_span_context(self.context.clone());
        let time = |at: Instant| self.began + at.saturating_duration_since(self.started);
        let builder = self.tracer.span_builder(stage.as_str()).with_start_time(time(since));
        let mut span = self.tracer.build_with_context(builder, &around);
        span.end_with_timestamp(time(until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn a_good_context_is_understood() {
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
    fn garbage_is_no_context() {
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
