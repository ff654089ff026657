//! Constants of quantised graphs, before they are propagated.

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::quant::DequantizeLinearF32;

use super::OFFSET;

/// Weights as i8, whose zero point is 0.
pub(super) struct Weights {
    pub(super) values: Tensor,
    /// Of the same rank; a dimension has the weights' size or 1.
    pub(super) scales: Tensor,
}

impl Weights {
    /// The weights at this outlet, if it has nothing but their numbers.
    pub(super) fn at(model: &TypedModel, outlet: OutletId) -> TractResult<Option<Self>> {
        let node = model.node(outlet.node);
        if let Some(axes) = node.op_as::<AxisOp>() {
            let Some(mut weights) = Self::at(model, node.inputs[0])? else { return Ok(None) };
            if matches!(axes, AxisOp::Reshape(..)) {
                return Ok(None);
            }
            axes.change_tensor(&mut weights.values, false)?;
            axes.change_tensor(&mut weights.scales, true)?;
            return Ok(Some(weights));
        }
        if let Some(dequantise) = node.op_as::<DequantizeLinearF32>() {
            let Some(constant) = constant(model, node.inputs[0]) else { return Ok(None) };
            let zero_points = tensor0(dequantise.zero_point as f32);
            let scales = tensor0(dequantise.scale).broadcast_into_rank(constant.rank())?;
            return Self::new(&constant, &zero_points, scales);
        }
        // (cast(constant) - zero points) * scales
        let Some([difference, scales]) = operands::<math::Mul>(model, outlet) else {
            return Ok(None);
        };
        let Some([cast, zero_points]) = operands::<math::Sub>(model, difference) else {
            return Ok(None);
        };
        let cast = model.node(cast.node);
        if !cast.op_is::<Cast>() {
            return Ok(None);
        }
        let constants = [cast.inputs[0], zero_points, scales].map(|it| constant(model, it));
        let [Some(values), Some(zero_points), Some(scales)] = constants else { return Ok(None) };
        Self::new(&values, &zero_points, scales.into_tensor())
    }

    fn new(values: &Tensor, zero_points: &Tensor, scales: Tensor) -> TractResult<Option<Self>> {
        let is_unsigned = values.datum_type() == u8::datum_type();
        if !is_unsigned && values.datum_type() != i8::datum_type() {
            return Ok(None);
        }
        let wanted = if is_unsigned { f32::from(OFFSET) } else { 0.0 };
        let view = zero_points.cast_to::<f32>()?;
        if view.try_as_plain_ram()?.as_slice::<f32>()?.iter().any(|zero| *zero != wanted) {
            return Ok(None);
        }
        let values = if is_unsigned {
            let view = values.try_as_plain_ram()?;
            let signed = view.as_slice::<u8>()?.iter();
            let signed: Vec<i8> = signed.map(|value| (value ^ OFFSET).cast_signed()).collect();
            Tensor::from_shape(values.shape(), &signed)?
        } else {
            values.clone()
        };
        let is_aligned = scales.rank() == values.rank() && scales.datum_type() == f32::datum_type();
        Ok(is_aligned.then_some(Self { values, scales }))
    }

    /// The scales along an axis, if all others have one scale.
    pub(super) fn scales(&self, axis: usize) -> TractResult<Option<Vec<f32>>> {
        let count = self.values.shape()[axis];
        let mut others = self.scales.shape().iter().enumerate().filter(|(at, _)| *at != axis);
        if others.any(|(_, size)| *size != 1) {
            return Ok(None);
        }
        let view = self.scales.try_as_plain_ram()?;
        Ok(match view.as_slice::<f32>()? {
            [scale] => Some(vec![*scale; count]),
            scales => (scales.len() == count).then(|| scales.to_vec()),
        })
    }
}

/// The inputs of a node with two operands.
fn operands<B: tract_onnx::tract_core::ops::binary::BinMiniOp>(
    model: &TypedModel,
    outlet: OutletId,
) -> Option<[OutletId; 2]> {
    let node = model.node(outlet.node);
    let is_wanted = node.op_as::<TypedBinOp>()?.0.is::<B>();
    <[OutletId; 2]>::try_from(&node.inputs[..]).ok().filter(|_| is_wanted)
}

/// The constant at an outlet, which is computed if it consists of others.
pub(super) fn constant(model: &TypedModel, outlet: OutletId) -> Option<Arc<Tensor>> {
    let node = model.node(outlet.node);
    if let Some(constant) = &node.outputs[outlet.slot].fact.konst {
        return Some(constant.clone());
    }
    if node.inputs.is_empty() {
        return None;
    }
    let inputs = node.inputs.iter().map(|input| Some(constant(model, *input)?.into_tvalue()));
    let outputs = node.op.eval_out_of_plan(inputs.collect::<Option<_>>()?).ok()??;
    Some(outputs.into_iter().nth(outlet.slot)?.into_arc_tensor())
}
