//! What operators see of the server: logs and the traffic counters.

pub mod logs;
pub mod timestamp;
pub mod traffic;
