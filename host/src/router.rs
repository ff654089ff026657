//! Which version answers a request: a pure function of the snapshot, the selector and a draw.
//!
//! No I/O, no locks, no randomness of its own. Weights are parts per million over the versions of
//! one model; the draw is a number below a million: random, or the [`bucket`] of a caller's key, so
//! that a caller stays with a version. The newest version takes the lowest draws, so that raising the
//! weight of one moves callers to it and none back.

use std::sync::Arc;
use std::time::Instant;

use semver::Version;
use sha2::{Digest as _, Sha256};

use crate::model::{ModelName, Selector};
use crate::registry::{ModelVersions, Snapshot, VersionState};
use crate::version::ServableVersion;

/// What the weights of a split add up to.
pub const WHOLE: u32 = 1_000_000;

/// How a model's traffic is divided between versions, if nobody asks for one: parts per million.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split(Vec<(Version, u32)>);

/// Weights do not make a split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the weights of a split are parts per million and add up to 1000000, not {0}")]
pub struct SplitError(u64);

impl Split {
    /// A split of these versions.
    ///
    /// # Errors
    /// [`SplitError`], if the weights do not add up to [`WHOLE`].
    pub fn new(weights: impl IntoIterator<Item = (Version, u32)>) -> Result<Self, SplitError> {
        let mut weights: Vec<_> = weights.into_iter().collect();
        weights.sort_by(|(one, _), (other, _)| other.cmp(one));
        let sum: u64 = weights.iter().map(|(_, weight)| u64::from(*weight)).sum();
        if sum == u64::from(WHOLE) { Ok(Self(weights)) } else { Err(SplitError(sum)) }
    }

    /// Versions with their weights, the newest first.
    pub fn weights(&self) -> &[(Version, u32)] {
        &self.0
    }

    /// The version that a draw below [`WHOLE`] falls to.
    fn choose(&self, draw: u32) -> Option<&Version> {
        let mut below = 0;
        self.0.iter().find_map(|(version, weight)| {
            below += weight;
            (draw < below).then_some(version)
        })
    }

    /// The versions from the heaviest to the lightest.
    fn by_weight(&self) -> impl Iterator<Item = &Version> {
        let mut weights: Vec<_> = self.0.iter().filter(|(_, weight)| *weight > 0).collect();
        weights.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
        weights.into_iter().map(|(version, _)| version)
    }
}

/// The draw of a caller: the same for the same model and key, on every host and for ever. SHA-256
/// of the model's name, a zero byte and the key; the first eight bytes are a fraction, big-endian.
pub fn bucket(model: &ModelName, key: &[u8]) -> u32 {
    let hash = Sha256::new().chain_update(model.as_str()).chain_update([0]).chain_update(key);
    let hash = hash.finalize();
    let (first, _) = hash.split_first_chunk().expect("a hash has 32 bytes");
    let scaled = (u128::from(u64::from_be_bytes(*first)) * u128::from(WHOLE)) >> u64::BITS;
    u32::try_from(scaled).expect("a fraction of a million is less than a million")
}

/// Why a version was chosen; also the value of the header `X-Route-Reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The caller named the version.
    Pin,
    /// The highest version of the range that the caller gave.
    Range,
    /// The model's traffic is split.
    Split,
    /// The highest version of a model whose traffic is not split.
    Default,
}

impl Reason {
    /// The word for headers, logs and counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pin => "pin",
            Self::Range => "range",
            Self::Split => "split",
            Self::Default => "default",
        }
    }
}

/// The version that answers, and why.
#[derive(Clone)]
pub struct Route {
    /// The version.
    pub version: Arc<ServableVersion>,
    /// Why.
    pub reason: Reason,
    /// The version that is asked as well, once the answer is on its way, to compare the two.
    pub shadow: Option<Arc<ServableVersion>>,
}

/// No version answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// There is no such model.
    #[error("there is no such model")]
    UnknownModel,
    /// The model has no such version.
    #[error("the model has no version that matches")]
    NoSuchVersion,
    /// The version, or the whole server, is not ready.
    #[error("the version is not ready")]
    NotReady,
    /// The version keeps breaking down and is not asked for a while.
    #[error("the version is suspended")]
    Suspended,
}

/// The version that answers a request for `model`. `draw` decides a split; it is a number below
/// [`WHOLE`]. Versions that are suspended at `now` are passed over where there is another choice.
///
/// # Errors
/// [`RouteError`]. While the server is still loading, what is not there may yet come, so it is not
/// ready rather than unknown.
pub fn route(
    snapshot: &Snapshot,
    model: &ModelName,
    selector: &Selector,
    draw: u32,
    now: Instant,
) -> Result<Route, RouteError> {
    let absent = |error| {
        if snapshot.loading { RouteError::NotReady } else { error }
    };
    let versions = snapshot.models.get(model).ok_or(absent(RouteError::UnknownModel))?;
    let reason = match (selector, &versions.split) {
        (Selector::Exact(_), _) => Reason::Pin,
        (Selector::Range(_), _) => Reason::Range,
        (Selector::Default, Some(split)) => return route_split(versions, split, draw, now),
        (Selector::Default, None) => Reason::Default,
    };
    let matching = versions.versions.iter().filter(|(version, _)| selector.matches(version));
    let states = matching.rev().map(|(_, state)| state);
    let version = first_available(states, now)?;
    version
        .map(|version| Route { version, reason, shadow: None })
        .ok_or(absent(RouteError::NoSuchVersion))
}

/// The version that the draw falls to; if it cannot serve, the heaviest one that can, so that a
/// broken candidate costs no request.
fn route_split(
    versions: &ModelVersions,
    split: &Split,
    draw: u32,
    now: Instant,
) -> Result<Route, RouteError> {
    let candidates = split.choose(draw).into_iter().chain(split.by_weight());
    let states = candidates.filter_map(|version| versions.versions.get(version));
    let version = first_available(states, now)?.ok_or(RouteError::NotReady)?;
    Ok(Route { version, reason: Reason::Split, shadow: None })
}

/// The first version that can serve now, or why none of them can; none if there are none.
fn first_available<'a>(
    states: impl Iterator<Item = &'a VersionState>,
    now: Instant,
) -> Result<Option<Arc<ServableVersion>>, RouteError> {
    let mut why = None;
    for state in states {
        match state {
            VersionState::Ready(version) if version.breaker().allows(now) => {
                return Ok(Some(Arc::clone(version)));
            }
            VersionState::Ready(_) => why = Some(RouteError::Suspended),
            VersionState::Loading | VersionState::Failed(_) => {
                why = why.or(Some(RouteError::NotReady));
            }
        }
    }
    why.map_or(Ok(None), Err)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(weights: &[u32]) -> Result<Split, SplitError> {
        let version = |(minor, weight): (usize, &u32)| (Version::new(1, minor as u64, 0), *weight);
        Split::new(weights.iter().enumerate().map(version))
    }

    #[test]
    fn weights_must_add_up() {
        assert!(split(&[900_000, 100_000]).is_ok());
        assert_eq!(split(&[900_000]), Err(SplitError(900_000)));
        assert_eq!(split(&[u32::MAX, u32::MAX]), Err(SplitError(2 * u64::from(u32::MAX))));
        assert_eq!(split(&[]), Err(SplitError(0)));
    }

    proptest! {
        #[test]
        fn every_draw_falls_to_a_version_in_proportion(cut in 0..=WHOLE, draw in 0..WHOLE) {
            let split = split(&[cut, WHOLE - cut]).unwrap();
            let wanted = Version::new(1, u64::from(draw < WHOLE - cut), 0);
            prop_assert_eq!(split.choose(draw), Some(&wanted));
        }
    }

    proptest! {
        /// Of any number of versions, one gets more at the cost of the next older one.
        #[test]
        fn raising_a_weight_moves_callers_to_it_and_none_back(
            cuts in prop::collection::vec(0..=WHOLE, 1..5),
            raised in 0_usize..5,
            by in 0..=WHOLE,
            draw in 0..WHOLE,
        ) {
            let mut cuts = cuts;
            cuts.extend([0, WHOLE]);
            cuts.sort_unstable();
            let mut weights: Vec<_> = cuts.windows(2).map(|cut| cut[1] - cut[0]).collect();
            let raised = 1 + raised % (weights.len() - 1);
            let before = split(&weights).unwrap();
            let by = by.min(weights[raised - 1]);
            weights[raised - 1] -= by;
            weights[raised] += by;
            let after = split(&weights).unwrap();
            let (before, after) = (before.choose(draw).unwrap(), after.choose(draw).unwrap());
            prop_assert!(before == after || after.minor == raised as u64, "{before} to {after}");
        }
    }

    #[test]
    fn a_caller_falls_to_the_same_place_everywhere() {
        // Computed with another implementation of SHA-256; published in the README.
        for (model, key, place) in [
            ("toxicity", "", 920_811),
            ("toxicity", "alice", 636_166),
            ("toxicity", "bob", 422_424),
            ("text-direction", "alice", 59_538),
            ("toxicity", "user-4711", 440_304),
            ("toxicity", "Ünïcödé", 390_759),
        ] {
            let model: ModelName = model.parse().unwrap();
            assert_eq!(bucket(&model, key.as_bytes()), place, "{model} {key:?}");
        }
    }

    #[test]
    fn nothing_of_weight_zero_is_chosen() {
        let split = split(&[0, WHOLE, 0]).unwrap();
        assert_eq!(split.choose(0), Some(&Version::new(1, 1, 0)));
        assert_eq!(split.choose(WHOLE - 1), Some(&Version::new(1, 1, 0)));
        assert_eq!(split.by_weight().count(), 1);
    }
}
