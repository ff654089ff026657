//! Compares outputs with golden outputs.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

/// How far a number may be from the golden one, by output. Outputs that are not named must be equal.
pub type Tolerances = BTreeMap<String, f64>;

/// The first output that differs from the golden one.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenMismatch {
    output: String,
    wanted: Value,
    is: Option<Value>,
}

impl fmt::Display for GoldenMismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { output, wanted, is } = self;
        match is {
            Some(is) => write!(formatter, "`{output}` is {is}, not {wanted}"),
            None => write!(formatter, "there is no output `{output}`"),
        }
    }
}

/// Find the first output that is not within its tolerance of the golden output.
pub fn compare_golden(
    golden: &Map<String, Value>,
    answer: &Map<String, Value>,
    tolerances: &Tolerances,
) -> Option<GoldenMismatch> {
    golden.iter().find_map(|(output, wanted)| {
        let tolerance = tolerances.get(output).copied().unwrap_or(0.0);
        let is = answer.get(output);
        let good = is.is_some_and(|is| is_close(wanted, is, tolerance));
        let difference =
            || GoldenMismatch { output: output.clone(), wanted: wanted.clone(), is: is.cloned() };
        (!good).then(difference)
    })
}

fn is_close(wanted: &Value, is: &Value, tolerance: f64) -> bool {
    match (wanted, is) {
        (Value::Number(wanted), Value::Number(is)) if wanted != is => {
            if let (Some(wanted), Some(is)) = (wanted.as_i128(), is.as_i128())
                && tolerance < 1.0
            {
                // Different large integers may be equal as floats.
                return wanted == is;
            }
            let distance = wanted.as_f64().zip(is.as_f64()).map(|(a, b)| (a - b).abs());
            distance.is_some_and(|distance| distance <= tolerance)
        }
        (Value::Array(wanted), Value::Array(is)) => {
            wanted.len() == is.len()
                && wanted.iter().zip(is).all(|(wanted, is)| is_close(wanted, is, tolerance))
        }
        _ => wanted == is,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn differs(golden: Value, answer: Value) -> bool {
        let tolerances = Tolerances::from([("score".to_owned(), 0.01)]);
        let (golden, answer) = (golden.as_object().unwrap(), answer.as_object().unwrap());
        compare_golden(golden, answer, &tolerances).is_some()
    }

    #[test]
    fn outputs_may_only_differ_within_their_tolerance() {
        assert!(!differs(json!({"score": 0.5}), json!({"score": 0.509, "other": 1})));
        assert!(differs(json!({"score": 0.5}), json!({"score": 0.52})));
        assert!(differs(json!({"score": 0.5}), json!({"score": null})));
        assert!(differs(json!({"score": 0.5}), json!({})));
        assert!(!differs(json!({"score": [1, 2.0]}), json!({"score": [1.005, 2]})));
        assert!(differs(json!({"score": [1]}), json!({"score": [1, 1]})));
        assert!(differs(json!({"label": "toxic"}), json!({"label": "clean"})));
        assert!(differs(json!({"count": 1}), json!({"count": 2})));
        assert!(!differs(json!({"count": 1}), json!({"count": 1})));
        assert!(differs(json!({"count": i64::MAX}), json!({"count": i64::MAX - 1})));
    }
}
