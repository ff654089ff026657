//! Observability: logs, traces, the metrics of the listeners, and captured requests.

pub mod capture;
pub mod logs;
pub mod server_metrics;
pub mod trace;
