//! Samples of the functions that a guest is in.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// How often the guest was in each of its functions.
#[derive(Debug, Default)]
pub struct FunctionSamples(Mutex<BTreeMap<String, u64>>);

impl FunctionSamples {
    /// Count a sample of a function, by its name as a compiler mangles it.
    pub(super) fn add(&self, function: &str) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match samples.get_mut(function) {
            Some(count) => *count += 1,
            None => {
                samples.insert(function.to_owned(), 1);
            }
        }
    }

    /// The functions with their share of all samples, the greatest first.
    pub(crate) fn shares(&self) -> Vec<GuestFunction> {
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
