//! What follows products of 8-bit values, and other operations between 8-bit tensors.

use std::sync::Arc;

use guesthouse_arithmetic::{BinaryFunction, QuantisedEnding, QuantisedSum, Requantisation, Tail};
use tract_onnx::tract_core::internal::*;

use super::values;
use super::weights::constant;
use crate::tract::graph::{Step, binary, only_step, shape, users};
use crate::tract::quantised::{Ending, QuantisedKind, QuantisedNode};

/// Let a matrix product absorb the bias that is added to it.
pub(super) fn bias(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    if binary(model, node) != Some(BinaryFunction::Add) {
        return Ok(None);
    }
    for slot in 0..2 {
        let product = node.inputs[slot];
        let Some(before) = model.node(product.node).op_as::<QuantisedNode>() else { continue };
        let QuantisedKind::Product { n, ending, .. } = &before.kind else { continue };
        let is_free = ending.kind == QuantisedEnding::Real(Tail::NONE) && ending.bias.is_empty();
        let keeps_shape = shape(model, node.id.into())? == before.shape();
        if !is_free || users(model, product) != 1 || !keeps_shape {
            continue;
        }
        let Some(constant) = constant(model, node.inputs[1 - slot]) else { continue };
        let is_by_column = constant.len() == *n && constant.shape().last() == Some(n);
        if !is_by_column || constant.datum_type() != f32::datum_type() {
            continue;
        }
        let mut after = before.clone();
        if let QuantisedKind::Product { ending, .. } = &mut after.kind {
            ending.bias = constant.try_as_plain_ram()?.as_slice::<f32>()?.into();
        }
        let inputs = &model.node(product.node).inputs;
        return TypedModelPatch::replace_single_op(model, node, inputs, after).map(Some);
    }
    Ok(None)
}

/// Values that are made numbers and the same values again.
pub(super) fn identity(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    let Some(end) = End::at(model, node) else { return Ok(None) };
    let Some((source, input)) = values(model, end.start) else { return Ok(None) };
    let output = end.output;
    if !super::are_near(input.scale, end.scale) || output != Requantisation::new(input.zero_point) {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let source = patch.tap_model(model, source)?;
    patch.shunt_outside(model, node.id.into(), source)?;
    Ok(Some(patch))
}

/// Let a convolution or a matrix product quantise its result.
pub(super) fn requantised(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    let Some(end) = End::at(model, node) else { return Ok(None) };
    let before = model.node(end.start.node);
    let Some(ours) = before.op_as::<QuantisedNode>() else { return Ok(None) };
    if users(model, end.start) != 1 {
        return Ok(None);
    }
    let mut after = ours.clone();
    let (QuantisedKind::Convolution { ending, .. } | QuantisedKind::Product { ending, .. }) =
        &mut after.kind
    else {
        return Ok(None);
    };
    if ending.kind != QuantisedEnding::Real(Tail::NONE) || !requantise(ending, &end) {
        return Ok(None);
    }
    TypedModelPatch::replace_single_op(model, node, &before.inputs, after).map(Some)
}

/// Make the numbers of an ending values again. Whether the bias can be added to the sums.
fn requantise(ending: &mut Ending, end: &End) -> bool {
    if !ending.bias.is_empty() {
        let offsets: Option<Arc<[i32]>> = ending
            .offsets
            .iter()
            .zip(&*ending.bias)
            .zip(&*ending.multipliers)
            .map(|((offset, bias), multiplier)| {
                Some(offset.wrapping_add(in_units(*bias, *multiplier)?))
            })
            .collect();
        let Some(offsets) = offsets else { return false };
        (ending.offsets, ending.bias) = (offsets, [].into());
    }
    ending.multipliers =
        ending.multipliers.iter().map(|multiplier| multiplier / end.scale).collect();
    ending.kind = QuantisedEnding::Requantise(end.output);
    true
}

/// A number in units of sums, if it is as small as them. Adding it to a sum may wrap around, as it
/// does in the operation.
fn in_units(number: f32, unit: f32) -> Option<i32> {
    let units = (f64::from(number) / f64::from(unit)).round_ties_even();
    #[expect(clippy::cast_possible_truncation, reason = "it is compared before")]
    (units.abs() <= f64::from(i32::MAX)).then_some(units as i32)
}

/// The sum of two tensors of 8-bit values.
pub(super) fn sum(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(end) = End::at(model, node) else { return Ok(None) };
    let sum = model.node(end.start.node);
    if users(model, end.start) != 1 || binary(model, sum) != Some(BinaryFunction::Add) {
        return Ok(None);
    }
    let operands = [sum.inputs[0], sum.inputs[1]].map(|input| values(model, input));
    let [Some((left_source, left)), Some((right_source, right))] = operands else {
        return Ok(None);
    };
    let output = shape(model, node.id.into())?;
    if shape(model, left_source)? != output || shape(model, right_source)? != output {
        return Ok(None);
    }
    let kind = QuantisedSum { left, right, scale: end.scale, output: end.output };
    let ours = QuantisedNode::new(QuantisedKind::Sum(kind), output.clone());
    let inputs = [left_source, right_source];
    TypedModelPatch::replace_single_op(model, node, &inputs, ours).map(Some)
}

/// The quantisation at the end of a chain of bounds.
struct End {
    /// The numbers before the bounds.
    start: OutletId,
    scale: f32,
    output: Requantisation,
}

impl End {
    /// The chain that ends with the node.
    fn at(model: &TypedModel, node: &TypedNode) -> Option<Self> {
        let QuantisedKind::Quantise(scale, mut output) = node.op_as::<QuantisedNode>()?.kind else {
            return None;
        };
        let mut start = *node.inputs.first()?;
        while let Some((operand, step)) = only_step(model, start) {
            match step {
                Step::AtLeast(least) => {
                    let least = value(least, scale, output.zero_point);
                    output.least = output.least.max(least).min(output.greatest);
                }
                Step::AtMost(greatest) => {
                    let greatest = value(greatest, scale, output.zero_point);
                    output.greatest = output.greatest.min(greatest).max(output.least);
                }
                Step::Scale(_) | Step::Shift(_) => break,
            }
            start = operand;
        }
        Some(Self { start, scale, output })
    }
}

/// The value of a bound.
fn value(bound: f32, scale: f32, zero_point: u8) -> u8 {
    let value = (bound / scale).round_ties_even() + f32::from(zero_point);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    {
        value as u8
    }
}
