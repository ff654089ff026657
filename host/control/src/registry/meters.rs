//! The meters of deployments: how they ended, and what their steps took.

use std::time::{Duration, Instant};

use guesthouse_runtime::measure::{Counter, Series};

/// What is measured of all deployments.
#[derive(Debug, Default)]
pub struct DeploymentMeters {
    /// The steps of deployments, by name and whether they succeeded.
    pub steps: Series<(&'static str, bool), Step>,
    /// Deployments by whether they succeeded.
    pub outcomes: Series<bool, Counter>,
}

/// How often a step was done, and all the time that it took.
#[derive(Debug, Default)]
pub struct Step {
    /// How often.
    pub times: Counter,
    /// How long together, in microseconds.
    pub micros: Counter,
}

impl DeploymentMeters {
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
        self.steps.with(&(name, outcome.is_ok()), |step| step.record(started.elapsed()));
        outcome
    }
}

impl Step {
    fn record(&self, time: Duration) {
        self.times.count();
        self.micros.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }
}
