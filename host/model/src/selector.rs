//! A selector, by which a caller chooses the version of a model.

use std::cmp::Ordering;
use std::str::FromStr;

use semver::{Comparator, Op, Version, VersionReq};

/// The longest selector that is parsed, in bytes.
const MAX_SELECTOR_LENGTH: usize = 256;

/// A selector, by which a caller chooses the version of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The version that the operator's traffic split assigns.
    Default,
    /// This version only: `=1.2.3` or `1.2.3`. Build metadata is compared only if the selector has
    /// it.
    Exact(Version),
    /// The version in this role: `stable` or `canary`.
    Channel(Channel),
    /// A version in this range: `^1.2`, `~1.2`, `1`.
    Range(VersionReq),
}

/// A role of a version in a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The promoted version.
    Stable,
    /// The newest candidate.
    Canary,
}

/// The text is not a valid [`Selector`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a version is selected by `1.2.3`, `=1.2.3`, `^1.2`, `~1.2`, `1`, `stable` or `canary`")]
pub struct SelectorError;

impl Selector {
    /// The selector of a major version, as in the path `/v1`.
    pub fn major(major: u64) -> Self {
        let comparator = Comparator {
            op: Op::Caret,
            major,
            minor: None,
            patch: None,
            pre: semver::Prerelease::EMPTY,
        };
        Self::Range(VersionReq { comparators: vec![comparator] })
    }

    /// Whether the selector, if it selects by number, may choose this version. A pre-release only
    /// matches a range that names a pre-release of the same version.
    pub fn matches(&self, version: &Version) -> bool {
        match self {
            Self::Default => version.pre.is_empty(),
            Self::Exact(exact) if exact.build.is_empty() => {
                version.cmp_precedence(exact) == Ordering::Equal
            }
            Self::Exact(exact) => version == exact,
            Self::Channel(_) => false,
            Self::Range(range) => range.matches(version),
        }
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_SELECTOR_LENGTH {
            return Err(SelectorError);
        }
        match text {
            "stable" => return Ok(Self::Channel(Channel::Stable)),
            "canary" => return Ok(Self::Channel(Channel::Canary)),
            _ => {}
        }
        let exact = text.strip_prefix('=').unwrap_or(text);
        if let Ok(version) = exact.parse() {
            return Ok(Self::Exact(version));
        }
        match text.parse::<VersionReq>() {
            Ok(range) if !range.comparators.is_empty() => Ok(Self::Range(range)),
            Ok(_) | Err(_) => Err(SelectorError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str, version: &str) -> bool {
        let selector: Selector = selector.parse().unwrap();
        selector.matches(&version.parse().unwrap())
    }

    #[test]
    fn full_versions_are_exact_and_partial_ones_ranges() {
        assert!(matches("1.2.3", "1.2.3") && !matches("1.2.3", "1.2.4"));
        assert!(matches("=1.2.3", "1.2.3") && !matches("=1.2.3", "1.3.0"));
        assert!(matches("^1.2", "1.10.0") && !matches("^1.2", "2.0.0"));
        assert!(matches("~1.2", "1.2.9") && !matches("~1.2", "1.3.0"));
        assert!(matches("1", "1.9.0") && !matches("1", "2.0.0"));
        assert!(Selector::major(0).matches(&Version::new(0, 9, 1)));
        assert!(!Selector::major(0).matches(&Version::new(1, 0, 0)));
    }

    #[test]
    fn pre_releases_must_be_named() {
        assert!(!matches("^1.2", "1.3.0-rc.1") && matches("^1.3.0-rc.1", "1.3.0-rc.1"));
        assert!(matches("1.3.0-rc.1", "1.3.0-rc.1"));
        assert!(!Selector::Default.matches(&"1.3.0-rc.1".parse().unwrap()));
    }

    #[test]
    fn build_metadata_matters_only_if_named() {
        assert!(matches("1.0.0", "1.0.0+a") && matches("=1.0.0+a", "1.0.0+a"));
        assert!(!matches("1.0.0+b", "1.0.0+a") && matches("^1", "1.0.0+a"));
    }

    #[test]
    fn channels_match_no_version_number() {
        assert_eq!("stable".parse(), Ok(Selector::Channel(Channel::Stable)));
        assert_eq!("canary".parse(), Ok(Selector::Channel(Channel::Canary)));
        assert!("Stable".parse::<Selector>().is_err() && !matches("stable", "1.0.0"));
    }

    #[test]
    fn invalid_selectors_are_rejected() {
        let long = "1".repeat(300);
        for bad in ["", "*", "latest", "1.2.3.4", "v1", "-1", "^^1", "1..2", long.as_str()] {
            assert_eq!(bad.parse::<Selector>(), Err(SelectorError), "{bad}");
        }
    }
}
