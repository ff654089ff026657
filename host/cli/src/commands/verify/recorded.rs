//! Recorded rows: reading the file, and how far the outputs of an artifact are from it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use guesthouse_artifact::{GoldenExample, Tolerances};
use guesthouse_runtime::embed::Trial;
use serde_json::Value;

use super::measure::{self, ExampleFailure};

/// The largest file. A parsed value takes many times its text.
const MAX_BYTES: u64 = 64 << 20;

/// The rows of a file.
#[derive(Debug)]
pub(super) struct Recorded {
    file: PathBuf,
    rows: Vec<GoldenExample>,
}

/// How the rows compare.
#[derive(Debug)]
pub(super) struct Skew {
    pub(super) file: PathBuf,
    pub(super) rows: usize,
    pub(super) failures: Vec<ExampleFailure>,
    pub(super) outputs: Vec<OutputSkew>,
}

/// How the elements of an output compare.
#[derive(Debug, Default)]
pub(super) struct OutputSkew {
    pub(super) output: String,
    pub(super) tolerance: f64,
    /// The elements that could be compared.
    pub(super) elements: u64,
    /// The elements that are exactly the recorded ones.
    pub(super) equal: u64,
    /// The largest difference of numbers.
    pub(super) largest: f64,
    total: f64,
}

impl OutputSkew {
    /// The mean difference of all elements; those that are not numbers count as equal or not at all.
    #[expect(clippy::cast_precision_loss, reason = "figures need few digits")]
    pub(super) fn mean(&self) -> f64 {
        if self.elements == 0 { 0.0 } else { self.total / self.elements as f64 }
    }

    fn add(&mut self, wanted: &Value, is: &Value) {
        match (wanted, is) {
            (Value::Array(wanted), Value::Array(is)) => {
                wanted.iter().zip(is).for_each(|(wanted, is)| self.add(wanted, is));
            }
            _ => {
                self.elements += 1;
                let numbers = wanted.as_f64().zip(is.as_f64());
                let difference = numbers.map(|(wanted, is)| (wanted - is).abs());
                self.equal += u64::from(difference.map_or(wanted == is, |by| by == 0.0));
                let difference = difference.unwrap_or(0.0);
                self.largest = self.largest.max(difference);
                self.total += difference;
            }
        }
    }
}

/// Read a file of recorded rows.
pub(super) fn read(file: &Path) -> anyhow::Result<Recorded> {
    let name = file.display();
    let open = File::open(file).with_context(|| format!("cannot read {name}"))?;
    let mut text = String::new();
    let read = open.take(MAX_BYTES + 1).read_to_string(&mut text);
    let length = read.with_context(|| format!("cannot read {name}"))?;
    if u64::try_from(length).is_ok_and(|length| length > MAX_BYTES) {
        bail!("{name} is larger than {} MiB: split it into several files", MAX_BYTES >> 20)
    }
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row: GoldenExample = serde_json::from_str(line).with_context(|| {
            let line = index + 1;
            format!("{name}: line {line} is not like {{\"inputs\": {{…}}, \"outputs\": {{…}}}}")
        })?;
        if row.outputs.is_empty() {
            bail!("{name}: line {} has no outputs to compare with", index + 1)
        }
        rows.push(row);
    }
    if rows.is_empty() {
        bail!("{name} has no rows")
    }
    Ok(Recorded { file: file.to_owned(), rows })
}

/// Predict for every row, one call each.
pub(super) fn compare(trial: &Trial, recorded: &Recorded, tolerances: &Tolerances) -> Skew {
    let skew_of = |field: &guesthouse_model::Field| OutputSkew {
        output: field.name.clone(),
        tolerance: tolerances.get(&field.name).copied().unwrap_or(0.0),
        ..OutputSkew::default()
    };
    let mut outputs: Vec<_> = trial.signature().outputs.iter().map(skew_of).collect();
    let mut failures = Vec::new();
    for (index, row) in recorded.rows.iter().enumerate() {
        let call = trial.predict(std::slice::from_ref(&row.inputs));
        let answer = call.map(|call| call.outputs.into_iter().next().unwrap_or_default());
        let reasons = match answer {
            Ok(answer) => {
                for output in &mut outputs {
                    let name = output.output.clone();
                    if let Some((wanted, is)) = row.outputs.get(&name).zip(answer.get(&name)) {
                        output.add(wanted, is);
                    }
                }
                measure::differences(&row.outputs, &answer, tolerances)
            }
            Err(error) => vec![error.to_string()],
        };
        if !reasons.is_empty() {
            let example = index + 1;
            failures.push(ExampleFailure { example, only_after_others: false, reasons });
        }
    }
    outputs.retain(|output| output.elements > 0);
    Skew { file: recorded.file.clone(), rows: recorded.rows.len(), failures, outputs }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_of_elements_are_summed_up() {
        let mut skew = OutputSkew::default();
        skew.add(&json!([1, [2.0, "a"]]), &json!([1.5, [2, "b"]]));
        assert_eq!((skew.elements, skew.equal), (3, 1));
        assert!((skew.largest - 0.5).abs() < 1e-12 && (skew.mean() - 0.5 / 3.0).abs() < 1e-12);
    }
}
