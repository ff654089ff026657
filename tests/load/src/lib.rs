//! A load generator for the benchmarks of a server on this machine.
//!
//! [`closed_loop`] measures throughput: each connection sends its next request when the previous
//! one has been answered. [`open_loop`] measures latency at a fixed rate: each request has a
//! scheduled time, and latency counts from that time, so a stalled server does not slow down the
//! clock that measures it.
//!
//! # Why not an existing tool
//! The benchmarks need all of the following with one clock, so that their figures are comparable.
//! `oha` 1.16 was examined by its source, and `h2load` 1.52 and `wrk` 4.1 by their documentation.
//! `k6` and `ghz` are written in Go and are packaged neither by Cargo nor by Debian.
//!
//! | needed | for | `oha` | `h2load` | `wrk` |
//! |---|---|---|---|---|
//! | gRPC, whose calls succeed by their trailers | `bench protocols` | discards trailers | discards trailers | no HTTP/2 |
//! | the version that answered, for each request | `bench versions` | no | no | no |
//! | both times of a request on a clock that other processes share | `bench versions` | relative to its start, and not of failed requests | wall clock | no |
//! | a check of the status and the body | all | any response succeeds | any status below 400 succeeds | by a Lua script |
//! | latencies of expected rejections apart from successes | `bench edge` | of 2xx and all others | no | no |
//! | latency from the scheduled time | `bench serve`, `bench edge` | from when a timer with a resolution of a millisecond fired | no | no rate |
//! | mergeable latencies, in bounded memory | all | keeps every result until the end | one line for each request | no |
//!
//! What those tools do beyond this is left to them: only loopback addresses are accepted, and there
//! are no host names, no TLS, no redirects, and no output for people.

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
pub use open::{Arrivals, MAX_RATE, open_loop};
pub use report::Report;
pub use run::{Load, MAX_CONNECTIONS, MAX_TIME};
pub use target::{Expectation, Target};

/// Why no load was generated, or why its result is unknown.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The address belongs to another machine.
    #[error("use {0}: only loopback addresses are allowed")]
    NotLoopback(std::net::SocketAddr),
    /// The URL has another form.
    #[error("use the URL `{0}`: it must be like http://127.0.0.1:8000/path")]
    Url(String),
    /// A parameter is out of bounds.
    #[error("use {value} for the {name}: it must be more than 0 and at most {most}")]
    OutOfBounds {
        /// The name of the parameter.
        name: &'static str,
        /// The value.
        value: String,
        /// The largest permitted value.
        most: String,
    },
    /// The server does not accept a connection.
    #[error("connect")]
    Connect(#[source] std::io::Error),
    /// The trace cannot be written.
    #[error("write the trace")]
    Trace(#[source] std::io::Error),
    /// The system provides no thread.
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
}
