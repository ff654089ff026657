//! The metrics of deployments: their outcomes, and the durations of their steps.

use std::time::{Duration, Instant};

use guesthouse_runtime::measure::{Counter, MetricFamily};

/// The metrics of all deployments.
#[derive(Debug, Default)]
pub struct DeploymentMetrics {
    /// The steps of deployments, by name and whether they succeeded.
    pub steps: MetricFamily<(&'static str, bool), StepMetrics>,
    /// Deployments by whether they succeeded.
    pub outcomes: MetricFamily<bool, Counter>,
}

/// The number and the total duration of a step.
#[derive(Debug, Default)]
pub struct StepMetrics {
    /// How often the step ran.
    pub times: Counter,
    /// The total duration, in microseconds.
    pub micros: Counter,
}

impl DeploymentMetrics {
    /// Run a step of a deployment and record its duration.
    ///
    /// # Errors
    /// The error of the step.
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
