//! Where the time of a version's calls goes: by function of the host's arithmetic, and by function of
//! the guest.
//!
//! The clocks of a guest stand still, so that the host measures. It times the functions that it
//! executes, and looks up which function the guest is in each time the guest checks its deadline after
//! a tick, about once a millisecond.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guesthouse_model::Tensor;

use crate::guest::{
    ArithmeticUsage, Fault, FunctionSamples, FunctionUsage, GuestFunction, LoadedComponent,
    StopSignal,
};

/// The calls before the measured ones, which touch memory for the first time.
const WARM_UP_CALLS: u32 = 3;

/// The time limit of a call.
const CALL_LIMIT: Duration = Duration::from_secs(60);

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
