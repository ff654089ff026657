//! Chance: not the same each time, which is the point, and the same again from the same seed.

use std::hash::{BuildHasher as _, RandomState};

/// A sequence of numbers: splitmix64, good enough to choose a moment or a place.
pub(super) struct Random {
    state: u64,
}

impl Random {
    /// A sequence of its own.
    pub(super) fn new() -> Self {
        // The hasher has random keys, and each has others.
        Self::seeded(RandomState::new().hash_one(0))
    }

    fn seeded(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.state;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    /// From 0 to 1.
    pub(super) fn fraction(&mut self) -> f64 {
        f64::from((self.next() >> 32) as u32) / f64::from(u32::MAX)
    }
}

/// From 0 to 1, once.
pub(super) fn fraction() -> f64 {
    Random::new().fraction()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_fractions_and_differ() {
        let fractions: Vec<_> = (0..10).map(|_| fraction()).collect();
        assert!(fractions.iter().all(|fraction| (0.0..=1.0).contains(fraction)));
        assert!(fractions.windows(2).any(|pair| pair[0] != pair[1]), "{fractions:?}");
    }
}
