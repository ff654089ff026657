//! Compares outputs with golden outputs.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

/// How far a number may be from the golden one, by output. Outputs that are not named must be equal.
pub type Tolerances = BTreeMap<String, f64>;

/// The most characters of a value in the text of a mismatch.
const MAX_EXCERPT: usize = 100;

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

/// An element of an output that is not within its tolerance of the golden one.
#[derive(Debug, Clone, PartialEq)]
pub struct ElementMismatch {
    output: String,
    index: Vec<usize>,
    reason: String,
}

impl fmt::Display for ElementMismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}", self.output)?;
        self.index.iter().try_for_each(|index| write!(formatter, "[{index}]"))?;
        write!(formatter, "` {}", self.reason)
    }
}

/// Find every element that is not within its output's tolerance of the golden one, and elements that
/// are missing or of another type. Empty if and only if [`compare_golden`] finds no difference.
pub fn element_mismatches(
    golden: &Map<String, Value>,
    answer: &Map<String, Value>,
    tolerances: &Tolerances,
) -> Vec<ElementMismatch> {
    let mut found = Vec::new();
    for (output, wanted) in golden {
        let tolerance = tolerances.get(output).copied().unwrap_or(0.0);
        let mut add = |index: &[usize], reason: String| {
            found.push(ElementMismatch { output: output.clone(), index: index.to_vec(), reason });
        };
        match answer.get(output) {
            Some(is) => walk(wanted, is, tolerance, &mut Vec::new(), &mut add),
            None => add(&[], "is missing".to_owned()),
        }
    }
    found
}

/// Add the elements below `index` that differ.
fn walk(
    wanted: &Value,
    is: &Value,
    tolerance: f64,
    index: &mut Vec<usize>,
    add: &mut impl FnMut(&[usize], String),
) {
    match (wanted, is) {
        (Value::Array(wanted), Value::Array(is)) if wanted.len() == is.len() => {
            for (position, (wanted, is)) in wanted.iter().zip(is).enumerate() {
                index.push(position);
                walk(wanted, is, tolerance, index, add);
                index.pop();
            }
        }
        (Value::Array(wanted), Value::Array(is)) => {
            add(index, format!("has {} elements, not {}", is.len(), wanted.len()));
        }
        _ if is_close(wanted, is, tolerance) => {}
        _ => {
            let distance = wanted.as_f64().zip(is.as_f64()).map(|(wanted, is)| (wanted - is).abs());
            let distance = distance.map(|distance| {
                format!(" (the difference is {distance:.3e}, the tolerance {tolerance})")
            });
            let (is, wanted) = (excerpt(is), excerpt(wanted));
            add(index, format!("is {is}, not {wanted}{}", distance.unwrap_or_default()));
        }
    }
}

/// The beginning of a value as JSON.
fn excerpt(value: &Value) -> String {
    let json = value.to_string();
    match json.char_indices().nth(MAX_EXCERPT) {
        Some((end, _)) => format!("{}…", &json[..end]),
        None => json,
    }
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
    fn every_element_outside_its_tolerance_is_listed() {
        let tolerances = Tolerances::from([("score".to_owned(), 0.01)]);
        let list = |golden: Value, answer: Value| -> Vec<String> {
            let (golden, answer) = (golden.as_object().unwrap(), answer.as_object().unwrap());
            let found = element_mismatches(golden, answer, &tolerances);
            assert_eq!(found.is_empty(), compare_golden(golden, answer, &tolerances).is_none());
            found.iter().map(ToString::to_string).collect()
        };
        let golden = json!({"score": [[1, 2.5], [3, 4]], "label": "a"});
        assert!(
            list(golden.clone(), json!({"score": [[1, 2.5], [3, 4.01]], "label": "a"})).is_empty()
        );
        let found = list(golden.clone(), json!({"score": [[1, 2], [3, 5]], "label": "b"}));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("`score[0][1]` is 2, not 2.5 (the difference is 5.0"));
        assert_eq!(found[2], "`label` is \"b\", not \"a\"");
        let found = list(golden.clone(), json!({"score": [[1, 2.5], [3]]}));
        assert_eq!(found, ["`score[1]` has 1 elements, not 2", "`label` is missing"]);
        let long = list(json!({"label": "é".repeat(200)}), json!({"label": null}));
        assert!(long[0].ends_with('…') && long[0].starts_with("`label` is null"), "{long:?}");
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
