//! Convolutions, their transposes, and pooling.

use guesthouse_arithmetic::PoolFunction;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::{
    Conv, Deconv, KernelFormat, MaxPool, PaddingSpec, PoolSpec, SumPool,
};
use tract_onnx::tract_core::ops::nn::DataFormat;

use super::apply;
use crate::tract::convolution::{Convolution, Deconvolution};
use crate::tract::graph::{constant, is_f32, replace, shape};
use crate::tract::node::{Constant, Kind, Node};

/// Replace convolutions and their transposes. Only before tract has simplified the graph.
pub(super) fn convolutions(model: &mut TypedModel) -> TractResult<()> {
    apply(model, "convolution", convolution)?;
    apply(model, "deconvolution", deconvolution)
}

/// Replace pooling.
pub(super) fn pools(model: &mut TypedModel) -> TractResult<()> {
    apply(model, "maximum of windows", maximum)?;
    apply(model, "mean of windows", mean)
}

fn convolution(
    model: &TypedModel,
    node: &TypedNode,
    conv: &Conv,
) -> TractResult<Option<TypedModelPatch>> {
    let pool = &conv.pool_spec;
    if conv.q_params.is_some()
        || conv.kernel_fmt != KernelFormat::OIHW
        || !is_image(model, node, pool)
    {
        return Ok(None);
    }
    let Some((weights, _shape)) = constant(model, node.inputs[1]) else { return Ok(None) };
    let Some(bias) = bias(model, node.inputs[2], pool) else { return Ok(None) };
    let (pool, groups) = (pool.clone(), conv.group);
    let (has_factors, has_residual) = (false, false);
    let convolution = Convolution { pool, groups, weights, bias, has_factors, has_residual };
    let output = shape(model, node.id.into())?.clone();
    replace(model, node, Node::new(Kind::Convolution(convolution), output), &node.inputs[..1])
}

fn deconvolution(
    model: &TypedModel,
    node: &TypedNode,
    deconv: &Deconv,
) -> TractResult<Option<TypedModelPatch>> {
    let pool = &deconv.pool_spec;
    if deconv.group != 1
        || deconv.kernel_format != KernelFormat::OIHW
        || !is_image(model, node, pool)
    {
        return Ok(None);
    }
    let Some((weights, _shape)) = constant(model, node.inputs[1]) else { return Ok(None) };
    let Some(bias) = bias(model, node.inputs[2], pool) else { return Ok(None) };
    let weights = by_input_channel(&weights, pool);
    let adjustments = deconv.adjustments.clone();
    let deconvolution = Deconvolution { pool: pool.clone(), adjustments, weights, bias };
    let output = shape(model, node.id.into())?.clone();
    replace(model, node, Node::new(Kind::Deconvolution(deconvolution), output), &node.inputs[..1])
}

fn maximum(
    model: &TypedModel,
    node: &TypedNode,
    pool: &MaxPool,
) -> TractResult<Option<TypedModelPatch>> {
    if pool.with_index_outputs.is_some() {
        return Ok(None);
    }
    replace_pool(model, node, PoolFunction::Maximum, &pool.pool_spec)
}

fn mean(
    model: &TypedModel,
    node: &TypedNode,
    pool: &SumPool,
) -> TractResult<Option<TypedModelPatch>> {
    // A window that rounding up moves past the padding is divided by less than the kernel's size.
    let is_rounded_up = matches!(pool.pool_spec.padding, PaddingSpec::ExplicitOnnxPool(_, _, true));
    let function = match (pool.normalize, pool.count_include_pad) {
        (true, true) if is_rounded_up => return Ok(None),
        (true, true) => PoolFunction::AverageWithPadding,
        (true, false) => PoolFunction::Average,
        (false, _) => return Ok(None),
    };
    replace_pool(model, node, function, &pool.pool_spec)
}

fn replace_pool(
    model: &TypedModel,
    node: &TypedNode,
    function: PoolFunction,
    pool: &PoolSpec,
) -> TractResult<Option<TypedModelPatch>> {
    if !is_image(model, node, pool) {
        return Ok(None);
    }
    let output = shape(model, node.id.into())?.clone();
    let kind = Kind::Pool(function, pool.clone());
    replace(model, node, Node::new(kind, output), &node.inputs[..1])
}

/// Transpose `[output channels][input channels][kernel]` to have the input channels outermost.
fn by_input_channel(weights: &[f32], pool: &PoolSpec) -> Constant {
    let [inputs, outputs] = [pool.input_channels, pool.output_channels];
    let taps: usize = pool.kernel_shape.iter().product();
    let mut transposed = Vec::with_capacity(weights.len());
    for input in 0..inputs {
        for output in 0..outputs {
            transposed.extend(&weights[(output * inputs + input) * taps..][..taps]);
        }
    }
    transposed.into()
}

/// Whether input and output are f32 images of one or two dimensions with the channels first.
fn is_image(model: &TypedModel, node: &TypedNode, pool: &PoolSpec) -> bool {
    pool.data_format == DataFormat::NCHW
        && (1..=2).contains(&pool.rank())
        && is_f32(model, node.inputs[0])
        && is_f32(model, node.id.into())
}

/// A constant bias by output channel.
fn bias(model: &TypedModel, outlet: OutletId, pool: &PoolSpec) -> Option<Constant> {
    let (bias, _shape) = constant(model, outlet)?;
    match bias[..] {
        [bias] => Some(vec![bias; pool.output_channels].into()),
        _ => (bias.len() == pool.output_channels).then_some(bias),
    }
}
