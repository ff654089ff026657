//! Looks rows up before what is computed for all of them.
//!
//! The rows of a quantised table of embeddings are converted to f32 where the graph does it: for the
//! whole table, in every call, if tract finds it too large to convert when the model is loaded.

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::Gather;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;

use super::apply;

/// Move look-ups in constant tables in front of casts and of operations with scalars.
pub(super) fn look_up_first(model: &mut TypedModel) -> TractResult<()> {
    apply(model, "look-up", look_up)
}

fn look_up(
    model: &TypedModel,
    node: &TypedNode,
    gather: &Gather,
) -> TractResult<Option<TypedModelPatch>> {
    let computed = model.node(node.inputs[0].node);
    let (position, scalar) = if computed.op_is::<Cast>() {
        (0, None)
    } else if computed.op_is::<TypedBinOp>() {
        let is_scalar = |input: &OutletId| -> TractResult<bool> {
            Ok(model.outlet_fact(*input)?.konst.as_ref().is_some_and(|value| value.len() == 1))
        };
        match (is_scalar(&computed.inputs[0])?, is_scalar(&computed.inputs[1])?) {
            (false, true) => (0, Some(computed.inputs[1])),
            (true, false) => (1, Some(computed.inputs[0])),
            _ => return Ok(None),
        }
    } else {
        return Ok(None);
    };
    let table = computed.inputs[position];
    let keeps_shape = model.outlet_fact(table)?.shape == computed.outputs[0].fact.shape;
    if gather.output_type.is_some() || !keeps_shape || !is_constant(model, table) {
        return Ok(None);
    }
    let mut patch = TypedModelPatch::default();
    let taps = patch.taps(model, &[table, node.inputs[1]])?;
    let rows = patch.wire_node(format!("{}.rows", node.name), gather.clone(), &taps)?[0];
    let mut inputs = tvec!(rows);
    if let Some(scalar) = scalar {
        let rank = node.outputs[0].fact.rank();
        let value = model.outlet_fact(scalar)?.konst.clone().context("the scalar is constant")?;
        let value = value.into_tensor().into_shape(&[])?.broadcast_into_rank(rank)?;
        let scalar = patch.add_const(format!("{}.scalar", node.name), value)?;
        inputs.insert(1 - position, scalar);
    }
    let output = patch.wire_node(&node.name, computed.op.clone(), &inputs)?[0];
    patch.shunt_outside(model, node.id.into(), output)?;
    Ok(Some(patch))
}

/// Whether the outlet is computed from constants alone.
fn is_constant(model: &TypedModel, outlet: OutletId) -> bool {
    let node = model.node(outlet.node);
    let is_computed = node.op_is::<Cast>() || node.op_is::<TypedBinOp>();
    node.outputs[outlet.slot].fact.konst.is_some()
        || is_computed && node.inputs.iter().all(|input| is_constant(model, *input))
}
