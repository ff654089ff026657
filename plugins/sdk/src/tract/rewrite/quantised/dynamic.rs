//! Products of values that are quantised by the range that they have in a call:
//! `cast(values * weights) * (scale * scale of the weights)`.

use guesthouse_arithmetic::{BinaryFunction, Tail, pack_quantised_matrix};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::einsum::EinSum;

use super::products::{MAX_PRODUCTS, column_sums, matrix_axes};
use super::weights::constant;
use crate::tract::dynamic::{DynamicProduct, DynamicQuantise};
use crate::tract::graph::{binary, is_f32, users};

/// The name of tract's operation, whose type is private.
const TRACTS: &str = "DynamicQuantizeLinearU8";

/// Replace the quantisation itself.
pub(super) fn quantise(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    if node.op.name() != TRACTS || !is_f32(model, node.inputs[0]) {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let input = patch.tap_model(model, node.inputs[0])?;
    let outputs = patch.wire_node(&node.name, DynamicQuantise, &[input])?;
    for (slot, output) in outputs.into_iter().enumerate() {
        patch.shunt_outside(model, OutletId::new(node.id, slot), output)?;
    }
    Ok(Some(patch))
}

/// Replace a product of the values with weights.
pub(super) fn product(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    if binary(model, node) != Some(BinaryFunction::Multiply) {
        return Ok(None);
    }
    for slot in 0..2 {
        let (sums, factors) = (node.inputs[slot], node.inputs[1 - slot]);
        let Some(product) = integer_product(model, sums)? else { continue };
        let Some(scales) = weight_scales(model, factors, product.values)? else { continue };
        let n = product.sums.len();
        let scales = match &scales[..] {
            [scale] => vec![*scale; n],
            _ if scales.len() == n => scales,
            _ => continue,
        };
        let ours = DynamicProduct {
            k: product.k,
            weights: product.weights.into(),
            sums: product.sums.into(),
            scales: scales.into(),
            bias: [].into(),
            tail: Tail::NONE,
            shape: node.outputs[0].fact.shape.clone(),
        };
        let inputs = [0, 1, 2].map(|slot| OutletId::new(product.values, slot));
        return TypedModelPatch::replace_single_op(model, node, &inputs, ours).map(Some);
    }
    Ok(None)
}

/// Let a product absorb the bias that is added to it.
pub(super) fn bias(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    if binary(model, node) != Some(BinaryFunction::Add) {
        return Ok(None);
    }
    for slot in 0..2 {
        let product = node.inputs[slot];
        let Some(before) = model.node(product.node).op_as::<DynamicProduct>() else { continue };
        let Some(constant) = constant(model, node.inputs[1 - slot]) else { continue };
        let n = before.sums.len();
        let is_by_column = constant.len() == n && constant.shape().last() == Some(&n);
        if users(model, product) != 1
            || !before.bias.is_empty()
            || !is_by_column
            || node.outputs[0].fact.shape != before.shape
        {
            continue;
        }
        let mut after = before.clone();
        after.bias = constant.try_as_plain_ram()?.as_slice::<f32>()?.into();
        let inputs = &model.node(product.node).inputs;
        return TypedModelPatch::replace_single_op(model, node, inputs, after).map(Some);
    }
    Ok(None)
}

struct IntegerProduct {
    /// The node that quantises the rows.
    values: usize,
    k: usize,
    weights: Vec<u8>,
    sums: Vec<i32>,
}

/// The sums of products of values with weights at this outlet, as numbers.
fn integer_product(model: &TypedModel, outlet: OutletId) -> TractResult<Option<IntegerProduct>> {
    let cast = model.node(outlet.node);
    if users(model, outlet) != 1 || !cast.op_is::<Cast>() || users(model, cast.inputs[0]) != 1 {
        return Ok(None);
    }
    let product = model.node(cast.inputs[0].node);
    let Some(einsum) = product.op_as::<EinSum>() else { return Ok(None) };
    // Values and weights, a bias, and for both of them and the output a zero point and a scale.
    let [values, weights, bias, zero_point, _, weight_zero, ..] = product.inputs[..] else {
        return Ok(None);
    };
    let are_zero = |outlet| -> TractResult<bool> {
        let Some(constant) = constant(model, outlet) else { return Ok(false) };
        let numbers = constant.cast_to::<f32>()?;
        Ok(numbers.try_as_plain_ram()?.as_slice::<f32>()?.iter().all(|number| *number == 0.0))
    };
    let quantise = model.node(values.node);
    let is_dynamic = quantise.op_is::<DynamicQuantise>()
        && values.slot == 0
        && zero_point == OutletId::new(values.node, 2);
    if einsum.q_params != Some(i32::datum_type())
        || !is_dynamic
        || !are_zero(bias)?
        || !are_zero(weight_zero)?
    {
        return Ok(None);
    }
    let Some(matrix) = constant(model, weights) else { return Ok(None) };
    let rank = model.outlet_fact(values)?.rank();
    let Some([row, column]) = matrix_axes(&einsum.axes, rank, &matrix) else { return Ok(None) };
    let [k, n] = [row, column].map(|axis| matrix.shape()[axis]);
    if matrix.datum_type() != i8::datum_type() || k == 0 || n == 0 || k > MAX_PRODUCTS {
        return Ok(None);
    }
    let strides = [row, column].map(|axis| matrix.shape()[axis + 1..].iter().product());
    let view = matrix.try_as_plain_ram()?;
    let elements = view.as_slice::<i8>()?;
    Ok(Some(IntegerProduct {
        values: values.node,
        k,
        weights: pack_quantised_matrix([k, n], strides, elements),
        sums: column_sums([k, n], strides, elements),
    }))
}

/// The constant factors in a product with the scale of the values.
fn weight_scales(
    model: &TypedModel,
    outlet: OutletId,
    values: usize,
) -> TractResult<Option<Vec<f32>>> {
    let product = model.node(before_added_axes(model, outlet).node);
    if binary(model, product) != Some(BinaryFunction::Multiply) {
        return Ok(None);
    }
    for slot in 0..2 {
        let scale = before_added_axes(model, product.inputs[slot]);
        let Some(weights) = constant(model, product.inputs[1 - slot]) else { continue };
        if scale == OutletId::new(values, 1) {
            return Ok(Some(weights.try_as_plain_ram()?.as_slice::<f32>()?.to_vec()));
        }
    }
    Ok(None)
}

/// The outlet before axes of size 1 were added.
fn before_added_axes(model: &TypedModel, mut outlet: OutletId) -> OutletId {
    while let Some(AxisOp::Add(_)) = model.node(outlet.node).op_as::<AxisOp>() {
        outlet = model.node(outlet.node).inputs[0];
    }
    outlet
}
