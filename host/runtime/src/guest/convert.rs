//! Conversions between the types of the bindings and those of the host.

use std::collections::{BTreeMap, BTreeSet};

use super::bindings::exports::guesthouse::model::lifecycle as exported;
use super::bindings::guesthouse::model::types as wit;
use super::fault::{Fault, Rejection};
use guesthouse_model::{Constraint, Datatype, Field, Signature, Tensor};

/// The most rejections that are kept for one batch.
pub const MAX_REJECTIONS: usize = 20;

/// The reason that a caller sees for a row whose inputs and outputs are not finite.
const NON_FINITE_REASON: &str =
    "has a value that is not finite (NaN or infinite), and so has the model's output for this row";

/// The longest failure message of a guest that is logged, in characters.
const MAX_FAILURE_CHARACTERS: usize = 4096;

/// The most dimensions of a wrong shape that are logged: more than a valid shape has.
const MAX_SHOWN_DIMENSIONS: usize = 9;

/// The longest reason of a rejection that a caller sees, in characters; part of the contract.
const MAX_REASON_CHARACTERS: usize = 200;

/// The signature that a guest declares, unchecked.
pub fn signature_from_wit(signature: exported::Signature) -> Signature {
    Signature {
        inputs: signature.inputs.into_iter().map(field_from_wit).collect(),
        outputs: signature.outputs.into_iter().map(field_from_wit).collect(),
        max_batch_size: signature.max_batch_size,
    }
}

pub(super) fn tensor_into_wit(tensor: &Tensor) -> wit::TensorParam<'_> {
    wit::TensorParam {
        name: &tensor.name,
        datatype: datatype_into_wit(tensor.datatype),
        shape: &tensor.shape,
        data: &tensor.data,
    }
}

/// Convert the outputs and check them against the signature. Returns them in the signature's order.
pub(super) fn outputs_from_wit(
    mut outputs: Vec<wit::TensorResult>,
    signature: &Signature,
    rows: u64,
) -> Result<Vec<Tensor>, Fault> {
    let bad = |what: String| Fault::BadOutput(what);
    let ordered = signature.outputs.iter().map(|field| {
        let found = outputs.iter().position(|output| output.name == field.name);
        let found = found.ok_or_else(|| bad(format!("output {:?} is missing", field.name)))?;
        let tensor = tensor_from_wit(outputs.swap_remove(found));
        if !field.fits(&tensor) || tensor.rows() != rows {
            let (name, datatype, dimensions) = (&field.name, tensor.datatype, tensor.shape.len());
            let shown = &tensor.shape[..dimensions.min(MAX_SHOWN_DIMENSIONS)];
            let what = format!("{datatype:?} of {dimensions} dimensions {shown:?}");
            return Err(bad(format!("output {name:?} is {what} for {rows} rows")));
        }
        tensor.check().map_err(|error| bad(format!("output {:?}: {error}", field.name)))?;
        if field.is_text() && !is_utf8(&tensor) {
            return Err(bad(format!("output {:?} is not UTF-8", field.name)));
        }
        Ok(tensor)
    });
    let ordered = ordered.collect::<Result<Vec<_>, _>>()?;
    if outputs.is_empty() {
        Ok(ordered)
    } else {
        Err(bad(format!("{} outputs are not in the signature", outputs.len())))
    }
}

/// Check that the outputs are finite. If the outputs of a row are not and neither are its inputs,
/// the caller is at fault. Other rows of the batch may have been affected, so they have to run
/// again without such rows.
pub(super) fn finite_outputs(
    inputs: &[Tensor],
    outputs: Vec<Tensor>,
) -> Result<Vec<Tensor>, Fault> {
    let Some(bad) = outputs.iter().find(|output| !output.is_finite()) else { return Ok(outputs) };
    let not_finite = |tensor: &Tensor| tensor.non_finite_rows();
    let bad_outputs: BTreeSet<usize> = outputs.iter().flat_map(not_finite).collect();
    let mut bad_inputs = BTreeMap::new();
    for input in inputs {
        for row in input.non_finite_rows() {
            bad_inputs.entry(row).or_insert(&input.name);
        }
    }
    let rejections = bad_inputs.into_iter().filter(|(row, _)| bad_outputs.contains(row));
    let rejections: Vec<_> = rejections
        .map(|(row, input)| Rejection {
            row,
            input: input.clone(),
            reason: NON_FINITE_REASON.to_owned(),
        })
        .collect();
    if rejections.is_empty() {
        let what = format!("output {:?} has a value that is not finite", bad.name);
        return Err(Fault::BadOutput(what));
    }
    Err(Fault::NonFiniteInput(rejections))
}

pub(super) fn fault_from_wit(error: wit::PredictError, signature: &Signature, rows: u64) -> Fault {
    let rejections = match error {
        wit::PredictError::Failed(reason) => {
            return Fault::Failed(shorten_failure(&reason));
        }
        wit::PredictError::Rejected(rejections) => rejections,
    };
    if rejections.is_empty() {
        return Fault::BadOutput("it rejected the batch, but no row".to_owned());
    }
    for rejection in &rejections {
        if u64::from(rejection.row) >= rows {
            return Fault::BadOutput(format!("it rejected row {} of {rows}", rejection.row));
        }
        if !signature.inputs.iter().any(|input| input.name == rejection.input) {
            return Fault::BadOutput("it rejected an input that it does not have".to_owned());
        }
    }
    Fault::Rejected(rejections.into_iter().take(MAX_REJECTIONS).map(rejection_from_wit).collect())
}

/// Truncate a failure message of a guest for the log.
pub(super) fn shorten_failure(reason: &str) -> String {
    reason.chars().take(MAX_FAILURE_CHARACTERS).collect()
}

fn rejection_from_wit(rejection: wit::Rejection) -> Rejection {
    Rejection {
        row: rejection.row as usize,
        input: rejection.input,
        reason: rejection.reason.chars().take(MAX_REASON_CHARACTERS).collect(),
    }
}

fn is_utf8(tensor: &Tensor) -> bool {
    guesthouse_model::bytes_elements(&tensor.data)
        .all(|element| std::str::from_utf8(element).is_ok())
}

fn tensor_from_wit(tensor: wit::TensorResult) -> Tensor {
    let datatype = datatype_from_wit(tensor.datatype);
    Tensor { name: tensor.name, datatype, shape: tensor.shape, data: tensor.data.into() }
}

fn field_from_wit(field: wit::Field) -> Field {
    Field {
        name: field.name,
        description: field.description,
        datatype: datatype_from_wit(field.datatype),
        row_shape: field.row_shape,
        constraints: field.constraints.into_iter().map(constraint_from_wit).collect(),
        default: field.default,
    }
}

fn constraint_from_wit(constraint: wit::Constraint) -> Constraint {
    match constraint {
        wit::Constraint::Text => Constraint::Text,
        wit::Constraint::Stripped => Constraint::Stripped,
        wit::Constraint::Length(wit::LengthRange { minimum, maximum }) => {
            Constraint::Length { minimum, maximum }
        }
        wit::Constraint::Range(wit::NumberRange { minimum, maximum }) => Constraint::Range {
            // Infinite bounds are no bounds; JSON cannot represent them.
            minimum: minimum.filter(|bound| *bound != f64::NEG_INFINITY),
            maximum: maximum.filter(|bound| *bound != f64::INFINITY),
        },
        wit::Constraint::OneOf(labels) => Constraint::OneOf(labels),
        wit::Constraint::Padded(element) => Constraint::Padded(element),
    }
}

fn datatype_from_wit(datatype: wit::Datatype) -> Datatype {
    match datatype {
        wit::Datatype::Bool => Datatype::Bool,
        wit::Datatype::Uint8 => Datatype::Uint8,
        wit::Datatype::Uint16 => Datatype::Uint16,
        wit::Datatype::Uint32 => Datatype::Uint32,
        wit::Datatype::Uint64 => Datatype::Uint64,
        wit::Datatype::Int8 => Datatype::Int8,
        wit::Datatype::Int16 => Datatype::Int16,
        wit::Datatype::Int32 => Datatype::Int32,
        wit::Datatype::Int64 => Datatype::Int64,
        wit::Datatype::Fp16 => Datatype::Fp16,
        wit::Datatype::Fp32 => Datatype::Fp32,
        wit::Datatype::Fp64 => Datatype::Fp64,
        wit::Datatype::Bytes => Datatype::Bytes,
        wit::Datatype::Bf16 => Datatype::Bf16,
    }
}

fn datatype_into_wit(datatype: Datatype) -> wit::Datatype {
    match datatype {
        Datatype::Bool => wit::Datatype::Bool,
        Datatype::Uint8 => wit::Datatype::Uint8,
        Datatype::Uint16 => wit::Datatype::Uint16,
        Datatype::Uint32 => wit::Datatype::Uint32,
        Datatype::Uint64 => wit::Datatype::Uint64,
        Datatype::Int8 => wit::Datatype::Int8,
        Datatype::Int16 => wit::Datatype::Int16,
        Datatype::Int32 => wit::Datatype::Int32,
        Datatype::Int64 => wit::Datatype::Int64,
        Datatype::Fp16 => wit::Datatype::Fp16,
        Datatype::Fp32 => wit::Datatype::Fp32,
        Datatype::Fp64 => wit::Datatype::Fp64,
        Datatype::Bytes => wit::Datatype::Bytes,
        Datatype::Bf16 => wit::Datatype::Bf16,
    }
}
