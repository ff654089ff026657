//! Statistics of measurements.

/// The median; 0 without values.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len() % 2, values.get(middle)) {
        (_, None) => 0.0,
        (1, Some(value)) => *value,
        (_, Some(value)) => f64::midpoint(values[middle - 1], *value),
    }
}

/// The smallest value that at least this fraction of the values do not exceed; 0 without values.
pub(super) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let mut counts = (1..=values.len()).map(|count| count as f64);
    let rank = counts.position(|count| count >= part * values.len() as f64);
    rank.and_then(|rank| values.get(rank)).copied().unwrap_or(0.0)
}

/// Two measurements under different conditions, taken one after the other, so that other activity
/// of the machine affects both.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    pub(super) baseline: f64,
    pub(super) value: f64,
}

/// The median of the pairs' ratios. A ratio with a value of 0 is infinite.
pub(super) fn median_ratio(pairs: &[Pair]) -> f64 {
    let ratio = |pair: &Pair| {
        if pair.baseline > 0.0 && pair.value > 0.0 {
            pair.value / pair.baseline
        } else {
            f64::INFINITY
        }
    };
    median(&pairs.iter().map(ratio).collect::<Vec<_>>())
}

/// A straight line fitted by least squares.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Line {
    pub(super) slope: f64,
    /// The standard error of the slope, if the residuals are independent of each other.
    pub(super) slope_error: f64,
}

/// Fits a line to points, which need two different first coordinates.
pub(super) fn line_through(points: &[(f64, f64)]) -> Line {
    let count = points.len() as f64;
    let mean_of = |part: fn(&(f64, f64)) -> f64| points.iter().map(part).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean_of(|point| point.0), mean_of(|point| point.1));
    let sum_of = |part: &dyn Fn(f64, f64) -> f64| {
        points.iter().map(|(x, y)| part(x - mean_x, y - mean_y)).sum::<f64>()
    };
    let spread = sum_of(&|x, _| x * x);
    if spread == 0.0 || points.is_empty() {
        return Line::default();
    }
    let slope = sum_of(&|x, y| x * y) / spread;
    let remainder = sum_of(&|x, y| (y - slope * x).powi(2));
    let freedom = (count - 2.0).max(1.0);
    Line { slope, slope_error: (remainder / freedom / spread).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-9
    }

    #[test]
    fn medians_of_odd_and_even_counts_are_correct() {
        assert!(near(median(&[3.0, 1.0, 2.0]), 2.0));
        assert!(near(median(&[4.0, 1.0, 2.0, 3.0]), 2.5));
        assert!(near(median(&[]), 0.0));
    }

    #[test]
    fn quantiles_are_measured_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert!(near(quantile(&values, 0.99), 198.0));
        assert!(near(quantile(&values, 1.0), 200.0));
        assert!(near(quantile(&[7.0], 0.5), 7.0) && near(quantile(&[], 0.5), 0.0));
    }

    #[test]
    fn the_median_ratio_uses_each_pairs_baseline() {
        let pair = |baseline, value| Pair { baseline, value };
        // The machine became ten times slower in between, and the ratio stayed the same.
        let pairs = [pair(1.0, 1.2), pair(10.0, 12.0), pair(10.0, 99.0)];
        assert!(near(median_ratio(&pairs), 1.2));
        // A measurement of 0 is not a good ratio.
        assert!(median_ratio(&[pair(0.0, 1.0)]).is_infinite());
        assert!(median_ratio(&[pair(1.0, 0.0)]).is_infinite());
    }

    #[test]
    fn a_fitted_line_has_a_slope_and_an_error() {
        let exact = line_through(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]);
        assert!(near(exact.slope, 2.0) && near(exact.slope_error, 0.0), "{exact:?}");
        // Computed by hand: slope 0.5, residuals of about 0.5, -1 and 0.5, one degree of freedom,
        // spread 2.
        let rough = line_through(&[(0.0, 0.0), (1.0, 2.0), (2.0, 1.0)]);
        assert!(near(rough.slope, 0.5), "{rough:?}");
        assert!(near(rough.slope_error, (1.5_f64 / 2.0).sqrt()), "{rough:?}");
        assert!(near(line_through(&[(1.0, 1.0), (1.0, 2.0)]).slope, 0.0));
        assert!(near(line_through(&[]).slope, 0.0));
    }
}
