//! Layer normalisation, put together from its pieces.

use guesthouse_arithmetic::BinaryFunction;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, RmsNorm};

use super::apply;
use crate::tract::graph::{Step, binary, constant, is_f32, replace, shape, step};
use crate::tract::node::{Constant, Kind, Node};

/// Replace layer normalisations over the innermost axis.
pub(super) fn layer_norms(model: &mut TypedModel) -> TractResult<()> {
    apply(model, "layer normalisation", layer_norm)
}

/// `RmsNorm(x - mean(x)) * gain + bias`, where the gain and the bias may be missing.
fn layer_norm(
    model: &TypedModel,
    node: &TypedNode,
    norm: &RmsNorm,
) -> TractResult<Option<TypedModelPatch>> {
    let output = shape(model, node.id.into())?.clone();
    let axis = output.rank().saturating_sub(1);
    let columns = output.dims().last().map(TDim::to_usize);
    let Some(Ok(columns)) = columns else { return Ok(None) };
    if norm.axis != axis || !is_f32(model, node.id.into()) {
        return Ok(None);
    }
    let Some(operand) = centred(model, node.inputs[0], columns) else { return Ok(None) };
    let epsilon = norm.eps.cast_to_scalar::<f32>()?;
    let (mut last, mut gain, mut bias) = (node, None, None);
    if let Some((next, values)) = by_column(model, last, BinaryFunction::Multiply, columns)? {
        (last, gain) = (next, Some(values));
    }
    if let Some((next, values)) = by_column(model, last, BinaryFunction::Add, columns)? {
        (last, bias) = (next, Some(values));
    }
    let gain = gain.unwrap_or_else(|| vec![1.0; columns].into());
    let bias = bias.unwrap_or_else(|| vec![0.0; columns].into());
    let norm = Node::new(Kind::LayerNorm { epsilon, gain, bias }, output);
    replace(model, last, norm, &[operand])
}

/// The operand `x` of `x - mean(x)` over the innermost axis.
fn centred(model: &TypedModel, outlet: OutletId, columns: usize) -> Option<OutletId> {
    let node = model.node(outlet.node);
    if binary(model, node)? != BinaryFunction::Subtract {
        return None;
    }
    let (operand, mean) = (node.inputs[0], node.inputs[1]);
    let (sum, Step::Scale(scale)) = step(model, model.node(mean.node))? else { return None };
    let reduce = model.node(sum.node).op_as::<Reduce>()?;
    let is_mean = reduce.reducer == Reducer::Sum
        && reduce.axes[..] == [shape(model, operand).ok()?.rank() - 1]
        && model.node(sum.node).inputs[0] == operand
        && (scale * columns as f32 - 1.0).abs() <= 1e-6;
    is_mean.then_some(operand)
}

/// The only successor, if it combines the node's output with a constant by column.
fn by_column<'a>(
    model: &'a TypedModel,
    node: &TypedNode,
    function: BinaryFunction,
    columns: usize,
) -> TractResult<Option<(&'a TypedNode, Constant)>> {
    let Some(successor) = model.single_succ(node.id)? else { return Ok(None) };
    let is_output = model.outputs.contains(&node.id.into());
    if is_output || binary(model, successor) != Some(function) {
        return Ok(None);
    }
    let other = successor.inputs.iter().find(|input| input.node != node.id);
    let Some((values, shape)) = other.and_then(|other| constant(model, *other)) else {
        return Ok(None);
    };
    let keeps_shape = model.node_output_facts(successor.id)?[0].shape
        == model.node_output_facts(node.id)?[0].shape;
    let is_by_column = values.len() == columns && shape.last() == Some(&columns);
    Ok((keeps_shape && is_by_column).then_some((successor, values)))
}
