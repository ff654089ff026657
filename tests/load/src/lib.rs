//! A load generator for benchmarks of a server on this machine.
//!
//! [`closed_loop`] asks how much a server can do: each connection sends its next request when the
//! last one is answered. [`open_loop`] asks how long callers wait at a rate they choose: requests
//! are due at fixed times, and latency counts from then, so that a server that stalls cannot slow
//! down the clock it is measured by.
//!
//! Everything is bounded: connections, time, rate, bodies, answers and the wait for each of them.
//! Only loopback addresses are accepted. HTTP/1.1 and gRPC are spoken; names, TLS and redirects are
//! left to other tools.
//!
//! Both loops are futures, so that a benchmark can do something to the server meanwhile. A runtime
//! with one thread is best: the cores are for the server.

mod closed;
mod connection;
mod open;
mod report;
mod run;
mod target;
#[cfg(test)]
mod tests;
pub mod trace;

pub use closed::closed_loop;
pub use open::{MAX_RATE, open_loop};
pub use report::{Latency, Report};
pub use run::{Load, MAX_CONNECTIONS, MAX_TIME};
pub use target::{Expectation, Target};

/// No load was made, or it is not known what came of it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The address belongs to another machine, perhaps somebody else's.
    #[error("use {0}: only loopback addresses are allowed")]
    NotLoopback(std::net::SocketAddr),
    /// The URL is not what a target can be.
    #[error("use the URL `{0}`: it must be like http://127.0.0.1:8000/path")]
    Url(String),
    /// A value is out of bounds.
    #[error("use {value} for the {name}: it must be more than 0 and at most {most}")]
    OutOfBounds {
        /// What the value is.
        name: &'static str,
        /// The value.
        value: String,
        /// The largest value allowed.
        most: String,
    },
    /// There is no server, or it takes no more connections.
    #[error("connect")]
    Connect(#[source] std::io::Error),
    /// The trace cannot be written.
    #[error("write the trace")]
    Trace(#[source] std::io::Error),
    /// The system gives no thread.
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
}
