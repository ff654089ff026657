//! What is measured of the server as a whole; what is measured of a version lives and ends with it.

use std::time::{Duration, Instant};

use super::measure::{Counter, Level, Series};

/// Everything that belongs to no version.
#[derive(Debug, Default)]
pub struct Meters {
    /// The endpoints of callers.
    pub public: Listener,
    /// The same for those that speak gRPC.
    pub grpc: Listener,
    /// The endpoints of operators.
    pub admin: Listener,
    /// What making versions servable took, by step and whether it succeeded.
    pub deploy_steps: Series<(&'static str, bool), Step>,
    /// Deployments by whether they succeeded.
    pub deployments: Series<bool, Counter>,
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

/// How often a step was done, and all the time that it took.
#[derive(Debug, Default)]
pub struct Step {
    /// How often.
    pub times: Counter,
    /// How long together, in microseconds.
    pub micros: Counter,
}

impl Meters {
    /// Do a step of a deployment and count it.
    ///
    /// # Errors
    /// Those of the step.
    pub fn step<T, E>(
        &self,
        name: &'static str,
        step: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let started = Instant::now();
        let outcome = step();
        self.deploy_steps.with(&(name, outcome.is_ok()), |step| step.record(started.elapsed()));
        outcome
    }
}

impl Step {
    fn record(&self, time: Duration) {
        self.times.count();
        self.micros.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }
}
