//! Random numbers that are different in each run and can be reproduced from their seed.

use std::hash::{BuildHasher as _, RandomState};

/// A splitmix64 generator.
pub(super) struct Random {
    /// The seed that reproduces the sequence.
    pub(super) seed: u64,
    state: u64,
}

impl Random {
    /// A generator with a random seed.
    pub(super) fn new() -> Self {
        // Every `RandomState` has other keys.
        Self::seeded(RandomState::new().hash_one(0))
    }

    pub(super) fn seeded(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.state;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    /// A number from 0 to 1.
    pub(super) fn fraction(&mut self) -> f64 {
        f64::from((self.next() >> 32) as u32) / f64::from(u32::MAX)
    }

    /// A random element, if there is one. The modulo bias is negligible for these lengths.
    pub(super) fn choose<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let index = self.next().checked_rem(from.len() as u64)?;
        from.get(usize::try_from(index).ok()?)
    }
}

/// A single random number from 0 to 1.
pub(super) fn fraction() -> f64 {
    Random::new().fraction()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_in_range_and_differ() {
        let fractions: Vec<_> = (0..10).map(|_| fraction()).collect();
        assert!(fractions.iter().all(|fraction| (0.0..=1.0).contains(fraction)));
        assert!(fractions.windows(2).any(|pair| pair[0] != pair[1]), "{fractions:?}");
    }

    #[test]
    fn a_seed_reproduces_its_choices() {
        let (mut one, all) = (Random::new(), [0, 1, 2]);
        let mut other = Random::seeded(one.seed);
        let choices: Vec<_> = (0..100).filter_map(|_| one.choose(&all)).collect();
        assert_eq!(choices, (0..100).filter_map(|_| other.choose(&all)).collect::<Vec<_>>());
        assert!(all.iter().all(|each| choices.contains(&each)));
        assert_eq!(one.choose::<u8>(&[]), None);
    }
}
