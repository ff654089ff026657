//! Series about shadows, for the pairs whose candidate is loaded.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;

use super::families::{self, Family};
use super::write;
use guesthouse_control::shadow::{DifferenceKind, OutputCounts, PairCounts};
use guesthouse_model::ModelName;

/// The counters of the pairs, with their models.
#[derive(Debug)]
pub(super) struct Shadow(pub(super) Vec<(ModelName, PairCounts)>);

/// The labels of a series and its value.
type Series = (Vec<(&'static str, String)>, u64);

impl Shadow {
    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        write_family(encoder, &families::SHADOW_COMPARISONS, self.series(comparisons_of))?;
        write_family(encoder, &families::SHADOW_DIFFERENCES, self.series(differences_of))
    }

    fn series<'a>(
        &'a self,
        of_pair: impl Fn(&'a PairCounts) -> Vec<Series> + 'a,
    ) -> impl Iterator<Item = Series> + 'a {
        self.0.iter().flat_map(move |(model, counts)| {
            let pair = [
                ("model", model.to_string()),
                ("version", counts.candidate.to_string()),
                ("primary", counts.primary.to_string()),
            ];
            let with_pair =
                move |(more, count)| (pair.iter().cloned().chain(more).collect(), count);
            of_pair(counts).into_iter().map(with_pair)
        })
    }
}

fn comparisons_of(counts: &PairCounts) -> Vec<Series> {
    let results = counts.results.by_name();
    results.map(|(result, count)| (vec![("result", result.to_owned())], count)).into()
}

/// Only kinds that have occurred: a version may have a thousand outputs.
fn differences_of(counts: &PairCounts) -> Vec<Series> {
    let of_output = |(output, counts): (&String, &OutputCounts)| {
        let kinds = [
            (DifferenceKind::Score, counts.score),
            (DifferenceKind::Label, counts.label),
            (DifferenceKind::Nan, counts.nan),
            (DifferenceKind::Shape, counts.shape),
        ];
        let output = output.clone();
        kinds.into_iter().filter(|(_, count)| *count > 0).map(move |(kind, count)| {
            (vec![("output", output.clone()), ("kind", kind.as_str().to_owned())], count)
        })
    };
    counts.outputs.iter().flat_map(of_output).collect()
}

fn write_family(
    encoder: &mut DescriptorEncoder<'_>,
    family: &Family,
    series: impl Iterator<Item = Series>,
) -> fmt::Result {
    let series = series.map(|(labels, count)| (labels, ConstCounter::new(count)));
    write(encoder, family, series)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;
    use semver::Version;

    use super::*;
    use guesthouse_control::shadow::ResultCounts;

    impl Collector for Shadow {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            Self::encode(self, &mut encoder)
        }
    }

    #[test]
    fn series_are_labelled_by_both_versions() {
        let outputs = BTreeMap::from([
            ("label".to_owned(), OutputCounts { label: 2, ..OutputCounts::default() }),
            ("same".to_owned(), OutputCounts::default()),
        ]);
        let counts = PairCounts {
            candidate: Version::new(2, 0, 0),
            primary: Version::new(1, 0, 0),
            since: SystemTime::UNIX_EPOCH,
            compared: 1,
            rows: 2,
            results: ResultCounts { differed: 1, dropped: 3, ..ResultCounts::default() },
            errors: BTreeMap::new(),
            outputs,
        };
        let mut registry = Registry::with_prefix("guesthouse");
        let name: ModelName = "toxicity".parse().unwrap();
        registry.register_collector(Box::new(Shadow(vec![(name, counts)])));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        let pair = r#"model="toxicity",version="2.0.0",primary="1.0.0""#;
        for line in [
            format!(r#"guesthouse_shadow_comparisons_total{{{pair},result="differed"}} 1"#),
            format!(r#"guesthouse_shadow_comparisons_total{{{pair},result="dropped"}} 3"#),
            format!(r#"guesthouse_shadow_comparisons_total{{{pair},result="skipped"}} 0"#),
            format!(
                r#"guesthouse_shadow_differences_total{{{pair},output="label",kind="label"}} 2"#
            ),
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("same"), "{text}");
    }

    #[test]
    fn without_shadows_there_are_no_families() {
        let mut registry = Registry::with_prefix("guesthouse");
        registry.register_collector(Box::new(Shadow(Vec::new())));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        assert_eq!(text, "# EOF\n");
    }
}
