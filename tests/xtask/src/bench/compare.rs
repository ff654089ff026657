//! Compares two builds of the server: both are measured in turn, in one run on one machine.
//!
//! For each figure there are the median of the current build, the median of the baseline, and the
//! median of the ratios of both within a round. A round measures both builds one after the other, so
//! that other activity of the machine affects both; every second round starts with the other build.

use super::statistics::{Pair, median, median_ratio};
use super::{Figure, Measurement, Subject, to_result};

/// The number of rounds. Odd, so that a median is a measured value.
const ROUNDS: u32 = 3;

/// A figure of the current build with the measurements of both builds.
struct Comparison {
    figure: Figure,
    pairs: Vec<Pair>,
}

/// Measures both builds in turn. Each round has its part of the time for measurements.
pub(super) fn alternate(
    current: &Subject<'_>,
    baseline: &Subject<'_>,
    measure: impl Fn(&Subject<'_>) -> Measurement,
) -> Measurement {
    let seconds = current.seconds / f64::from(ROUNDS);
    let current = Subject { seconds, ..current.clone() };
    let baseline = Subject { seconds, ..baseline.clone() };
    let (mut comparisons, mut failed) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let mut measure = |name: &str, subject: &Subject<'_>| {
            eprintln!("round {round} of {ROUNDS}: {name}");
            let (figures, outcome) = measure(subject);
            failed.extend(outcome.err().map(|error| format!("{name}: {error:#}")));
            figures
        };
        let (values, baselines) = if round % 2 == 1 {
            let baselines = measure("baseline", &baseline);
            (measure("current", &current), baselines)
        } else {
            let values = measure("current", &current);
            (values, measure("baseline", &baseline))
        };
        add_round(&mut comparisons, values, &baselines);
    }
    let figures = comparisons.into_iter().flat_map(Comparison::into_figures).collect();
    (figures, to_result(&failed))
}

/// Adds the figures that both builds have.
fn add_round(comparisons: &mut Vec<Comparison>, values: Vec<Figure>, baselines: &[Figure]) {
    for figure in values {
        let Some(baseline) = baselines.iter().find(|other| other.name == figure.name) else {
            continue;
        };
        let pair = Pair { baseline: baseline.value, value: figure.value };
        match comparisons.iter_mut().find(|other| other.figure.name == figure.name) {
            Some(comparison) => comparison.pairs.push(pair),
            None => comparisons.push(Comparison { figure, pairs: vec![pair] }),
        }
    }
}

impl Comparison {
    fn into_figures(self) -> Vec<Figure> {
        let Self { figure, pairs } = self;
        let median_of =
            |part: fn(&Pair) -> f64| median(&pairs.iter().map(part).collect::<Vec<_>>());
        let name = |suffix: &str| format!("{}_{suffix}", figure.name);
        let baseline = median_of(|pair| pair.baseline);
        let mut figures = vec![Figure::new(&name("baseline"), baseline, figure.unit, None)];
        if pairs.iter().all(|pair| pair.baseline > 0.0 && pair.value > 0.0) {
            figures.push(Figure::new(&name("ratio"), median_ratio(&pairs), "ratio", None));
        }
        figures.insert(0, Figure { value: median_of(|pair| pair.value), ..figure });
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_has_medians_and_the_median_ratio() {
        let figure = |name: &str, value| Figure::new(name, value, "ms", None);
        let mut comparisons = Vec::new();
        for (value, baseline) in [(2.0, 1.0), (30.0, 10.0), (4.0, 4.0)] {
            let values = vec![figure("a", value), figure("failed", 0.0), figure("new", 1.0)];
            add_round(&mut comparisons, values, &[figure("failed", 0.0), figure("a", baseline)]);
        }
        let figures: Vec<_> = comparisons.into_iter().flat_map(Comparison::into_figures).collect();
        let figures: Vec<_> = figures.iter().map(|it| (it.name.as_str(), it.value)).collect();
        let expected = [("a", 4.0), ("a_baseline", 4.0), ("a_ratio", 2.0)];
        assert_eq!(figures[..3], expected);
        assert_eq!(figures[3..], [("failed", 0.0), ("failed_baseline", 0.0)]);
    }
}
