//! The table of all metric families. Collectors write series of these and of nothing else, and the
//! reference of metrics is printed from it.

use std::fmt::Write as _;

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// What all names but those of the process begin with.
pub(super) const PREFIX: &str = "guesthouse";

/// A metric family.
#[derive(Debug)]
pub(super) struct Family {
    /// The name without prefix, unit and suffix.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) unit: Option<Unit>,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

/// The type of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(super) fn matches(self, metric_type: MetricType) -> bool {
        matches!(
            (self, metric_type),
            (Self::Counter, MetricType::Counter)
                | (Self::Gauge, MetricType::Gauge)
                | (Self::Histogram, MetricType::Histogram)
        )
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Family {
    /// The name in a scrape, without `_bucket`, `_sum` and `_count`.
    fn full_name(&self, prefix: &str) -> String {
        let unit = self.unit.as_ref().map(|unit| format!("_{}", unit.as_str())).unwrap_or_default();
        let suffix = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("{prefix}{}{unit}{suffix}", self.name)
    }
}

/// A constant for each family, and the list of all of them.
macro_rules! families {
    ($list:ident; $($constant:ident = $kind:ident $name:literal $unit:expr, $labels:expr, $help:literal;)*) => {
        $(pub(super) const $constant: Family = Family {
            name: $name,
            kind: Kind::$kind,
            unit: $unit,
            labels: &$labels,
            help: $help,
        };)*

        const $list: &[Family] = &[$($constant),*];
    };
}

const SECONDS: Option<Unit> = Some(Unit::Seconds);
const BYTES: Option<Unit> = Some(Unit::Bytes);

families! { OF_SERVER;
    BUILD_INFO = Gauge "build_info" None, ["version"], "The version of the program, as a constant 1";
    READY = Gauge "ready" None, [], "Whether the server is ready, as `/readyz` reports";
    HTTP_REQUESTS = Counter "http_requests" None, ["listener", "route", "code"],
        "Responses by endpoint and status; 499: the client left before the response";
    GRPC_CALLS = Counter "grpc_calls" None, ["method", "grpc_status"],
        "Completed gRPC calls by method and status";
    HTTP_ERRORS = Counter "http_errors" None, ["listener", "error_code"],
        "Error responses by error code";
    HTTP_REQUESTS_IN_FLIGHT = Gauge "http_requests_in_flight" None, ["listener"],
        "Requests without a response yet";
    AUTH_FAILURES = Counter "auth_failures" None, ["reason"],
        "Requests without a key that is valid for them, by reason";
    CONNECTIONS_OPEN = Gauge "connections_open" None, ["listener"], "Open connections";
    CONNECTIONS_ACCEPTED = Counter "connections_accepted" None, ["listener"],
        "Connections accepted since the start";
    BODIES_IN_FLIGHT = Gauge "bodies_in_flight" BYTES, [],
        "Request bodies that are being read or answered";
    BODIES_IN_FLIGHT_LIMIT = Gauge "bodies_in_flight_limit" BYTES, [],
        "The limit of request bodies that are being read or answered";
    DEPLOYMENTS = Counter "deployments" None, ["outcome"], "Completed deployments by outcome";
    DEPLOY_STEPS = Counter "deploy_steps" None, ["step", "outcome"],
        "Completed steps of making versions servable";
    DEPLOY_STEP_SECONDS = Counter "deploy_step" SECONDS, ["step", "outcome"],
        "Total time of the steps of making versions servable";
    LOG_LINES_DROPPED = Counter "log_lines_dropped" None, [],
        "Log lines dropped because the reader of the log was too slow";
    CAPTURED_REQUESTS = Counter "captured_requests" None, ["outcome"],
        "Requests sampled for the capture files, by outcome";
    SPANS = Counter "spans" None, ["outcome"],
        "Spans for the trace collector, by outcome; only with a collector";
    REQUESTS = Counter "requests" None, ["model", "version", "role", "route", "protocol", "code"],
        "Requests routed to a version, by status";
    REQUEST_DURATION = Histogram "request_duration" SECONDS, ["model", "version", "role"],
        "Time from the head of a request to its response";
    QUEUE_DURATION = Histogram "queue_duration" SECONDS, ["model", "version"],
        "Time that a batch waits for an inference thread";
    INSTANTIATE_DURATION = Histogram "instantiate_duration" SECONDS, ["model", "version"],
        "Time to get an instance for a batch";
    PREDICT_DURATION = Histogram "predict_duration" SECONDS, ["model", "version"],
        "Time that the guest computes for a batch";
    ENCODE_DURATION = Histogram "encode_duration" SECONDS, ["model", "version"],
        "Time to encode a response";
    BATCH_SIZE_ROWS = Histogram "batch_size_rows" None, ["model", "version"],
        "Rows per call of a guest";
    REQUESTS_IN_FLIGHT = Gauge "requests_in_flight" None, ["model", "version"],
        "Requests of a version that are queued or running";
    CONCURRENCY_LIMIT = Gauge "concurrency_limit" None, ["model", "version"],
        "Requests of a version that may be queued or running, adapted to the queue times";
    QUEUE_DEPTH = Gauge "queue_depth" None, ["model", "version"],
        "Batches of a version that wait for an inference thread";
    REJECTIONS = Counter "rejections" None, ["model", "version", "reason"],
        "Requests and batches that a version rejected, by reason";
    FAULTS = Counter "faults" None, ["model", "version", "kind", "trap"],
        "Calls of a guest that returned no outputs, by kind of fault";
    VERSION_SUSPENDED = Gauge "version_suspended" None, ["model", "version"],
        "Whether a version is suspended for all callers because it keeps failing";
    ROUTED_REQUESTS = Counter "routed_requests" None, ["model", "version", "reason"],
        "Requests routed to a version, by the reason of the choice";
    RANDOM_CHOICES = Counter "random_choices" None, ["model", "version"],
        "Requests of a split that were routed at random, because they have no sticky key";
    SPLIT_WEIGHT = Gauge "split_weight_ratio" None, ["model", "version"],
        "The share of a version in the split";
    INSTANCES = Gauge "instances" None, ["model", "version", "state"], "Instances of a version";
    INSTANCES_MADE = Counter "instances_made" None, ["model", "version"],
        "Instances made since the version was loaded";
    INSTANCE_MEMORY = Gauge "instance_memory" BYTES, ["model", "version", "state"],
        "Linear memory of the instances; of busy ones, as it was before the call";
    VERSION_SNAPSHOT = Gauge "version_snapshot" None, ["model", "version"],
        "Whether instances start from a snapshot of the initialised guest";
    PREINIT_STEP = Gauge "preinit_step" SECONDS, ["model", "version", "step"],
        "Time of a step of pre-initialisation";
    PREINIT_PEAK_MEMORY = Gauge "preinit_peak_memory" BYTES, ["model", "version"],
        "Peak memory of pre-initialisation";
    SHADOW_COMPARISONS = Counter "shadow_comparisons" None, ["model", "version", "primary", "result"],
        "Requests offered to a shadow, by result";
    SHADOW_DIFFERENCES = Counter "shadow_differences" None,
        ["model", "version", "primary", "output", "kind"],
        "Rows in which an output of the shadow differed from the primary's";
}

families! { OF_PROCESS;
    PROCESS_CPU = Counter "process_cpu" SECONDS, [], "User and system CPU time";
    PROCESS_START_TIME = Gauge "process_start_time" SECONDS, [],
        "Start time of the process since the Unix epoch";
    PROCESS_RESIDENT_MEMORY = Gauge "process_resident_memory" BYTES, [], "Resident memory size";
    PROCESS_VIRTUAL_MEMORY = Gauge "process_virtual_memory" BYTES, [], "Virtual memory size";
    PROCESS_THREADS = Gauge "process_threads" None, [], "Threads of the process";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" None, [], "Open file descriptors";
    PROCESS_MAX_FDS = Gauge "process_max_fds" None, [], "Limit of open file descriptors";
}

/// The reference of metrics as a Markdown table.
pub fn reference() -> String {
    let mut text = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    let of_server = OF_SERVER.iter().map(|family| (family, format!("{PREFIX}_")));
    let of_process = OF_PROCESS.iter().map(|family| (family, String::new()));
    for (family, prefix) in of_server.chain(of_process) {
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind) = (family.full_name(&prefix), family.kind.as_str());
        let (labels, help) = (labels.join(", "), family.help);
        writeln!(text, "| `{name}` | {kind} | {labels} | {help} |").expect("a string takes it");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_names_metrics_as_a_scrape_does() {
        let text = reference();
        for row in [
            "| `guesthouse_requests_total` | counter | `model`, `version`, `role`, `route`,",
            "| `guesthouse_queue_duration_seconds` | histogram | `model`, `version` | Time that",
            "| `guesthouse_deploy_step_seconds_total` | counter | `step`, `outcome` |",
            "| `process_cpu_seconds_total` | counter |  |",
        ] {
            assert!(text.contains(row), "{row} is not in\n{text}");
        }
    }
}
