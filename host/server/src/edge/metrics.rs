//! `GET /metrics`: measurements for Prometheus, rendered at each scrape from what is loaded, so that an
//! unloaded version leaves no series behind. A page over a mebibyte (some hundred versions) is rendered
//! at most once a second. It needs no key unless the configuration says so, and contains nothing about
//! callers.
//!
//! Labels are names of models, versions and routes and words of the program, never text that a client
//! sends, so the number of series is bounded by what is loaded.
//!
//! There are two text formats. `prometheus-client` writes OpenMetrics (and protobuf) and not the older
//! text format 0.0.4, which clients get that do not ask for OpenMetrics, `curl` among them; the formats
//! differ in the comments only, so [`text_format`] rewrites those. The `prometheus` crate writes 0.0.4 and
//! no OpenMetrics, and keeps series in a registry of its own, from which those of unloaded versions would
//! have to be removed.

mod families;
mod process;
mod server;
mod shadow;
mod text_format;
mod versions;

use std::fmt;
use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::{ACCEPT, VARY};
use axum::http::request::Parts;
use axum::response::Response;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

pub use self::families::reference;
use self::families::{Family, PREFIX};
use self::versions::Versions;
use super::pages::{ModelScope, PageContent, PageKey, PageKind};
use super::request_log::RequestLog;
use super::state::{Edge, EdgeState};
use guesthouse_model::VersionId;

/// The content type of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The content type of the older text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `GET /metrics`
pub(super) async fn metrics(State(edge): EdgeState, parts: Parts) -> Response {
    let mut log = RequestLog::new(&parts.headers, &parts.extensions);
    let outcome = async {
        if edge.policy.load().metrics.needs_key {
            edge.admit_scraper(&parts.headers, &mut log)?;
        }
        let accept = parts.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let is_open_metrics = wants_open_metrics(&accept.collect::<Vec<_>>().join(","));
        let key =
            PageKey::new(PageKind::Metrics { is_open_metrics }, ModelScope::All, &parts.headers);
        let of_edge = Arc::clone(&edge);
        let page = edge.page(key, move |_, _| Ok(content(of_edge, is_open_metrics))).await?;
        let mut response = page.respond(&parts.headers);
        response.headers_mut().append(VARY, HeaderValue::from_static("accept"));
        Ok(response)
    };
    let outcome = outcome.await;
    log.attach_to(outcome)
}

fn content(edge: Arc<Edge>, is_open_metrics: bool) -> PageContent {
    let mut of_server = Registry::with_prefix(PREFIX);
    of_server.register_collector(Box::new(Page(edge)));
    // The names of process metrics have no prefix in any program.
    let mut of_process = Registry::default();
    of_process.register_collector(Box::new(process::Process::read()));
    let mut page = String::new();
    text::encode_registry(&mut page, &of_server).expect("a string can be written to");
    text::encode(&mut page, &of_process).expect("a string can be written to");
    let (content_type, page) = if is_open_metrics {
        (OPEN_METRICS, page)
    } else {
        (TEXT, text_format::from_open_metrics(&page))
    };
    PageContent { content_type, bytes: page.into_bytes() }
}

/// Whether a client accepts OpenMetrics and does not prefer the older format, which is the default.
fn wants_open_metrics(accept: &str) -> bool {
    let weight = |wanted: &[&str]| {
        let ranges = accept.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next()?.to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q="));
            let weight: f64 = weight.map_or(Some(1.0), |weight| weight.parse().ok())?;
            wanted.contains(&name.as_str()).then_some(weight)
        });
        ranges.fold(0.0, f64::max)
    };
    let open_metrics = weight(&["application/openmetrics-text"]);
    open_metrics > 0.0 && open_metrics >= weight(&["text/plain", "text/*"])
}

/// All series but those of the process.
struct Page(Arc<Edge>);

impl fmt::Debug for Page {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Page")
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let versions = Versions::new(&self.0);
        let mut shadows = self.0.shadows.counts();
        shadows.retain(|(model, counts)| {
            versions.contains(&VersionId { name: model.clone(), version: counts.candidate.clone() })
        });
        server::encode(&self.0, &mut encoder)?;
        versions.encode(&mut encoder)?;
        shadow::Shadow(shadows).encode(&mut encoder)
    }
}

/// The labels of a series.
type Labels = Vec<(&'static str, String)>;

/// Write one family, unless it has no series.
fn write<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    family: &Family,
    series: impl IntoIterator<Item = (Labels, M)>,
) -> fmt::Result {
    let mut series = series.into_iter().peekable();
    let Some((_, first)) = series.peek() else { return Ok(()) };
    let metric_type = first.metric_type();
    debug_assert!(family.kind.matches(metric_type), "{family:?} has series of another type");
    let Family { name, unit, help, labels: family_labels, .. } = family;
    // A scrape is plain text.
    let help = help.replace('`', "");
    let mut family = encoder.encode_descriptor(name, &help, unit.as_ref(), metric_type)?;
    for (labels, metric) in series {
        debug_assert!(
            labels.iter().map(|(name, _)| *name).eq(family_labels.iter().copied()),
            "{name}: {labels:?}"
        );
        metric.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(value: usize) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

/// A histogram: the sum of all values, and the count of each bucket by its upper bound.
struct Times((f64, Vec<(f64, u64)>));

impl EncodeMetric for Times {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let (sum, buckets) = &self.0;
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_sent_only_when_accepted() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                          version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, wanted) in [
            ("", false),
            ("*/*", false),
            ("text/plain", false),
            ("application/json", false),
            (prometheus, true),
            ("application/openmetrics-text", true),
            ("Application/OpenMetrics-Text; q=0.2, */*", true),
            ("application/openmetrics-text;q=0.2,text/plain;q=0.3", false),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text;q=x", false),
        ] {
            assert_eq!(wants_open_metrics(accept), wanted, "{accept}");
        }
    }
}
