//! How far the outputs of a packed model are from its golden examples.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use guesthouse_artifact::Artifact;
use guesthouse_model::terminal;
use guesthouse_runtime::embed::LoadedModel;
use serde_json::Value;

/// Print the largest difference of each output that is a number or consists of numbers.
pub(super) fn print(model: &LoadedModel, artifact: &Path) -> anyhow::Result<()> {
    let artifact = Artifact::open(artifact).context("failed to read the draft back")?;
    let mut largest: BTreeMap<&str, f64> = BTreeMap::new();
    for example in artifact.golden() {
        let rows = model.predict(std::slice::from_ref(&example.inputs))?;
        let answer = rows.first().context("the graph returns no row")?;
        for (output, wanted) in &example.outputs {
            let found = answer.get(output).and_then(|found| distance(wanted, found));
            if let Some(found) = found {
                let most = largest.entry(output).or_default();
                *most = most.max(found);
            }
        }
    }
    let count = artifact.golden().len();
    for (output, most) in largest {
        let output = terminal::printable(output);
        println!("golden examples: {count}, which differ by at most {most:e} in `{output}`");
    }
    Ok(())
}

/// The largest difference of two numbers at the same place; none if there are no numbers.
fn distance(wanted: &Value, found: &Value) -> Option<f64> {
    match (wanted, found) {
        (Value::Number(wanted), Value::Number(found)) => {
            Some((wanted.as_f64()? - found.as_f64()?).abs())
        }
        (Value::Array(wanted), Value::Array(found)) => {
            let distances =
                wanted.iter().zip(found).filter_map(|(one, other)| distance(one, other));
            distances.reduce(f64::max)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_largest_distance_of_numbers_counts() {
        assert_eq!(distance(&json!(1), &json!(1)), Some(0.0));
        assert_eq!(distance(&json!([[1.0, 2], [3, 4.5]]), &json!([[1.0, 2], [5, 4]])), Some(2.0));
        assert_eq!(distance(&json!("a"), &json!("b")), None);
        assert_eq!(distance(&json!([]), &json!([])), None);
    }
}
