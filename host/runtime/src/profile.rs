//! Where the time of a version's calls goes: by function of the host's arithmetic, and by function of
//! the guest.
//!
//! The clocks of a guest stand still, so that the host measures. It times the functions that it
//! executes, and looks up which function the guest is in each time the guest checks its deadline after
//! a tick, about once a millisecond.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use guesthouse_model::Tensor;

use crate::guest::{ArithmeticUsage, Fault, FunctionUsage, LoadedComponent, StopSignal};

/// The calls before the measured ones, which touch memory for the first time.
const WARM_UP_CALLS: u32 = 3;

/// The time limit of a call.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// How often the guest was in each of its functions.
#[derive(Debug, Default)]
pub struct FunctionSamples(Mutex<BTreeMap<String, u64>>);

impl FunctionSamples {
    /// Count a sample of a function, by its name as a compiler mangles it.
    pub(crate) fn add(&self, function: &str) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match samples.get_mut(function) {
            Some(count) => *count += 1,
            None => {
                samples.insert(function.to_owned(), 1);
            }
        }
    }

    /// The functions with their share of all samples, the greatest first.
    fn shares(&self) -> Vec<GuestFunction> {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_name: BTreeMap<String, u64> = BTreeMap::new();
        for (function, count) in &*samples {
            // Without the hash, so that copies of a generic function count together.
            let name = format!("{:#}", rustc_demangle::demangle(function));
            *by_name.entry(name).or_default() += count;
        }
        let all = by_name.values().sum::<u64>().max(1);
        #[expect(clippy::cast_precision_loss, reason = "a share needs few digits")]
        let share = |count: u64| count as f64 / all as f64;
        let mut shares: Vec<_> = by_name
            .into_iter()
            .map(|(name, count)| GuestFunction { name, share: share(count) })
            .collect();
        shares.sort_by(|one, other| other.share.total_cmp(&one.share));
        shares
    }
}

/// A function of the guest.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestFunction {
    /// Its name, if the guest has names; otherwise a number.
    pub name: String,
    /// Its share of the time in the guest's code, from 0 to 1, without the functions that it calls.
    pub share: f64,
}

/// Where the time of calls goes.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The measured calls.
    pub calls: u64,
    /// The median time of a call.
    pub median: Duration,
    /// The time of all calls.
    pub total: Duration,
    /// The functions of the host's arithmetic that the calls used, over all calls. The time of a
    /// function includes the guest's allocation of its result.
    pub arithmetic: Vec<FunctionUsage>,
    /// The functions of the guest, the one with the greatest share first.
    pub guest: Vec<GuestFunction>,
}

impl Profile {
    /// Call a guest with the same inputs for a time.
    ///
    /// # Errors
    /// [`Fault`] of a call, or of creating the instance.
    pub fn measure(
        component: &LoadedComponent,
        inputs: &[Tensor],
        time: Duration,
    ) -> Result<Self, Fault> {
        let stop = || StopSignal::at_deadline(Instant::now() + CALL_LIMIT);
        let mut instance = component.instantiate(&stop())?;
        for _ in 0..WARM_UP_CALLS {
            instance.predict(inputs, &stop())?;
        }
        let samples = Arc::new(FunctionSamples::default());
        instance.sample_functions(Arc::clone(&samples));
        let before = used(component.arithmetic_usage());
        let mut times = Vec::new();
        let begin = Instant::now();
        while times.is_empty() || begin.elapsed() < time {
            let start = Instant::now();
            instance.predict(inputs, &stop())?;
            times.push(start.elapsed());
        }
        let arithmetic = used(component.arithmetic_usage()).into_iter().zip(before);
        let arithmetic = arithmetic
            .map(|(after, before)| FunctionUsage {
                calls: after.calls - before.calls,
                time: after.time - before.time,
                ..after
            })
            .filter(|usage| usage.calls > 0)
            .collect();
        times.sort_unstable();
        Ok(Self {
            calls: times.len() as u64,
            median: times[times.len() / 2],
            total: times.iter().sum(),
            arithmetic,
            guest: samples.shares(),
        })
    }

    /// The time in the host's arithmetic, over all calls.
    pub fn arithmetic_time(&self) -> Duration {
        self.arithmetic.iter().map(|usage| usage.time).sum()
    }
}

fn used(usage: &ArithmeticUsage) -> Vec<FunctionUsage> {
    usage.by_function().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_a_function_are_sampled_together() {
        let samples = FunctionSamples::default();
        for function in [
            "_ZN4core3ptr5write17h0123456789abcdefE",
            "_ZN4core3ptr5write17hfedcba9876543210E",
            "memcpy",
            "_ZN4core3ptr5write17h0123456789abcdefE",
        ] {
            samples.add(function);
        }
        let shares = samples.shares();
        let shares: Vec<_> = shares.iter().map(|it| (it.name.as_str(), it.share)).collect();
        assert_eq!(shares, [("core::ptr::write", 0.75), ("memcpy", 0.25)]);
    }
}
