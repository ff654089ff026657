//! Questions about tract's graph.

use guesthouse_arithmetic::{Activation, BinaryFunction, Tail};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::{math, nn};

use super::node::{Constant, Node};

/// An element-wise operation with a scalar.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Step {
    Scale(f32),
    Shift(f32),
    AtLeast(f32),
    AtMost(f32),
}

/// Whether the outlet has plain elements of type f32.
pub(super) fn is_f32(model: &TypedModel, outlet: OutletId) -> bool {
    model
        .outlet_fact(outlet)
        .is_ok_and(|fact| fact.datum_type == f32::datum_type() && !fact.is_exotic())
}

/// The shape of the outlet.
pub(super) fn shape(model: &TypedModel, outlet: OutletId) -> TractResult<&ShapeFact> {
    Ok(&model.outlet_fact(outlet)?.shape)
}

/// How often the outlet's value is used, as an output of the model too.
pub(super) fn users(model: &TypedModel, outlet: OutletId) -> usize {
    let successors = model.node(outlet.node).outputs[outlet.slot].successors.len();
    successors + model.outputs.iter().filter(|output| **output == outlet).count()
}

/// The values of a constant and their shape.
pub(super) fn constant(model: &TypedModel, outlet: OutletId) -> Option<(Constant, TVec<usize>)> {
    let tensor = model.outlet_fact(outlet).ok()?.konst.clone()?;
    let view = tensor.try_as_plain_ram().ok()?;
    Some((view.as_slice::<f32>().ok()?.into(), tensor.shape().into()))
}

/// The value of a constant whose elements are all the same.
pub(super) fn scalar(model: &TypedModel, outlet: OutletId) -> Option<f32> {
    let fact = model.outlet_fact(outlet).ok()?;
    if fact.datum_type != f32::datum_type() {
        return None;
    }
    let single = || fact.konst.as_ref().filter(|tensor| tensor.len() == 1);
    fact.uniform.as_ref().or_else(single)?.cast_to_scalar::<f32>().ok()
}

/// The operation of ours whose output this is.
pub(super) fn node_at(model: &TypedModel, outlet: OutletId) -> Option<&Node> {
    model.node(outlet.node).op_as::<Node>()
}

/// The function of an element-wise operation with two operands of type f32.
pub(super) fn binary(model: &TypedModel, node: &TypedNode) -> Option<BinaryFunction> {
    let operation = node.op_as::<TypedBinOp>()?;
    let are_f32 = node.inputs.iter().all(|input| is_f32(model, *input));
    if !are_f32 || !is_f32(model, node.id.into()) {
        return None;
    }
    let function = &operation.0;
    Some(if function.is::<math::Add>() {
        BinaryFunction::Add
    } else if function.is::<math::Sub>() {
        BinaryFunction::Subtract
    } else if function.is::<math::Mul>() {
        BinaryFunction::Multiply
    } else if function.is::<math::Div>() {
        BinaryFunction::Divide
    } else if function.is::<math::Max>() {
        BinaryFunction::Maximum
    } else if function.is::<math::Min>() {
        BinaryFunction::Minimum
    } else {
        return None;
    })
}

/// The operand and the step, if the node combines it with a scalar and keeps its shape.
pub(super) fn step(model: &TypedModel, node: &TypedNode) -> Option<(OutletId, Step)> {
    let function = binary(model, node)?;
    let (left, right) = (node.inputs[0], node.inputs[1]);
    let (operand, step) = if let Some(value) = scalar(model, right) {
        let step = match function {
            BinaryFunction::Add => Step::Shift(value),
            BinaryFunction::Subtract => Step::Shift(-value),
            BinaryFunction::Multiply => Step::Scale(value),
            BinaryFunction::Divide => Step::Scale(value.recip()),
            BinaryFunction::Maximum => Step::AtLeast(value),
            BinaryFunction::Minimum => Step::AtMost(value),
        };
        (left, step)
    } else {
        let value = scalar(model, left)?;
        let step = match function {
            BinaryFunction::Add => Step::Shift(value),
            BinaryFunction::Multiply => Step::Scale(value),
            BinaryFunction::Maximum => Step::AtLeast(value),
            BinaryFunction::Minimum => Step::AtMost(value),
            BinaryFunction::Subtract | BinaryFunction::Divide => return None,
        };
        (right, step)
    };
    let keeps_shape = shape(model, operand).ok()? == shape(model, node.id.into()).ok()?;
    keeps_shape.then_some((operand, step))
}

/// The operand and the step at this outlet, if nothing else uses its value.
pub(super) fn only_step(model: &TypedModel, outlet: OutletId) -> Option<(OutletId, Step)> {
    let is_only = users(model, outlet) == 1;
    is_only.then(|| step(model, model.node(outlet.node))).flatten()
}

/// The tail that an element-wise operation with one operand of type f32 is.
pub(super) fn unary(model: &TypedModel, node: &TypedNode) -> Option<Tail> {
    let operation = node.op_as::<ElementWiseOp>()?;
    if operation.1.is_some() || !is_f32(model, node.inputs[0]) || !is_f32(model, node.id.into()) {
        return None;
    }
    let function = &operation.0;
    let activation = if function.is::<nn::Sigmoid>() {
        Activation::Sigmoid
    } else if function.is::<nn::silu::Silu>() {
        Activation::Silu
    } else if function.is::<nn::gelu_exact::GeluExact>() {
        Activation::Gelu
    } else if let Some(relu) = function.downcast_ref::<nn::LeakyRelu>() {
        Activation::LeakyRelu(relu.alpha)
    } else if function.is::<nn::HardSwish>() {
        let activation = Activation::HardSwish;
        return Some(Tail { activation, scale: 6_f32.recip(), shift: 0.0 });
    } else if function.is::<math::Neg>() {
        return Some(Tail { scale: -1.0, ..Tail::NONE });
    } else if function.is::<math::Tanh>() {
        Activation::Tanh
    } else if function.is::<math::Exp>() {
        Activation::Exp
    } else if function.is::<math::Erf>() {
        Activation::Erf
    } else if function.is::<math::Sqrt>() {
        Activation::SquareRoot
    } else if function.is::<math::Rsqrt>() {
        Activation::ReciprocalSquareRoot
    } else if function.is::<math::Recip>() {
        Activation::Reciprocal
    } else if function.is::<math::Square>() {
        Activation::Square
    } else if function.is::<math::Abs>() {
        Activation::Absolute
    } else {
        return None;
    };
    Some(Tail { activation, ..Tail::NONE })
}

/// Replace a node by an operation of ours with these inputs.
pub(super) fn replace(
    model: &TypedModel,
    node: &TypedNode,
    operation: Node,
    inputs: &[OutletId],
) -> TractResult<Option<TypedModelPatch>> {
    let mut patch = TypedModelPatch::default();
    let inputs = patch.taps(model, inputs)?;
    let outputs = patch.wire_node(&node.name, operation, &inputs)?;
    patch.shunt_outside(model, node.id.into(), outputs[0])?;
    Ok(Some(patch))
}
