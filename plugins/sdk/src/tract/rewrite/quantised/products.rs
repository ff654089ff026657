//! Convolutions and matrix products of 8-bit values with 8-bit weights.

use std::sync::Arc;

use guesthouse_arithmetic::{
    Quantisation, QuantisedEnding, Tail, pack_quantised_matrix, pack_quantised_weights,
};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::nn::DataFormat;

use super::weights::{Weights, constant};
use super::{is_scale, values};
use crate::tract::quantised::{Ending, QuantisedKind, QuantisedNode, Windows};

/// The products in a sum that cannot overflow.
pub(super) const MAX_PRODUCTS: usize = (i32::MAX / (255 * 128)) as usize;

/// Replace a convolution by one whose output is real.
pub(super) fn convolution(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    let Some(conv) = node.op_as::<Conv>() else { return Ok(None) };
    let pool = &conv.pool_spec;
    let [inputs, outputs] = [pool.input_channels, pool.output_channels];
    let is_depthwise = conv.group > 1 && conv.group == inputs && conv.group == outputs;
    if conv.q_params.is_some()
        || conv.kernel_fmt != KernelFormat::OIHW
        || pool.data_format != DataFormat::NCHW
        || !(1..=2).contains(&pool.rank())
        || !(conv.group == 1 || is_depthwise)
    {
        return Ok(None);
    }
    let Some((source, input)) = values(model, node.inputs[0]) else { return Ok(None) };
    let Some(weights) = Weights::at(model, node.inputs[1])? else { return Ok(None) };
    let Some(scales) = weights.scales(0)? else { return Ok(None) };
    let Some(bias) = real_bias(model, node.inputs[2], outputs)? else { return Ok(None) };
    let view = weights.values.try_as_plain_ram()?;
    let weights = view.as_slice::<i8>()?;
    let inner = weights.len() / outputs.max(1);
    if inner == 0 || inner > MAX_PRODUCTS {
        return Ok(None);
    }
    let sums = weights.chunks_exact(inner).map(sum);
    let Some(ending) = ending(input, sums, &scales, bias) else { return Ok(None) };
    let packed: Arc<[u8]> = if is_depthwise {
        weights.iter().map(|weight| weight.cast_unsigned()).collect()
    } else {
        let taps = pool.kernel_shape.iter().product();
        pack_quantised_weights([outputs, inputs], taps, weights).into()
    };
    let windows = Windows { pool: pool.clone(), is_depthwise, padding_value: input.zero_point };
    let windows = Box::new(windows);
    let kind = QuantisedKind::Convolution { windows, weights: packed, ending };
    replace(model, node, kind, &[source])
}

/// Replace a product of rows with a matrix of weights by one whose output is real.
pub(super) fn product(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    let Some(einsum) = node.op_as::<EinSum>() else { return Ok(None) };
    if einsum.q_params.is_some() || node.inputs.len() != 2 {
        return Ok(None);
    }
    let Some((source, input)) = values(model, node.inputs[0]) else { return Ok(None) };
    let Some(weights) = Weights::at(model, node.inputs[1])? else { return Ok(None) };
    let rank = model.outlet_fact(source)?.rank();
    let Some([row, column]) = matrix_axes(&einsum.axes, rank, &weights.values) else {
        return Ok(None);
    };
    let Some(scales) = weights.scales(column)? else { return Ok(None) };
    let shape = weights.values.shape();
    let [k, n] = [row, column].map(|axis| shape[axis]);
    if k == 0 || n == 0 || k > MAX_PRODUCTS {
        return Ok(None);
    }
    let strides = [row, column].map(|axis| shape[axis + 1..].iter().product::<usize>());
    let view = weights.values.try_as_plain_ram()?;
    let matrix = view.as_slice::<i8>()?;
    let sums = column_sums([k, n], strides, matrix);
    let Some(ending) = ending(input, sums.into_iter(), &scales, vec![]) else { return Ok(None) };
    let weights = pack_quantised_matrix([k, n], strides, matrix).into();
    replace(model, node, QuantisedKind::Product { k, n, weights, ending }, &[source])
}

/// The axes of the right operand along which are the rows and the columns of a matrix, if the left
/// operand, of this rank, and the output are rows of it.
pub(super) fn matrix_axes(
    mapping: &AxesMapping,
    rank: usize,
    right: &Tensor,
) -> Option<[usize; 2]> {
    let last = rank.checked_sub(1)?;
    let mut axes = [None; 2];
    for axis in mapping.iter_all_axes() {
        match [&axis.inputs[0][..], &axis.inputs[1], &axis.outputs[0]] {
            [[], [], []] => {}
            [[left], [right], []] if *left == last => axes[0] = Some(*right),
            [[], [right], [output]] if *output == last => axes[1] = Some(*right),
            [[left], [], [output]] if left == output && *left != last => {}
            [[left], [other], [output]]
                if left == output && *left != last && right.shape()[*other] == 1 => {}
            _ => return None,
        }
    }
    Some([axes[0]?, axes[1]?])
}

/// The sum of each column of a matrix `[k][n]`.
pub(super) fn column_sums(size: [usize; 2], strides: [usize; 2], matrix: &[i8]) -> Vec<i32> {
    let [k, n] = size;
    let element = |row, column| i32::from(matrix[row * strides[0] + column * strides[1]]);
    (0..n).map(|column| (0..k).map(|row| element(row, column)).sum()).collect()
}

fn sum(weights: &[i8]) -> i32 {
    weights.iter().map(|weight| i32::from(*weight)).sum()
}

/// What makes numbers of sums of products, given the sums of the weights of each channel.
fn ending(
    input: Quantisation,
    sums: impl Iterator<Item = i32>,
    scales: &[f32],
    bias: Vec<f32>,
) -> Option<Ending> {
    let zero_point = i32::from(input.zero_point);
    let multipliers: Vec<f32> = scales.iter().map(|scale| input.scale * scale).collect();
    let is_usable = multipliers.iter().all(|multiplier| is_scale(*multiplier));
    is_usable.then(|| Ending {
        offsets: sums.map(|sum| -zero_point * sum).collect(),
        multipliers: multipliers.into(),
        bias: bias.into(),
        kind: QuantisedEnding::Real(Tail::NONE),
    })
}

/// A bias by output channel.
fn real_bias(
    model: &TypedModel,
    outlet: OutletId,
    channels: usize,
) -> TractResult<Option<Vec<f32>>> {
    let Some(bias) = constant(model, outlet) else { return Ok(None) };
    let view = bias.cast_to::<f32>()?;
    Ok(match view.try_as_plain_ram()?.as_slice::<f32>()? {
        [0.0] => Some(vec![]),
        [bias] => Some(vec![*bias; channels]),
        bias => (bias.len() == channels).then(|| bias.to_vec()),
    })
}

fn replace(
    model: &TypedModel,
    node: &TypedNode,
    kind: QuantisedKind,
    inputs: &[OutletId],
) -> TractResult<Option<TypedModelPatch>> {
    let ours = QuantisedNode::new(kind, node.outputs[0].fact.shape.clone());
    TypedModelPatch::replace_single_op(model, node, inputs, ours).map(Some)
}
