//! Golden examples: inputs with the outputs that the version must return for them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The most examples of an artifact. They run at every deployment and every start.
const MAX_EXAMPLES: usize = 1000;

/// The largest size of the golden examples, in bytes: ten images of 224 × 224 × 3 numbers with ten
/// digits each.
pub(super) const MAX_BYTES: usize = 16 << 20;

/// The most values in all golden examples together: three such images. A parsed value takes up to a
/// hundred bytes but may have had two in the file, so the size alone is no sufficient bound.
const MAX_VALUES: usize = 1 << 19;

/// Inputs and their golden outputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenExample {
    /// Values by input.
    pub inputs: Map<String, Value>,
    /// Values by output. Outputs that are omitted are not compared.
    pub outputs: Map<String, Value>,
}

/// Parse examples: one JSON object per line.
pub(super) fn parse(lines: &[u8]) -> Result<Vec<GoldenExample>, String> {
    if lines.len() > MAX_BYTES {
        return Err(format!("golden examples are larger than {} MiB", MAX_BYTES >> 20));
    }
    // Each value or key follows one of these bytes. Those within strings are counted as well, so
    // the count may be too high but not too low.
    if lines.iter().filter(|byte| b",:[{".contains(byte)).count() > MAX_VALUES {
        return Err(format!("golden examples have more than {MAX_VALUES} values"));
    }
    let text = std::str::from_utf8(lines).map_err(|_error| "golden examples are not UTF-8")?;
    let mut examples = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let example: GoldenExample = serde_json::from_str(line)
            .map_err(|error| format!("golden example {}: {error}", index + 1))?;
        if example.outputs.is_empty() {
            return Err(format!("golden example {} has no outputs", index + 1));
        }
        examples.push(example);
        if examples.len() > MAX_EXAMPLES {
            return Err(format!("more than {MAX_EXAMPLES} golden examples"));
        }
    }
    if examples.is_empty() {
        return Err("no golden examples: a version proves itself with at least one".to_owned());
    }
    Ok(examples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_without_outputs_is_rejected() {
        let good = br#"{"inputs":{"x":1},"outputs":{"y":2}}"#;
        assert_eq!(parse(good).unwrap().len(), 1);
        let empty_outputs = br#"{"inputs":{"x":1},"outputs":{}}"#;
        let unknown = br#"{"inputs":{},"outputs":{"y":1},"z":1}"#;
        for bad in [&b""[..], b"\n", b"{", empty_outputs, unknown, b"\xff"] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn examples_with_too_many_values_are_rejected() {
        let example = |zeros: usize| {
            let zeros = "0,".repeat(zeros);
            format!(r#"{{"inputs":{{"x":[{zeros}0]}},"outputs":{{"y":2}}}}"#)
        };
        assert!(parse(example(3 * 224 * 224 * 3).as_bytes()).is_ok());
        assert!(parse(example(MAX_VALUES).as_bytes()).unwrap_err().contains("values"));
        let long = format!(r#"{{"inputs":{{}},"outputs":{{"y":"{}"}}}}"#, "y".repeat(MAX_BYTES));
        assert!(parse(long.as_bytes()).unwrap_err().contains("MiB"));
    }
}
