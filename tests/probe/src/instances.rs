//! The time that making and dropping an instance takes.
//!
//! Dropping is part of it, because a server with a new instance for every batch pays for both: the
//! store with all that the host keeps for the guest, and giving the memory back, which the pool does
//! at once and not in batches. An instance that has served has more memory to give back.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::loaded::Loaded;
use crate::statistics::summary;

/// How many instances are made before any is measured.
const WARM_UP: u32 = 20;

/// Times in microseconds, of instances that were never called and of those that served once.
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

/// Making and dropping one instance, without the call in between.
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
