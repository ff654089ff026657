//! What operators see of the server: logs, traces, the meters of its listeners, and captured requests.

pub mod capture;
pub mod logs;
pub mod server_metrics;
pub mod trace;
