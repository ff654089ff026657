//! A golden example that is made here: the simplest row that the signature allows.

use std::path::Path;

use anyhow::Context as _;
use guesthouse_model::{Constraint, Datatype, Field, Signature};
use guesthouse_runtime::embed::{Runtime, TrialError};
use serde_json::{Map, Value, json};

/// The size of variable dimensions.
const SIZE: u32 = 8;

/// A golden example and what the artifact computes for it, as a line.
pub(super) fn example(
    runtime: &Runtime,
    artifact: &Path,
    signature: &Signature,
) -> anyhow::Result<String> {
    // What has a default is omitted, so that the default is tried.
    let inputs: Map<_, _> =
        signature.required_inputs().map(|field| (field.name.clone(), row(field))).collect();
    let outputs = runtime.predict_unproved(artifact, std::slice::from_ref(&inputs));
    let advice = "the graph cannot be run on zeros: give golden examples by --golden";
    let outputs = match outputs {
        Err(TrialError::Open(error)) => return Err(error.into()),
        outputs => outputs.context(advice)?,
    };
    let outputs = outputs.into_iter().next().context("the graph returns no row")?;
    Ok(json!({ "inputs": inputs, "outputs": outputs }).to_string())
}

/// A row of an input.
fn row(field: &Field) -> Value {
    let element = match field.datatype {
        Datatype::Bool => json!(false),
        Datatype::Bytes => json!(text(field)),
        _ => number(field),
    };
    field
        .row_shape
        .iter()
        .rev()
        .fold(element, |inner, size| (0..size.unwrap_or(SIZE)).map(|_| inner.clone()).collect())
}

/// The number in the field's range that is nearest to zero.
fn number(field: &Field) -> Value {
    let ranges = field.constraints.iter().filter_map(|constraint| match constraint {
        Constraint::Range { minimum, maximum } => Some((*minimum, *maximum)),
        _ => None,
    });
    let nearest = ranges.fold(0.0, |number: f64, (minimum, maximum)| {
        number.max(minimum.unwrap_or(number)).min(maximum.unwrap_or(f64::INFINITY))
    });
    if nearest == 0.0 {
        return json!(0);
    }
    let is_float =
        [Datatype::Fp16, Datatype::Bf16, Datatype::Fp32, Datatype::Fp64].contains(&field.datatype);
    #[expect(clippy::cast_possible_truncation, reason = "a bound of an integer")]
    if is_float { json!(nearest) } else { json!(nearest.ceil() as i64) }
}

/// The first text that the field allows, or the shortest one.
fn text(field: &Field) -> String {
    let mut text = String::new();
    for constraint in &field.constraints {
        match constraint {
            Constraint::OneOf(texts) => return texts.first().cloned().unwrap_or_default(),
            Constraint::Length { minimum, .. } => text = "a".repeat(*minimum as usize),
            _ => {}
        }
    }
    text
}
