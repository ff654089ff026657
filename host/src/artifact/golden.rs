//! Golden examples: records with the outputs that the version must give for them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The most examples an artifact may carry: they run at every deploy and every start.
const MAX_EXAMPLES: usize = 1000;

/// How far a number may be from the golden one, by output; outputs that are not named must be
/// equal.
pub type Tolerances = BTreeMap<String, f64>;

/// One record and what it must give.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenExample {
    /// Values by input.
    pub inputs: Map<String, Value>,
    /// Values by output; outputs that are left out are not compared.
    pub outputs: Map<String, Value>,
}

/// Examples, one JSON object a line.
pub(super) fn parse(lines: &[u8]) -> Result<Vec<GoldenExample>, String> {
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
    fn an_example_that_checks_nothing_is_refused() {
        let good = br#"{"inputs":{"x":1},"outputs":{"y":2}}"#;
        assert_eq!(parse(good).unwrap().len(), 1);
        let empty_outputs = br#"{"inputs":{"x":1},"outputs":{}}"#;
        let unknown = br#"{"inputs":{},"outputs":{"y":1},"z":1}"#;
        for bad in [&b""[..], b"\n", b"{", empty_outputs, unknown, b"\xff"] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
