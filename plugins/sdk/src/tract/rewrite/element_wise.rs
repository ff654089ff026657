//! Element-wise operations that no operation of ours has absorbed.

use guesthouse_arithmetic::{Activation, Tail};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;

use super::apply;
use crate::tract::broadcast;
use crate::tract::graph::{Step, binary, only_step, replace, shape, step, unary, users};
use crate::tract::node::{Kind, Node};

/// Smaller results are left to tract: a call costs more than they do.
const LEAST_ELEMENTS: usize = 64;

/// Replace activations that are made of several operations.
pub(super) fn activations(model: &mut TypedModel) -> TractResult<()> {
    apply::<TypedBinOp>(model, "activation", |model, node, _op| {
        let Some((operand, _uses, tail)) = pattern(model, node) else { return Ok(None) };
        replace_unary(model, node, operand, tail)
    })
}

/// Replace all that are left, one by one.
pub(super) fn rest(model: &mut TypedModel) -> TractResult<()> {
    apply::<ElementWiseOp>(model, "unary", |model, node, _op| {
        let Some(tail) = unary(model, node) else { return Ok(None) };
        replace_unary(model, node, node.inputs[0], tail)
    })?;
    apply::<TypedBinOp>(model, "scale and shift", |model, node, _op| match step(model, node) {
        Some((operand, Step::Scale(scale))) => {
            replace_unary(model, node, operand, Tail { scale, ..Tail::NONE })
        }
        Some((operand, Step::Shift(shift))) => {
            replace_unary(model, node, operand, Tail { shift, ..Tail::NONE })
        }
        _ => Ok(None),
    })?;
    super::fusion::fuse(model)?;
    apply::<TypedBinOp>(model, "bound", |model, node, _op| {
        let (operand, activation) = match step(model, node) {
            Some((operand, Step::AtLeast(0.0))) => (operand, Activation::Relu),
            Some((operand, Step::AtLeast(least))) => {
                (operand, Activation::Clip(least, f32::INFINITY))
            }
            Some((operand, Step::AtMost(greatest))) => {
                (operand, Activation::Clip(f32::NEG_INFINITY, greatest))
            }
            _ => return Ok(None),
        };
        replace_unary(model, node, operand, Tail { activation, ..Tail::NONE })
    })?;
    apply::<TypedBinOp>(model, "binary", |model, node, _op| {
        let Some(function) = binary(model, node) else { return Ok(None) };
        let output = shape(model, node.id.into())?;
        let operands = [shape(model, node.inputs[0])?, shape(model, node.inputs[1])?];
        if is_small(output) || !broadcast::is_possible(operands[0], operands[1]) {
            return Ok(None);
        }
        let binary = Node::new(Kind::Binary(function), output.clone());
        replace(model, node, binary, &node.inputs)
    })
}

fn replace_unary(
    model: &TypedModel,
    node: &TypedNode,
    operand: OutletId,
    tail: Tail,
) -> TractResult<Option<TypedModelPatch>> {
    let output = shape(model, node.id.into())?;
    let is_constant = model.outlet_fact(operand)?.konst.is_some();
    if is_small(output) || is_constant || shape(model, operand)? != output {
        return Ok(None);
    }
    let unary = Node::new(Kind::Unary, output.clone()).with_tail(tail);
    replace(model, node, unary, &[operand])
}

fn is_small(shape: &ShapeFact) -> bool {
    shape.volume().to_usize().is_ok_and(|elements| elements < LEAST_ELEMENTS)
}

/// The operand of an activation that ends with the node, how often the activation uses it, and the
/// activation.
pub(super) fn pattern(model: &TypedModel, node: &TypedNode) -> Option<(OutletId, usize, Tail)> {
    hard_swish(model, node).or_else(|| gelu(model, node))
}

/// `x * min(max(x + 3, 0), 6)`, or `x * min(max(x / 6 + 1 / 2, 0), 1)`
fn hard_swish(model: &TypedModel, node: &TypedNode) -> Option<(OutletId, usize, Tail)> {
    let (left, right) = factors(model, node)?;
    [(left, right), (right, left)].into_iter().find_map(|(operand, bounded)| {
        let (inner, last) = only_step(model, bounded)?;
        let (inner, first) = only_step(model, inner)?;
        let scale = if is_unit_interval(first, last) {
            let (inner, shift) = only_step(model, inner)?;
            let (inner, scale) = only_step(model, inner)?;
            let is_sixth = matches!((scale, shift), (Step::Scale(scale), Step::Shift(0.5))
                if is_near(scale, 6_f32.recip()));
            (is_sixth && inner == operand).then_some(1.0)?
        } else {
            let (inner, shift) = only_step(model, inner)?;
            let is_to_six = matches!(
                (shift, first, last),
                (Step::Shift(3.0), Step::AtLeast(0.0), Step::AtMost(6.0))
                    | (Step::Shift(3.0), Step::AtMost(6.0), Step::AtLeast(0.0))
            );
            (is_to_six && inner == operand).then_some(6.0)?
        };
        let tail = Tail { activation: Activation::HardSwish, scale: scale / 6.0, shift: 0.0 };
        Some((operand, 2, tail))
    })
}

/// `x * (erf(x / sqrt(2)) + 1)`, which is twice the function.
fn gelu(model: &TypedModel, node: &TypedNode) -> Option<(OutletId, usize, Tail)> {
    let (left, right) = factors(model, node)?;
    [(left, right), (right, left)].into_iter().find_map(|(operand, factor)| {
        let (erf, Step::Shift(1.0)) = only_step(model, factor)? else { return None };
        let is_erf = users(model, erf) == 1
            && unary(model, model.node(erf.node))?.activation == Activation::Erf;
        let scaled = *model.node(erf.node).inputs.first()?;
        let (inner, Step::Scale(scale)) = only_step(model, scaled)? else { return None };
        let is_gelu = is_erf && inner == operand && is_near(scale, 0.5_f32.sqrt());
        let tail = Tail { activation: Activation::Gelu, scale: 2.0, shift: 0.0 };
        is_gelu.then_some((operand, 2, tail))
    })
}

/// The operands of a multiplication that keeps their shape.
fn factors(model: &TypedModel, node: &TypedNode) -> Option<(OutletId, OutletId)> {
    use guesthouse_arithmetic::BinaryFunction::Multiply;
    let (left, right) =
        (binary(model, node)? == Multiply).then(|| (node.inputs[0], node.inputs[1]))?;
    let output = shape(model, node.id.into()).ok()?;
    let keeps_shape =
        [left, right].iter().all(|input| shape(model, *input).is_ok_and(|shape| shape == output));
    keeps_shape.then_some((left, right))
}

/// Whether the steps bound a value by 0 and 1.
pub(super) fn is_unit_interval(first: Step, last: Step) -> bool {
    matches!(
        (first, last),
        (Step::AtLeast(0.0), Step::AtMost(1.0)) | (Step::AtMost(1.0), Step::AtLeast(0.0))
    )
}

/// Whether a constant is what it should be but for rounding.
fn is_near(value: f32, wanted: f32) -> bool {
    (value - wanted).abs() <= 1e-6
}
