//! Measures how long creating and dropping an instance takes.
//!
//! Dropping is included because a server with a new instance for each batch pays for both: the
//! store with everything that the host keeps for the guest, and returning the memory, which the
//! pool does immediately. An instance that has served has more memory to return.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::loaded::Loaded;
use crate::statistics::summary;

/// The number of instances that are created before the measurement.
const WARM_UP: u32 = 20;

/// Times in microseconds, for instances that were never called and for instances that served one
/// request.
pub(crate) fn measure(version: &Loaded, count: u32) -> Result<Value> {
    for _ in 0..WARM_UP {
        time(version, true)?;
    }
    let (mut idle, mut served) = (Vec::new(), Vec::new());
    for _ in 0..count {
        idle.push(time(version, false)?);
        served.push(time(version, true)?);
    }
    Ok(json!({ "idle": report(&idle), "served": report(&served) }))
}

/// Creates and drops one instance; a call in between is not measured.
fn time(version: &Loaded, serves: bool) -> Result<(Duration, Duration)> {
    let start = Instant::now();
    let mut instance = version.instantiate()?;
    let made = start.elapsed();
    if serves {
        version.ask(&mut instance, 0)?;
    }
    let start = Instant::now();
    drop(instance);
    Ok((made, start.elapsed()))
}

fn report(times: &[(Duration, Duration)]) -> Value {
    let of = |part: fn(&(Duration, Duration)) -> Duration| {
        summary(&times.iter().map(part).collect::<Vec<_>>())
    };
    json!({
        "make_us": of(|(made, _)| *made),
        "drop_us": of(|(_, dropped)| *dropped),
        "both_us": of(|(made, dropped)| *made + *dropped),
    })
}
