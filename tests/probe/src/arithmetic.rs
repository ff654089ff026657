//! Measures calls of the host's arithmetic: what a crossing costs, and how late an operation is
//! interrupted.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use guesthouse_model::Tensor;
use guesthouse_runtime::guest::{Fault, Instance, StopSignal};
use serde_json::{Value, json};

use crate::loaded::Loaded;
use crate::statistics::summary;

/// The crossings of a measurement.
const CROSSINGS: u32 = 100_000;

/// The time limit of a long operation.
const LIMIT: Duration = Duration::from_millis(5);

/// The time limit of a measurement.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// A number as the operand of a call.
const ONE: &str = "AACAPw==";

/// Operations that take minutes or, where the result bounds them, several times the limit.
const LONG: [(&str, &str); 4] = [
    (
        "matrix_product",
        "matrix-product 1 1 64 64 4294967295 0 0 0 0 strided 0 0 0 0 4096 4096 64 1 identity 1 0",
    ),
    (
        "wide_matrix_product",
        "matrix-product 1 1 1024 1024 4294967295 0 0 0 0 strided 0 0 0 0 1048576 1048576 1024 1 \
         gelu 1 0",
    ),
    (
        "narrow_matrix_product",
        "matrix-product 1 1 1 1 4294967295 0 0 0 0 strided 0 0 0 0 1 1 1 1 identity 1 0",
    ),
    ("binary", "binary divide 1 1 8192 4096 0 0 0 0 0 0 0 0 gelu 1 0"),
];

/// The time of a crossing in nanoseconds, and how late operations are interrupted in microseconds.
pub(crate) fn measure(version: &Loaded, count: u32) -> Result<Value> {
    let mut crossings = Vec::new();
    let mut instance = version.instantiate()?;
    for _ in 0..count.clamp(1, 20) {
        let one = repeat(version, &mut instance, 1)?;
        let many = repeat(version, &mut instance, CROSSINGS + 1)?;
        crossings.push(many.saturating_sub(one) / CROSSINGS);
    }
    let mut late = serde_json::Map::new();
    for (name, call) in LONG {
        let times: Result<Vec<_>> = (0..count).map(|_| interrupt(version, call)).collect();
        let times = times?;
        let mut report = summary(&times);
        let longest = times.iter().max().copied().unwrap_or_default();
        report["max"] = (longest.as_secs_f64() * 1e6).into();
        late.insert(name.to_owned(), report);
    }
    crossings.sort();
    let median = crossings.get(crossings.len() / 2).copied().unwrap_or_default();
    Ok(json!({ "crossing_ns": median.as_secs_f64() * 1e9, "late_us": late }))
}

fn inputs(version: &Loaded, call: &str) -> Result<Vec<Tensor>> {
    version.decode(&json!({ "call": call, "first": ONE, "second": ONE }))
}

fn repeat(version: &Loaded, instance: &mut Instance, times: u32) -> Result<Duration> {
    let inputs = inputs(version, &format!("repeat {times}"))?;
    let start = Instant::now();
    let stop = StopSignal::at_deadline(start + CALL_LIMIT);
    let outputs = instance.predict(&inputs, &stop).context("failed to repeat an operation")?;
    let time = start.elapsed();
    ensure!(!outputs.is_empty(), "a prediction has no outputs");
    Ok(time)
}

/// The time from the deadline to the return of a call.
fn interrupt(version: &Loaded, call: &str) -> Result<Duration> {
    let (inputs, mut instance) = (inputs(version, call)?, version.instantiate()?);
    let deadline = Instant::now() + LIMIT;
    match instance.predict(&inputs, &StopSignal::at_deadline(deadline)) {
        Err(Fault::Deadline) => Ok(deadline.elapsed()),
        Err(fault) => bail!("{call}: {fault}"),
        Ok(_) => bail!("{call}: it ended before its deadline"),
    }
}
