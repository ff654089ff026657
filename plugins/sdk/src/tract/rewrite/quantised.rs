//! Replaces what a graph computes on 8-bit tensors.
//!
//! Such a graph consists of operations on f32 between operations that quantise and dequantise. This
//! has to happen before constants are propagated, which makes f32 weights of 8-bit ones. Values of
//! type i8 become u8 with the zero point moved by 128.

mod dynamic;
mod endings;
mod products;
mod weights;

use guesthouse_arithmetic::{Quantisation, Requantisation};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::quant::{
    DequantizeLinearF32, OffsetI8asU8, OffsetU8asI8, QuantizeLinearI8, QuantizeLinearU8,
    offset_i8_as_u8, offset_u8_as_i8,
};

use crate::tract::graph::is_f32;
use crate::tract::quantised::{QuantisedKind, QuantisedNode};

/// Half of the values of a byte: what is added to an i8 to make it a u8.
const OFFSET: u8 = 128;

/// Replace all operations on 8-bit tensors.
pub(super) fn quantised(model: &mut TypedModel) -> TractResult<()> {
    repeat(model, &[quantise, dequantise, dynamic::quantise])?;
    repeat(model, &[offsets_that_cancel, axes_of_values])?;
    repeat(model, &[products::convolution, products::product, dynamic::product])?;
    repeat(model, &[endings::bias, dynamic::bias])?;
    repeat(model, &[endings::identity, endings::requantised, endings::sum])
}

type Rule = fn(&TypedModel, &TypedNode) -> TractResult<Option<TypedModelPatch>>;

/// Apply rules as long as they change something, without propagating constants.
fn repeat(model: &mut TypedModel, rules: &[Rule]) -> TractResult<()> {
    loop {
        let mut is_changed = false;
        for id in model.eval_order()? {
            for rule in rules {
                let node = model.node(id);
                let patch = rule(model, node).with_context(|| format!("rewriting {node}"))?;
                if let Some(patch) = patch {
                    patch.apply(model)?;
                    is_changed = true;
                    break;
                }
            }
        }
        if !is_changed {
            return Ok(());
        }
        model.compact()?;
    }
}

fn quantise(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(operation) = node.op_as::<ElementWiseOp>() else { return Ok(None) };
    let (reciprocal, zero_point, is_signed) =
        if let Some(op) = operation.0.downcast_ref::<QuantizeLinearU8>() {
            (op.scale, op.zero_point, false)
        } else if let Some(op) = operation.0.downcast_ref::<QuantizeLinearI8>() {
            (op.scale, op.zero_point.cast_unsigned() ^ OFFSET, true)
        } else {
            return Ok(None);
        };
    let scale = exact_scale(model, node, reciprocal.recip());
    if !is_f32(model, node.inputs[0]) || !is_scale(scale) {
        return Ok(None);
    }
    let kind = QuantisedKind::Quantise(scale, Requantisation::new(zero_point));
    let mut patch = TypedModelPatch::default();
    let input = patch.tap_model(model, node.inputs[0])?;
    let ours = QuantisedNode::new(kind, node.outputs[0].fact.shape.clone());
    let mut output = patch.wire_node(&node.name, ours, &[input])?[0];
    if is_signed {
        output = patch.wire_node(format!("{}.i8", node.name), offset_u8_as_i8(), &[output])?[0];
    }
    patch.shunt_outside(model, node.id.into(), output)?;
    Ok(Some(patch))
}

/// The scale itself instead of the reciprocal of its reciprocal, if an operation behind has it.
fn exact_scale(model: &TypedModel, node: &TypedNode, scale: f32) -> f32 {
    let successors = node.outputs[0].successors.iter();
    let scales = successors
        .filter_map(|inlet| Some(model.node(inlet.node).op_as::<DequantizeLinearF32>()?.scale));
    scales.into_iter().find(|other| are_near(*other, scale)).unwrap_or(scale)
}

fn dequantise(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(operation) = node.op_as::<DequantizeLinearF32>() else { return Ok(None) };
    let fact = model.outlet_fact(node.inputs[0])?;
    let is_signed = fact.datum_type == i8::datum_type();
    let zero_point = operation.zero_point + if is_signed { i32::from(OFFSET) } else { 0 };
    let (true, Ok(zero_point)) =
        (is_signed || fact.datum_type == u8::datum_type(), u8::try_from(zero_point))
    else {
        return Ok(None);
    };
    if fact.konst.is_some() || !is_scale(operation.scale) {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let mut input = patch.tap_model(model, node.inputs[0])?;
    if is_signed {
        input = patch.wire_node(format!("{}.u8", node.name), offset_i8_as_u8(), &[input])?[0];
    }
    let quantisation = Quantisation { scale: operation.scale, zero_point };
    let output = wire_dequantise(&mut patch, &node.name, quantisation, input)?;
    patch.shunt_outside(model, node.id.into(), output)?;
    Ok(Some(patch))
}

fn wire_dequantise(
    patch: &mut TypedModelPatch,
    name: &str,
    quantisation: Quantisation,
    input: OutletId,
) -> TractResult<OutletId> {
    let shape = patch.outlet_fact(input)?.shape.clone();
    let ours = QuantisedNode::new(QuantisedKind::Dequantise(quantisation), shape);
    Ok(patch.wire_node(name, ours, &[input])?[0])
}

/// u8 as i8 as u8, or the reverse.
fn offsets_that_cancel(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    let Some(outer) = node.op_as::<ElementWiseOp>() else { return Ok(None) };
    let inner = model.node(node.inputs[0].node);
    let Some(before) = inner.op_as::<ElementWiseOp>() else { return Ok(None) };
    let cancel = outer.0.is::<OffsetI8asU8>() && before.0.is::<OffsetU8asI8>()
        || outer.0.is::<OffsetU8asI8>() && before.0.is::<OffsetI8asU8>();
    if !cancel {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let source = patch.tap_model(model, inner.inputs[0])?;
    patch.shunt_outside(model, node.id.into(), source)?;
    Ok(Some(patch))
}

/// Reorder the axes of values instead of those of numbers, which are four times as large.
fn axes_of_values(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(operation) = node.op_as::<AxisOp>() else { return Ok(None) };
    let Some((source, quantisation)) = values(model, node.inputs[0]) else { return Ok(None) };
    let mut patch = TypedModelPatch::default();
    let source = patch.tap_model(model, source)?;
    let name = format!("{}.values", node.name);
    let reordered = patch.wire_node(name, operation.clone(), &[source])?[0];
    let output = wire_dequantise(&mut patch, &node.name, quantisation, reordered)?;
    patch.shunt_outside(model, node.id.into(), output)?;
    Ok(Some(patch))
}

/// The 8-bit values and their meaning, if the outlet has the numbers of 8-bit values.
fn values(model: &TypedModel, outlet: OutletId) -> Option<(OutletId, Quantisation)> {
    let node = model.node(outlet.node);
    match node.op_as::<QuantisedNode>()?.kind {
        QuantisedKind::Dequantise(quantisation) => Some((node.inputs[0], quantisation)),
        _ => None,
    }
}

/// Whether two scales are the same but for rounding.
fn are_near(left: f32, right: f32) -> bool {
    (left - right).abs() <= 4.0 * f32::EPSILON * left.abs()
}

fn is_scale(scale: f32) -> bool {
    scale.is_normal() && scale > 0.0
}
