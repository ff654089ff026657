//! Makes what follows an operation of ours a part of it: constants by channel, a residual, an
//! activation, and scalars behind it.
//!
//! An operation absorbs its successor only if nothing else uses its result.

use guesthouse_arithmetic::{Activation, BinaryFunction, ReductionFunction, Tail};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;

use super::element_wise::{is_unit_interval, pattern};
use crate::tract::dynamic::DynamicProduct;
use crate::tract::graph::{
    Step, binary, constant, is_f32, node_at, only_step, replace, shape, step, unary, users,
};
use crate::tract::node::{Kind, Node};
use crate::tract::quantised::QuantisedNode;

/// Fuse until nothing changes any more.
pub(super) fn fuse(model: &mut TypedModel) -> TractResult<()> {
    Rewriter::<()>::default()
        .with_rule_for::<TypedBinOp>("fuse", |(), model, node, _name, _op| absorb(model, node))
        .with_rule_for::<ElementWiseOp>("fuse", |(), model, node, _name, _op| {
            absorb_unary(model, node)
        })
        .with_rule_for::<Node>("scaled operand", |(), model, node, _name, ours| {
            scaled_operand(model, node, ours)
        })
        .with_rule_for::<Node>("scaled channels", |(), model, node, _name, ours| {
            scaled_channels(model, node, ours)
        })
        .rewrite(&(), model)
}

/// Let a product absorb the factor of an operand, because it can scale its sums.
fn scaled_operand(
    model: &TypedModel,
    node: &TypedNode,
    ours: &Node,
) -> TractResult<Option<TypedModelPatch>> {
    let Kind::Product(product) = &ours.kind else { return Ok(None) };
    for slot in 0..product.input_count() {
        let Some((operand, Step::Scale(factor))) = only_step(model, node.inputs[slot]) else {
            continue;
        };
        let mut product = product.clone();
        product.scale *= factor;
        let mut inputs = node.inputs.clone();
        inputs[slot] = operand;
        let mut after = ours.clone();
        after.kind = Kind::Product(product);
        return replace(model, node, after, &inputs);
    }
    Ok(None)
}

/// Let a convolution absorb the factors of its input channels, such as the excitation of a squeeze,
/// if it has fewer weights than its input has elements: the weights are multiplied instead.
fn scaled_channels(
    model: &TypedModel,
    node: &TypedNode,
    ours: &Node,
) -> TractResult<Option<TypedModelPatch>> {
    let Kind::Convolution(convolution) = &ours.kind else { return Ok(None) };
    let pool = &convolution.pool;
    let scaled = shape(model, node.inputs[0])?;
    let product = model.node(node.inputs[0].node);
    let is_product = binary(model, product) == Some(BinaryFunction::Multiply);
    if convolution.groups > 1
        || convolution.has_factors
        || !is_product
        || users(model, node.inputs[0]) != 1
    {
        return Ok(None);
    }
    let weights = pool.output_channels * pool.kernel_shape.iter().product::<usize>();
    let elements = scaled[2..].iter().product::<TDim>().to_usize();
    if elements.is_err() || elements.is_ok_and(|elements| weights > elements) {
        return Ok(None);
    }
    for slot in 0..2 {
        let (image, factors) = (product.inputs[slot], product.inputs[1 - slot]);
        let by_channel = shape(model, factors)?;
        let is_by_channel = by_channel[..2] == scaled[..2]
            && by_channel[2..].iter().all(TDim::is_one)
            && model.outlet_fact(factors)?.konst.is_none();
        if !is_by_channel || shape(model, image)? != scaled {
            continue;
        }
        let mut convolution = convolution.clone();
        convolution.has_factors = true;
        let mut inputs = node.inputs.clone();
        inputs[0] = image;
        inputs.insert(1, factors);
        let mut after = ours.clone();
        after.kind = Kind::Convolution(convolution);
        return replace(model, node, after, &inputs);
    }
    Ok(None)
}

/// Let the operation before an element-wise operation with two operands absorb it.
pub(super) fn absorb(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(function) = binary(model, node) else { return Ok(None) };
    if let Some((operand, uses, tail)) = pattern(model, node)
        && let Some(patch) = absorb_tail(model, node, (operand, uses), tail)?
    {
        return Ok(Some(patch));
    }
    if let Some((operand, step)) = step(model, node)
        && users(model, operand) == 1
        && let Some(after) = node_at(model, operand).and_then(|before| with_step(before, step))
    {
        return replace(model, node, after, &model.node(operand.node).inputs);
    }
    if let Some((operand, step)) = step(model, node)
        && users(model, operand) == 1
        && let Some(patch) = absorb_real_step(model, node, (operand, step))?
    {
        return Ok(Some(patch));
    }
    if let Some(patch) = absorb_hard_sigmoid(model, node)? {
        return Ok(Some(patch));
    }
    for slot in 0..2 {
        let (operand, other) = (node.inputs[slot], node.inputs[1 - slot]);
        let Some(before) = node_at(model, operand) else { continue };
        if users(model, operand) != 1
            || before.tail != Tail::NONE
            || before.shape() != shape(model, node.id.into())?
        {
            continue;
        }
        let with_constant = constant(model, other)
            .and_then(|(values, shape)| with_constant(before, (function, slot), &values, &shape));
        if let Some(after) = with_constant {
            return replace(model, node, after, &model.node(operand.node).inputs);
        }
        if function == BinaryFunction::Add
            && is_f32(model, other)
            && shape(model, other)? == before.shape()
            && let Some(after) = with_residual(before)
        {
            let mut inputs = model.node(operand.node).inputs.clone();
            inputs.push(other);
            return replace(model, node, after, &inputs);
        }
    }
    Ok(None)
}

/// Let the operation before an element-wise operation absorb it.
pub(super) fn absorb_unary(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    let Some(tail) = unary(model, node) else { return Ok(None) };
    absorb_tail(model, node, (node.inputs[0], 1), tail)
}

/// Let the operation at the operand, which has so many uses inside of the pattern that ends with
/// the node, absorb the pattern.
fn absorb_tail(
    model: &TypedModel,
    node: &TypedNode,
    (operand, uses): (OutletId, usize),
    tail: Tail,
) -> TractResult<Option<TypedModelPatch>> {
    let output = shape(model, node.id.into())?;
    if users(model, operand) != uses || shape(model, operand)? != output {
        return Ok(None);
    }
    let before = model.node(operand.node);
    let after: Box<dyn TypedOp> = if let Some(ours) = before.op_as::<Node>() {
        if !ours.takes_activation() {
            return Ok(None);
        }
        Box::new(ours.clone().with_tail(tail))
    } else if let Some(quantised) = before.op_as::<QuantisedNode>() {
        if quantised.tail() != Some(Tail::NONE) {
            return Ok(None);
        }
        Box::new(quantised.with_tail(tail))
    } else if let Some(product) = before.op_as::<DynamicProduct>() {
        if product.tail != Tail::NONE {
            return Ok(None);
        }
        Box::new(DynamicProduct { tail, ..product.clone() })
    } else {
        return Ok(None);
    };
    TypedModelPatch::replace_single_op(model, node, &before.inputs, after).map(Some)
}

/// The operation with a scalar behind it.
fn with_step(before: &Node, step: Step) -> Option<Node> {
    let mut after = before.clone();
    match (step, &mut after.kind) {
        (Step::Scale(factor), Kind::Reduction { function, scale, .. })
            if *function != ReductionFunction::Maximum =>
        {
            *scale *= factor;
        }
        (Step::Scale(factor), Kind::Convolution(convolution))
            if before.tail == Tail::NONE && !convolution.has_residual =>
        {
            convolution.scale(&vec![factor; convolution.output_channels()]);
        }
        (Step::Shift(summand), Kind::Convolution(convolution)) if before.tail == Tail::NONE => {
            convolution.shift(&vec![summand; convolution.output_channels()]);
        }
        (Step::Scale(factor), Kind::Product(product))
            if before.tail == Tail::NONE && product.bias.is_empty() && !product.has_residual =>
        {
            product.scale *= factor;
        }
        _ if before.has_tail() => after.tail = tail_with_step(before.tail, step)?,
        _ => return None,
    }
    Some(after)
}

/// The tail with a scalar behind it.
fn tail_with_step(tail: Tail, step: Step) -> Option<Tail> {
    Some(match step {
        Step::Scale(factor) => {
            Tail { scale: tail.scale * factor, shift: tail.shift * factor, ..tail }
        }
        Step::Shift(summand) => Tail { shift: tail.shift + summand, ..tail },
        Step::AtLeast(_) | Step::AtMost(_) => {
            if (tail.scale, tail.shift) != (1.0, 0.0) {
                return None;
            }
            Tail { activation: bounded(tail.activation, step)?, ..tail }
        }
    })
}

/// Let an operation on 8-bit tensors with a real output absorb a scalar behind it.
fn absorb_real_step(
    model: &TypedModel,
    node: &TypedNode,
    (operand, step): (OutletId, Step),
) -> TractResult<Option<TypedModelPatch>> {
    let before = model.node(operand.node);
    let after: Box<dyn TypedOp> = if let Some(quantised) = before.op_as::<QuantisedNode>() {
        let tail = quantised.tail().and_then(|tail| tail_with_step(tail, step));
        let Some(tail) = tail else { return Ok(None) };
        Box::new(quantised.with_tail(tail))
    } else if let Some(product) = before.op_as::<DynamicProduct>() {
        let Some(tail) = tail_with_step(product.tail, step) else { return Ok(None) };
        Box::new(DynamicProduct { tail, ..product.clone() })
    } else {
        return Ok(None);
    };
    TypedModelPatch::replace_single_op(model, node, &before.inputs, after).map(Some)
}

/// The activation with one more bound.
fn bounded(activation: Activation, step: Step) -> Option<Activation> {
    let (least, greatest) = match activation {
        Activation::Identity => (f32::NEG_INFINITY, f32::INFINITY),
        Activation::Relu => (0.0, f32::INFINITY),
        Activation::Clip(least, greatest) => (least, greatest),
        _ => return None,
    };
    let (least, greatest) = match step {
        Step::AtLeast(value) => (least.max(value), greatest.max(value)),
        Step::AtMost(value) => (least, greatest.min(value)),
        Step::Scale(_) | Step::Shift(_) => return None,
    };
    Some(match (least, greatest) {
        (0.0, f32::INFINITY) => Activation::Relu,
        (least, greatest) => Activation::Clip(least, greatest),
    })
}

/// The hard sigmoid that ends with the node: an operation with a factor and a summand, bounded by 0
/// and 1.
fn absorb_hard_sigmoid(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    let bounds = step(model, node).and_then(|(inner, last)| {
        let (operand, first) = only_step(model, inner)?;
        is_unit_interval(first, last).then_some(operand)
    });
    let Some(operand) = bounds else { return Ok(None) };
    let Some(before) = node_at(model, operand) else { return Ok(None) };
    let Tail { activation, scale, shift } = before.tail;
    if users(model, operand) != 1 || !before.has_tail() || activation != Activation::Identity {
        return Ok(None);
    }
    let tail = Tail { activation: Activation::HardSigmoid(scale, shift), ..Tail::NONE };
    replace(model, node, before.clone().with_tail(tail), &model.node(operand.node).inputs)
}

/// The operation with a constant operand that differs by channel or by column.
fn with_constant(
    before: &Node,
    (function, slot): (BinaryFunction, usize),
    values: &[f32],
    shape: &[usize],
) -> Option<Node> {
    let mut after = before.clone();
    match &mut after.kind {
        Kind::Convolution(convolution) => {
            let channels = convolution.output_channels();
            let is_by_channel = shape.len() == before.shape().rank()
                && shape
                    .iter()
                    .enumerate()
                    .all(|(axis, size)| *size == if axis == 1 { channels } else { 1 });
            if !is_by_channel {
                return None;
            }
            match (function, slot) {
                (BinaryFunction::Add, _) => convolution.shift(values),
                (BinaryFunction::Subtract, 0) => {
                    convolution.shift(&values.iter().map(|value| -value).collect::<Vec<_>>());
                }
                (BinaryFunction::Multiply, _) if !convolution.has_residual => {
                    convolution.scale(values);
                }
                _ => return None,
            }
        }
        Kind::Product(product) => {
            let takes_bias = function == BinaryFunction::Add && product.bias.is_empty();
            if !takes_bias || !product.is_by_column(shape, before.shape()) {
                return None;
            }
            product.bias = values.into();
        }
        _ => return None,
    }
    Some(after)
}

/// The operation with one more input, which is added before the tail.
fn with_residual(before: &Node) -> Option<Node> {
    let mut after = before.clone();
    let has_residual = match &mut after.kind {
        Kind::Convolution(convolution) => &mut convolution.has_residual,
        Kind::Product(product) => &mut product.has_residual,
        _ => return None,
    };
    if *has_residual {
        return None;
    }
    *has_residual = true;
    Some(after)
}
