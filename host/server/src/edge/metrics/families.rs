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
    /// The meaning, in Markdown.
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
    REQUESTS = Counter "requests" None, ["model", "version", "role", "route", "protocol", "code"],
        "Requests for which a version was chosen, by `model`, `version`, `role` (`stable`, \
         `candidate`, `other`), `route`, `protocol` and `code`.";
    REQUEST_DURATION = Histogram "request_duration" SECONDS, ["model", "version", "role"],
        "Time from the request head to the response.";
    BATCH_SIZE_ROWS = Histogram "batch_size_rows" None, ["model", "version"],
        "Rows per call of the guest, of one request or several.";
    QUEUE_DURATION = Histogram "queue_duration" SECONDS, ["model", "version"],
        "Time a request waited for a thread, for each of its batches.";
    INSTANTIATE_DURATION = Histogram "instantiate_duration" SECONDS, ["model", "version"],
        "Time to get an instance for a call of the guest.";
    PREDICT_DURATION = Histogram "predict_duration" SECONDS, ["model", "version"],
        "Time of the call of the guest itself.";
    ENCODE_DURATION = Histogram "encode_duration" SECONDS, ["model", "version"],
        "Time to encode the response.";
    REQUESTS_IN_FLIGHT = Gauge "requests_in_flight" None, ["model", "version"],
        "Requests that wait or run.";
    CONCURRENCY_LIMIT = Gauge "concurrency_limit" None, ["model", "version"],
        "Requests that may wait or run, adapted to how long they wait.";
    QUEUE_DEPTH = Gauge "queue_depth" None, ["model", "version"],
        "Batches that wait for a thread.";
    REJECTIONS = Counter "rejections" None, ["model", "version", "reason"],
        "Requests that a version did not accept, by `reason`: `limit`, `batch`, `candidate`, \
         `late` (before the body was read), `queue_full`, `suspended`, `caller_suspended`, \
         `quarantined` (the same input failed three times), `expired`, `queue_timeout`.";
    FAULTS = Counter "faults" None, ["model", "version", "kind", "trap"],
        "Calls of a guest without outputs, by `kind` and `trap`; `rejected` and \
         `non_finite_input` are the caller's fault.";
    VERSION_SUSPENDED = Gauge "version_suspended" None, ["model", "version"],
        "1 while the version as a whole is suspended; individually suspended callers are \
         counted in `guesthouse_rejections_total`.";
    ROUTED_REQUESTS = Counter "routed_requests" None, ["model", "version", "reason"],
        "Requests by `reason`: `pin`, `channel`, `range`, `split`, `default`.";
    RANDOM_CHOICES = Counter "random_choices" None, ["model", "version"],
        "Requests for which a split was decided at random.";
    SPLIT_WEIGHT = Gauge "split_weight_ratio" None, ["model", "version"],
        "The share that a split gives to the version.";
    INSTANCES = Gauge "instances" None, ["model", "version", "state"],
        "Instances, by `state`: `idle`, `busy`.";
    INSTANCES_MADE = Counter "instances_made" None, ["model", "version"],
        "Instances made since the version was loaded.";
    INSTANCE_MEMORY = Gauge "instance_memory" BYTES, ["model", "version", "state"],
        "Linear memory of the instances, by `state`; of busy ones, as before the call.";
    ARITHMETIC_CALLS = Counter "arithmetic_calls" None, ["model", "version"],
        "Operations that the host executed for the guest; only of versions that are granted it.";
    ARITHMETIC_TIME = Counter "arithmetic" SECONDS, ["model", "version"],
        "Time that the host computed for the guest, part of the time of its calls; only of \
         versions that are granted it.";
    VERSION_SNAPSHOT = Gauge "version_snapshot" None, ["model", "version"],
        "1 if instances start from a snapshot.";
    PREINIT_STEP = Gauge "preinit_step" SECONDS, ["model", "version", "step"],
        "Duration of a `step` of pre-initialisation.";
    PREINIT_PEAK_MEMORY = Gauge "preinit_peak_memory" BYTES, ["model", "version"],
        "Peak memory of pre-initialisation.";
    SHADOW_COMPARISONS = Counter "shadow_comparisons" None, ["model", "version", "primary", "result"],
        "Requests offered to a shadow, by `primary` and `result`.";
    SHADOW_DIFFERENCES = Counter "shadow_differences" None, ["model", "version", "primary", "output", "kind"],
        "Rows that differed, by `primary`, `output` and `kind`.";
    HTTP_REQUESTS = Counter "http_requests" None, ["listener", "route", "code"],
        "All responses, by `listener` (`public`, `grpc`, `admin`), `route` (`none`: no such \
         endpoint) and `code`; for gRPC, the code it would have over HTTP; 499: the caller \
         left.";
    GRPC_CALLS = Counter "grpc_calls" None, ["method", "grpc_status"],
        "Finished gRPC calls, by `method` and `grpc_status`.";
    HTTP_ERRORS = Counter "http_errors" None, ["listener", "error_code"],
        "Error responses, by `listener` and `error_code`.";
    HTTP_REQUESTS_IN_FLIGHT = Gauge "http_requests_in_flight" None, ["listener"],
        "Requests not answered yet, by `listener`.";
    AUTH_FAILURES = Counter "auth_failures" None, ["reason"],
        "Requests without a valid key for them, by `reason`: `missing`, `malformed`, \
         `unknown`, `expired`, `revoked`, `forbidden`.";
    CONNECTIONS_OPEN = Gauge "connections_open" None, ["listener"],
        "Open connections, by `listener`.";
    CONNECTIONS_ACCEPTED = Counter "connections_accepted" None, ["listener"],
        "Accepted connections, by `listener`.";
    BODIES_IN_FLIGHT = Gauge "bodies_in_flight" BYTES, [],
        "Bytes of bodies being read or answered.";
    BODIES_IN_FLIGHT_LIMIT = Gauge "bodies_in_flight_limit" BYTES, [],
        "The limit of these.";
    DEPLOYMENTS = Counter "deployments" None, ["outcome"],
        "Deployments, by `outcome`: `succeeded`, `failed`.";
    DEPLOY_STEPS = Counter "deploy_steps" None, ["step", "outcome"],
        "Steps of loading versions, by `step` (`find`, `compile`, `prove`) and `outcome`.";
    DEPLOY_STEP_SECONDS = Counter "deploy_step" SECONDS, ["step", "outcome"],
        "Total time of the steps of loading versions.";
    CAPTURED_REQUESTS = Counter "captured_requests" None, ["outcome"],
        "Requests selected for capture, by `outcome`: `written`, `dropped`, `failed`.";
    SPANS = Counter "spans" None, ["outcome"],
        "Spans for the collector, by `outcome`: `exported`, `failed` (not accepted in time), \
         `dropped` (queue full); only with a collector.";
    LOG_LINES_DROPPED = Counter "log_lines_dropped" None, [],
        "Log lines that nobody read in time.";
    READY = Gauge "ready" None, [],
        "1 if `/readyz` answers 200.";
    BUILD_INFO = Gauge "build_info" None, ["version"],
        "1, with the label `version`.";
}

families! { OF_PROCESS;
    PROCESS_CPU = Counter "process_cpu" SECONDS, [],
        "Processor time.";
    PROCESS_START_TIME = Gauge "process_start_time" SECONDS, [],
        "Start time since 1970.";
    PROCESS_RESIDENT_MEMORY = Gauge "process_resident_memory" BYTES, [],
        "Resident memory.";
    PROCESS_VIRTUAL_MEMORY = Gauge "process_virtual_memory" BYTES, [],
        "Virtual memory.";
    PROCESS_THREADS = Gauge "process_threads" None, [],
        "Threads.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" None, [],
        "Open file descriptors.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" None, [],
        "Limit of file descriptors.";
}

/// The reference of metrics as a Markdown table.
pub fn reference() -> String {
    let mut text = "| Metric | Type | Labels | Description |\n|---|---|---|---|\n".to_owned();
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
            "| `guesthouse_queue_duration_seconds` | histogram | `model`, `version` | Time a",
            "| `guesthouse_deploy_step_seconds_total` | counter | `step`, `outcome` |",
            "| `process_cpu_seconds_total` | counter |  |",
        ] {
            assert!(text.contains(row), "{row} is not in\n{text}");
        }
    }
}
