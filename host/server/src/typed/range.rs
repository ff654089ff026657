//! Ranges of compatible versions, as Cargo interprets version numbers: the versions that share a
//! package.

use std::fmt;

use semver::{Comparator, Op, Prerelease, Version, VersionReq};

use guesthouse_model::Selector;

/// A range of compatible versions: `^1`, `^0.1` or `^0.0.3`. Within a range, fields keep their
/// numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CompatibleRange {
    major: u64,
    /// Set for `0.y.z`, where the minor version acts as the major version.
    minor: Option<u64>,
    /// Set for `0.0.z`.
    patch: Option<u64>,
}

impl CompatibleRange {
    /// The range of a version, or of the release that a pre-release leads to.
    pub fn from_version(version: &Version) -> Self {
        let minor = (version.major == 0).then_some(version.minor);
        let patch = (minor == Some(0)).then_some(version.patch);
        Self { major: version.major, minor, patch }
    }

    /// The selector of the versions in the range.
    pub fn selector(self) -> Selector {
        let Self { major, minor, patch } = self;
        let comparator = Comparator { op: Op::Caret, major, minor, patch, pre: Prerelease::EMPTY };
        Selector::Range(VersionReq { comparators: vec![comparator] })
    }

    fn numbers(self) -> impl Iterator<Item = u64> {
        [Some(self.major), self.minor, self.patch].into_iter().flatten()
    }

    /// The last segment of the package name: `v1`, `v0_1`, `v0_0_3`.
    pub(super) fn segment(self) -> String {
        let numbers: Vec<_> = self.numbers().map(|number| number.to_string()).collect();
        format!("v{}", numbers.join("_"))
    }
}

impl fmt::Display for CompatibleRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<_> = self.numbers().map(|number| number.to_string()).collect();
        write!(formatter, "^{}", numbers.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guesthouse_model::contract::Bump;

    #[test]
    fn versions_that_share_a_package_are_compatible() {
        let numbers = [0, 1, 2];
        let releases = numbers.into_iter().flat_map(|major| {
            numbers.into_iter().flat_map(move |minor| {
                numbers.into_iter().map(move |patch| Version::new(major, minor, patch))
            })
        });
        let releases: Vec<_> = releases.collect();
        for one in &releases {
            assert!(CompatibleRange::from_version(one).selector().matches(one), "{one}");
            for other in &releases {
                let same =
                    CompatibleRange::from_version(one) == CompatibleRange::from_version(other);
                assert_eq!(
                    CompatibleRange::from_version(one).selector().matches(other),
                    same,
                    "{one} {other}"
                );
                if let Some(bump) = Bump::between(one, other) {
                    assert_eq!(bump < Bump::Major, same, "{one} {other}");
                }
            }
        }
    }

    #[test]
    fn packages_are_named_by_the_fixed_part_of_the_version() {
        for (version, segment, range) in [
            ("1.2.3", "v1", "^1"),
            ("12.0.0-rc.1", "v12", "^12"),
            ("0.1.7", "v0_1", "^0.1"),
            ("0.0.3", "v0_0_3", "^0.0.3"),
        ] {
            let class = CompatibleRange::from_version(&version.parse().unwrap());
            assert_eq!((class.segment().as_str(), class.to_string().as_str()), (segment, range));
        }
    }
}
