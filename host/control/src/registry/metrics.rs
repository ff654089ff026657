//! The meters of deployments: how they ended, and what their steps took.

use std::time::{Duration, Instant};

use guesthouse_runtime::measure::{Counter, MetricFamily};

/// What is measured of all deployments.
#[derive(Debug, Default)]
pub struct DeploymentMetrics {
    /// The steps of deployments, by name and whether they succeeded.
    pub steps: MetricFamily<(&'static str, bool), StepMetrics>,
    /// Deployments by whether they succeeded.
    pub outcomes: MetricFamily<bool, Counter>,
}

/// How often a step was done, and all the time that it took.
#[derive(Debug, Default)]
pub struct StepMetrics {
    /// How often.
    pub times: Counter,
    /// How long together, in microseconds.
    pub micros: Counter,
}

impl DeploymentMetrics {
    /// Do a step of a deployment and count it.
    ///
    /// # Errors
    /// Those of the step.
    pub fn time_step<T, E>(
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

impl StepMetrics {
    fn record(&self, time: Duration) {
        self.times.count();
        self.micros.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }
}
