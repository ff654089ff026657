//! Operations over the innermost axes: softmax and reductions.

use guesthouse_arithmetic::ReductionFunction;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, Softmax, SoftmaxKind};

use super::apply;
use crate::tract::graph::{is_f32, replace, shape};
use crate::tract::node::{Kind, Node};

/// Replace softmax and reductions over the innermost axes.
pub(super) fn rows(model: &mut TypedModel) -> TractResult<()> {
    apply(model, "softmax", softmax)?;
    apply(model, "reduction", reduction)
}

fn softmax(
    model: &TypedModel,
    node: &TypedNode,
    softmax: &Softmax,
) -> TractResult<Option<TypedModelPatch>> {
    let output = shape(model, node.id.into())?;
    let is_ours = softmax.kind == SoftmaxKind::Softmax
        && softmax.quant_output_dt.is_none()
        && softmax.axes[..] == [output.rank().saturating_sub(1)]
        && is_f32(model, node.inputs[0]);
    if !is_ours {
        return Ok(None);
    }
    replace(model, node, Node::new(Kind::Softmax, output.clone()), &node.inputs)
}

fn reduction(
    model: &TypedModel,
    node: &TypedNode,
    reduce: &Reduce,
) -> TractResult<Option<TypedModelPatch>> {
    let input = shape(model, node.inputs[0])?;
    let axes = reduce.axes.len();
    let innermost = input.rank().saturating_sub(axes)..input.rank();
    let mut sorted = reduce.axes.clone();
    sorted.sort_unstable();
    if !is_f32(model, node.inputs[0]) || axes == 0 || !sorted.into_iter().eq(innermost.clone()) {
        return Ok(None);
    }
    let (function, scale) = match reduce.reducer {
        Reducer::Sum => (ReductionFunction::Sum, 1.0),
        Reducer::Max => (ReductionFunction::Maximum, 1.0),
        Reducer::Min => (ReductionFunction::Minimum, 1.0),
        Reducer::MeanOfSquares => {
            let columns: TDim = input.dims()[innermost].iter().product();
            let Ok(columns) = columns.to_usize() else { return Ok(None) };
            (ReductionFunction::SumOfSquares, (columns as f32).recip())
        }
        _ => return Ok(None),
    };
    let output = shape(model, node.id.into())?.clone();
    let reduction = Kind::Reduction { function, axes, scale };
    replace(model, node, Node::new(reduction, output), &node.inputs)
}
