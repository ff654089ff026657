//! Measures a call on a new instance and on a reused one.
//!
//! Both alternate, so that other activity of the machine affects both. On a new instance, the first
//! access to each page is a page fault; the kernel counts them for each thread.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use guesthouse_runtime::guest::Instance;
use serde_json::{Value, json};

use crate::loaded::Loaded;
use crate::statistics::summary;

/// The number of calls that warm up each of them.
const WARM_UP: usize = 5;

/// Times of calls in microseconds, and page faults per call, on new and on reused instances.
pub(crate) fn measure(version: &Loaded, count: u32) -> Result<Value> {
    let mut used = version.instantiate()?;
    for number in 0..WARM_UP {
        call(version, &mut used, number)?;
        call(version, &mut version.instantiate()?, number)?;
    }
    let (mut fresh_calls, mut reused_calls) = (Vec::new(), Vec::new());
    for number in 0..count as usize {
        let mut new = version.instantiate()?;
        fresh_calls.push(call(version, &mut new, number)?);
        drop(new);
        reused_calls.push(call(version, &mut used, number)?);
    }
    Ok(json!({ "fresh": report(&fresh_calls), "reused": report(&reused_calls) }))
}

struct Call {
    time: Duration,
    faults: u64,
}

fn call(version: &Loaded, instance: &mut Instance, number: usize) -> Result<Call> {
    let faults_before = faults()?;
    let start = Instant::now();
    version.ask(instance, number)?;
    let time = start.elapsed();
    Ok(Call { time, faults: faults()? - faults_before })
}

fn report(calls: &[Call]) -> Value {
    let times: Vec<_> = calls.iter().map(|call| call.time).collect();
    let faults: u64 = calls.iter().map(|call| call.faults).sum();
    json!({ "call_us": summary(&times), "faults_per_call": faults as f64 / calls.len() as f64 })
}

/// The minor page faults of this thread so far.
fn faults() -> Result<u64> {
    let stat = fs::read_to_string("/proc/thread-self/stat");
    let stat = stat.context("failed to ask the kernel for this thread's page faults")?;
    find_faults(&stat).context("the kernel does not say how many page faults there were")
}

fn find_faults(stat: &str) -> Option<u64> {
    // The second field is a name in parentheses, which may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    // The tenth field; the first after the name is the third.
    fields.split_whitespace().nth(10 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_faults_are_parsed_after_any_thread_name() {
        assert_eq!(find_faults("42 (a ) b) R 1 2 3 4 5 6 777 8 9"), Some(777));
        assert_eq!(find_faults("42 (a"), None);
        assert!(faults().unwrap() > 0);
    }
}
