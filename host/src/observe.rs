//! What operators see of the server: logs, measurements, traces, the traffic
//! counters, and what is kept of requests where that is asked for.

pub mod capture;
pub mod logs;
pub mod measure;
pub mod meters;
pub mod trace;
pub mod traffic;
