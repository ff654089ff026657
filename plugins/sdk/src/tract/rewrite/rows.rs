//! Operations over neighbouring axes: softmax and reductions.

use std::ops::Range;

use guesthouse_arithmetic::ReductionFunction;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, Softmax, SoftmaxKind};

use super::apply;
use crate::tract::graph::{is_f32, replace, shape};
use crate::tract::node::{Kind, Node};
use crate::tract::reduction;

/// Replace softmax and reductions.
pub(super) fn rows(model: &mut TypedModel) -> TractResult<()> {
    apply(model, "logarithm of a softmax", log_softmax)?;
    apply(model, "softmax", softmax)?;
    apply(model, "reduction", reduction)
}

/// Replace the logarithm of a softmax by its pieces: `y - ln(sum(exp(y)))`, where `y` is the
/// distance to the greatest element.
fn log_softmax(
    model: &TypedModel,
    node: &TypedNode,
    softmax: &Softmax,
) -> TractResult<Option<TypedModelPatch>> {
    let is_log = matches!(softmax.kind, SoftmaxKind::LogSoftmax);
    if !is_log || softmax.quant_output_dt.is_some() || !is_f32(model, node.inputs[0]) {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let input = patch.tap_model(model, node.inputs[0])?;
    let mut wire = |name: &str, operation: Box<dyn TypedOp>, inputs: &[OutletId]| {
        let outputs = patch.wire_node(format!("{}.{name}", node.name), operation, inputs)?;
        TractResult::Ok(outputs[0])
    };
    let reduce = |reducer| Box::new(Reduce { axes: softmax.axes.clone(), reducer });
    let greatest = wire("greatest", reduce(Reducer::Max), &[input])?;
    let distance = wire("distance", Box::new(math::sub()), &[input, greatest])?;
    let exponential = wire("exponential", Box::new(math::exp()), &[distance])?;
    let sum = wire("sum", reduce(Reducer::Sum), &[exponential])?;
    let logarithm = wire("logarithm", Box::new(math::ln()), &[sum])?;
    let output = wire("output", Box::new(math::sub()), &[distance, logarithm])?;
    patch.shunt_outside(model, node.id.into(), output)?;
    Ok(Some(patch))
}

fn softmax(
    model: &TypedModel,
    node: &TypedNode,
    softmax: &Softmax,
) -> TractResult<Option<TypedModelPatch>> {
    let output = shape(model, node.id.into())?;
    if softmax.kind != SoftmaxKind::Softmax
        || softmax.quant_output_dt.is_some()
        || !is_f32(model, node.inputs[0])
    {
        return Ok(None);
    }
    let Some(axes) = neighbours(&softmax.axes) else { return Ok(None) };
    let last = output.rank() - 1;
    if axes.end == output.rank() {
        let ours = Node::new(Kind::Softmax { axes: axes.len() }, output.clone());
        return replace(model, node, ours, &node.inputs);
    }
    if axes.len() > 1 {
        return Ok(None);
    }
    // Another axis becomes the innermost one, and moves back.
    let mut patch = TypedModelPatch::default();
    let mut wire = patch.taps(model, &node.inputs)?;
    let [there, back] = [AxisOp::Move(axes.start, last), AxisOp::Move(last, axes.start)];
    wire = patch.wire_node(format!("{}.rows", node.name), there, &wire)?;
    let rows = patch.outlet_fact(wire[0])?.shape.clone();
    let ours = Node::new(Kind::Softmax { axes: 1 }, rows);
    wire = patch.wire_node(format!("{}.softmax", node.name), ours, &wire)?;
    wire = patch.wire_node(&node.name, back, &wire)?;
    patch.shunt_outside(model, node.id.into(), wire[0])?;
    Ok(Some(patch))
}

/// The range that these axes are, in any order; `None` if there are none or gaps.
fn neighbours(axes: &[usize]) -> Option<Range<usize>> {
    let first = *axes.iter().min()?;
    let range = first..first + axes.len();
    axes.iter().all(|axis| range.contains(axis)).then_some(range)
}

fn reduction(
    model: &TypedModel,
    node: &TypedNode,
    reduce: &Reduce,
) -> TractResult<Option<TypedModelPatch>> {
    let input = shape(model, node.inputs[0])?;
    let Some(axes) = neighbours(&reduce.axes) else { return Ok(None) };
    if !is_f32(model, node.inputs[0]) {
        return Ok(None);
    }
    let (function, scale) = match reduce.reducer {
        Reducer::Sum => (ReductionFunction::Sum, 1.0),
        Reducer::Max => (ReductionFunction::Maximum, 1.0),
        Reducer::Min => (ReductionFunction::Minimum, 1.0),
        Reducer::MeanOfSquares => {
            let columns: TDim = input.dims()[axes.clone()].iter().product();
            let Ok(columns) = columns.to_usize() else { return Ok(None) };
            (ReductionFunction::SumOfSquares, (columns as f32).recip())
        }
        _ => return Ok(None),
    };
    if !reduction::is_possible(function, &axes, input.rank()) {
        return Ok(None);
    }
    let output = shape(model, node.id.into())?.clone();
    let reduction = Kind::Reduction { function, axes, scale };
    replace(model, node, Node::new(reduction, output), &node.inputs)
}
