//! Matrix products.

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::einsum::EinSum;

use super::apply;
use crate::tract::graph::{constant, is_f32, replace, shape};
use crate::tract::node::{Kind, Node};
use crate::tract::product::{Axes, Operand, Product};

/// Replace sums of products of two tensors that are matrix products.
pub(super) fn products(model: &mut TypedModel) -> TractResult<()> {
    apply(model, "matrix product", product)
}

fn product(
    model: &TypedModel,
    node: &TypedNode,
    sum: &EinSum,
) -> TractResult<Option<TypedModelPatch>> {
    let [left, right] = node.inputs[..] else { return Ok(None) };
    let are_f32 = [left, right, node.id.into()].into_iter().all(|outlet| is_f32(model, outlet));
    if sum.q_params.is_some() || sum.operating_dt != f32::datum_type() || !are_f32 {
        return Ok(None);
    }
    let output = shape(model, node.id.into())?;
    let shapes = [shape(model, left)?, shape(model, right)?, output];
    let Some(axes) = Axes::new(&sum.axes, shapes) else { return Ok(None) };
    let sources = if axes.are_operands_swapped { [right, left] } else { [left, right] };
    let mut inputs: TVec<OutletId> = tvec!();
    let operands = sources.map(|source| {
        if let Some((values, shape)) = constant(model, source) {
            Operand::Constant(values, shape)
        } else {
            inputs.push(source);
            Operand::Input
        }
    });
    if inputs.is_empty() {
        return Ok(None);
    }
    let product = Kind::Product(Box::new(Product::new(axes, operands)));
    replace(model, node, Node::new(product, output.clone()), &inputs)
}
