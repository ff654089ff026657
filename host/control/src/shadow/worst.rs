//! The worst of what was found: a few, in order.

use std::cmp::Ordering;

use super::compare::Kind;

/// How many are kept: enough to see a pattern, few enough to read.
pub(super) const KEPT: usize = 16;

/// How grave a disagreement is: by its kind, and within it by the distance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Severity {
    pub(super) kind: Kind,
    pub(super) distance: f64,
}

impl Severity {
    fn order(&self, other: &Self) -> Ordering {
        self.kind.cmp(&other.kind).then(self.distance.total_cmp(&other.distance))
    }
}

/// At most [`KEPT`] things, the gravest first; of equals, the first to come.
#[derive(Debug, Clone)]
pub(super) struct Worst<T>(Vec<(Severity, T)>);

impl<T> Default for Worst<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Worst<T> {
    /// Keep it, if it is among the worst.
    pub(super) fn push(&mut self, severity: Severity, thing: T) {
        let place = self.0.partition_point(|(other, _)| other.order(&severity).is_ge());
        if place < KEPT {
            self.0.truncate(KEPT - 1);
            self.0.insert(place, (severity, thing));
        }
    }

    /// The gravest first.
    pub(super) fn into_sorted(self) -> impl Iterator<Item = (Severity, T)> {
        self.0.into_iter()
    }

    /// The gravest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, thing)| thing)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORDER: [Kind; 5] = [Kind::Error, Kind::Shape, Kind::Nan, Kind::Label, Kind::Score];

    #[test]
    fn errors_rank_before_score_differences() {
        let mut worst = Worst::default();
        for kind in [Kind::Score, Kind::Nan, Kind::Error, Kind::Label, Kind::Shape] {
            worst.push(Severity { kind, distance: 0.5 }, (kind, 0));
        }
        worst.push(Severity { kind: Kind::Score, distance: 0.75 }, (Kind::Score, 1));
        worst.push(Severity { kind: Kind::Score, distance: 0.5 }, (Kind::Score, 2));
        let kinds: Vec<_> = worst.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds[..5], ORDER);
        let scores: Vec<_> = worst.iter().skip(4).map(|(_, number)| *number).collect();
        assert_eq!(scores, [1, 0, 2], "the larger distance, then the earlier one");
    }

    proptest! {
        /// Never more than the bound, and just those that sorting all of them would leave.
        #[test]
        fn the_worst_differences_are_kept(
            all in prop::collection::vec((0_usize..5, 0_u8..20), 0..100),
        ) {
            let severity = |(kind, distance): (usize, u8)| {
                Severity { kind: ORDER[kind], distance: f64::from(distance) }
            };
            let mut worst = Worst::default();
            let mut sorted: Vec<_> = all.iter().copied().map(severity).enumerate().collect();
            for (index, severity) in &sorted {
                worst.push(*severity, *index);
                prop_assert!(worst.iter().count() <= KEPT);
            }
            sorted.sort_by(|(_, one), (_, other)| other.order(one));
            let wanted: Vec<_> = sorted.iter().take(KEPT).map(|(index, _)| *index).collect();
            prop_assert_eq!(worst.iter().copied().collect::<Vec<_>>(), wanted);
        }
    }
}
