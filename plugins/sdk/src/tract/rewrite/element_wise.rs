//! Element-wise operations that no operation of ours has absorbed.

use guesthouse_arithmetic::{Activation, BinaryFunction, Tail};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math;

use super::apply;
use super::fusion::{absorb, absorb_unary};
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
    })?;
    apply::<TypedBinOp>(model, "residual of a product", |model, node, _op| {
        residual_of_product(model, node)
    })
}

/// Replace `x + x * s` by `x * (s + 1)`, where `s` is the smaller operand, such as the excitation of
/// a squeeze.
fn residual_of_product(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    let output = shape(model, node.id.into())?;
    if binary(model, node) != Some(BinaryFunction::Add) {
        return Ok(None);
    }
    for (operand, product) in [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])] {
        let factors = model.node(product.node);
        let is_product = binary(model, factors) == Some(BinaryFunction::Multiply);
        if !is_product || users(model, product) != 1 || shape(model, operand)? != output {
            continue;
        }
        let position = factors.inputs.iter().position(|input| *input == operand);
        let Some(position) = position else { continue };
        let other = factors.inputs[1 - position];
        if shape(model, other)? == output || users(model, other) != 1 {
            continue;
        }
        let mut patch = TypedModelPatch::default();
        let taps = patch.taps(model, &[operand, other])?;
        let one = tensor0(1_f32).broadcast_into_rank(output.rank())?;
        let one = patch.add_const(format!("{}.one", node.name), one)?;
        let name = format!("{}.plus_one", node.name);
        let factor = patch.wire_node(name, math::add(), &[taps[1], one])?[0];
        let scaled = patch.wire_node(&node.name, math::mul(), &[taps[0], factor])?[0];
        patch.shunt_outside(model, node.id.into(), scaled)?;
        return Ok(Some(patch));
    }
    Ok(None)
}

/// Replace all that are left, one by one, unless the operation before absorbs them.
pub(super) fn rest(model: &mut TypedModel) -> TractResult<()> {
    apply::<ElementWiseOp>(model, "unary", |model, node, _op| {
        let Some(tail) = unary(model, node) else { return Ok(None) };
        match absorb_unary(model, node)? {
            Some(patch) => Ok(Some(patch)),
            None => replace_unary(model, node, node.inputs[0], tail),
        }
    })?;
    // Bounds come last, because a factor and a summand with bounds are one activation.
    for function in [scale_or_shift, bound, two_operands] {
        apply::<TypedBinOp>(model, "binary", move |model, node, _op| match absorb(model, node)? {
            Some(patch) => Ok(Some(patch)),
            None => function(model, node),
        })?;
    }
    Ok(())
}

fn scale_or_shift(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    match step(model, node) {
        Some((operand, Step::Scale(scale))) => {
            replace_unary(model, node, operand, Tail { scale, ..Tail::NONE })
        }
        Some((operand, Step::Shift(shift))) => {
            replace_unary(model, node, operand, Tail { shift, ..Tail::NONE })
        }
        _ => Ok(None),
    }
}

fn bound(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let (operand, activation) = match step(model, node) {
        Some((operand, Step::AtLeast(0.0))) => (operand, Activation::Relu),
        Some((operand, Step::AtLeast(least))) => (operand, Activation::Clip(least, f32::INFINITY)),
        Some((operand, Step::AtMost(greatest))) => {
            (operand, Activation::Clip(f32::NEG_INFINITY, greatest))
        }
        _ => return Ok(None),
    };
    replace_unary(model, node, operand, Tail { activation, ..Tail::NONE })
}

fn two_operands(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(function) = binary(model, node) else { return Ok(None) };
    let output = shape(model, node.id.into())?;
    let operands = [shape(model, node.inputs[0])?, shape(model, node.inputs[1])?];
    if is_small(output) || !broadcast::is_possible(operands[0], operands[1]) {
        return Ok(None);
    }
    replace(model, node, Node::new(Kind::Binary(function), output.clone()), &node.inputs)
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

/// `x * (erf(x / sqrt(2)) + 1)`, which is twice the function; both factors may be scaled.
fn gelu(model: &TypedModel, node: &TypedNode) -> Option<(OutletId, usize, Tail)> {
    let (left, right) = factors(model, node)?;
    [(left, right), (right, left)].into_iter().find_map(|(first, second)| {
        let (factor, second_scale) = unscaled(model, second);
        let (erf, Step::Shift(1.0)) = only_step(model, factor)? else { return None };
        if users(model, erf) != 1
            || unary(model, model.node(erf.node))?.activation != Activation::Erf
        {
            return None;
        }
        let scaled = *model.node(erf.node).inputs.first()?;
        let (operand, Step::Scale(scale)) = only_step(model, scaled)? else { return None };
        let first_scale = if first == operand {
            1.0
        } else {
            let (inner, scale) = unscaled(model, first);
            (inner == operand).then_some(scale)?
        };
        let scale_of_both = 2.0 * first_scale * second_scale;
        let tail = Tail { activation: Activation::Gelu, scale: scale_of_both, shift: 0.0 };
        is_near(scale, 0.5_f32.sqrt()).then_some((operand, 2, tail))
    })
}

/// The operand and the factor at this outlet, if it is the only use of a scaled value.
fn unscaled(model: &TypedModel, outlet: OutletId) -> (OutletId, f32) {
    match only_step(model, outlet) {
        Some((operand, Step::Scale(scale))) => (operand, scale),
        _ => (outlet, 1.0),
    }
}

/// The operands of a multiplication that keeps their shape.
fn factors(model: &TypedModel, node: &TypedNode) -> Option<(OutletId, OutletId)> {
    if binary(model, node)? != BinaryFunction::Multiply {
        return None;
    }
    let (left, right) = (node.inputs[0], node.inputs[1]);
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
