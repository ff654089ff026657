//! Looks rows up before what is computed for all of them.
//!
//! The rows of a quantised table of embeddings are converted to f32 where the graph does it: for the
//! whole table, in every call, if tract finds it too large to convert when the model is loaded.

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::Gather;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::quant::DequantizeLinearF32;

use super::apply;

/// Move look-ups in constant tables in front of element-wise operations.
pub(super) fn look_up_first(model: &mut TypedModel) -> TractResult<()> {
    apply(model, "look-up", look_up)
}

fn look_up(
    model: &TypedModel,
    node: &TypedNode,
    gather: &Gather,
) -> TractResult<Option<TypedModelPatch>> {
    let (table, indexes) = (node.inputs[0], node.inputs[1]);
    let computed = model.node(table.node);
    if gather.axis != 0 || gather.output_type.is_some() || !is_element_wise(computed) {
        return Ok(None);
    }
    let shape = &model.outlet_fact(table)?.shape;
    let is_outer = |input: &OutletId| -> TractResult<bool> {
        let size = &model.outlet_fact(*input)?.shape[0];
        Ok(is_constant(model, *input) && (size.is_one() || *size == shape[0]))
    };
    for input in &computed.inputs {
        if shape.rank() == 0 || !is_outer(input)? {
            return Ok(None);
        }
    }
    let mut patch = TypedModelPatch::default();
    let indexes_tap = patch.tap_model(model, indexes)?;
    let mut rows = tvec!();
    for (slot, input) in computed.inputs.iter().enumerate() {
        let tap = patch.tap_model(model, *input)?;
        let name = format!("{}.rows.{slot}", node.name);
        rows.push(if model.outlet_fact(*input)?.shape[0].is_one() && !shape[0].is_one() {
            // The same for all rows: a dimension for each of the indexes takes the place of the
            // first.
            let ones = tvec![1.to_dim(); model.outlet_fact(indexes)?.rank()];
            patch.wire_node(name, AxisOp::Reshape(0, tvec!(1.to_dim()), ones), &[tap])?[0]
        } else {
            patch.wire_node(name, gather.clone(), &[tap, indexes_tap])?[0]
        });
    }
    let output = patch.wire_node(&node.name, computed.op.clone(), &rows)?[0];
    patch.shunt_outside(model, node.id.into(), output)?;
    Ok(Some(patch))
}

fn is_element_wise(node: &TypedNode) -> bool {
    node.op_is::<Cast>()
        || node.op_is::<TypedBinOp>()
        || node.op_is::<ElementWiseOp>()
        || node.op_is::<DequantizeLinearF32>()
}

/// Whether the outlet is computed from constants alone.
fn is_constant(model: &TypedModel, outlet: OutletId) -> bool {
    let node = model.node(outlet.node);
    node.outputs[outlet.slot].fact.konst.is_some()
        || is_element_wise(node) && node.inputs.iter().all(|input| is_constant(model, *input))
}
