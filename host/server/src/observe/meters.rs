//! The meters of the listeners: connections, requests and errors. Meters of a version live with it.

use guesthouse_runtime::measure::{Counter, Level, Series};

/// Everything that belongs to no version.
#[derive(Debug, Default)]
pub struct Meters {
    /// The endpoints of callers.
    pub public: Listener,
    /// The same for those that speak gRPC.
    pub grpc: Listener,
    /// The endpoints of operators.
    pub admin: Listener,
}

/// One address and what comes in there.
#[derive(Debug, Default)]
pub struct Listener {
    /// Connections that are open.
    pub open: Level,
    /// Connections since the start.
    pub accepted: Counter,
    /// Requests that are under way.
    pub in_flight: Level,
    /// Answers, by the endpoint's pattern, and by status.
    pub answers: Series<String, Series<u16, Counter>>,
    /// Calls of gRPC that are over, by the method, and by the name of their status.
    pub calls: Series<String, Series<&'static str, Counter>>,
    /// Answers that are errors, by their code.
    pub errors: Series<&'static str, Counter>,
}

/// A thing that is counted among others while this is there.
#[derive(Debug)]
pub struct Counted<'a>(&'a Level);

impl<'a> Counted<'a> {
    /// One more.
    pub fn on(level: &'a Level) -> Self {
        level.rise();
        Self(level)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fall();
    }
}
