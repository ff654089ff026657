//! Convolutions and their transposes: geometry and weights.

use guesthouse_arithmetic::{Operands, Operation, Tail, pack_convolution_weights, pack_matrix};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::PoolSpec;

use super::node::{Constant, Resolved, size};

/// A convolution with constant weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Convolution {
    pub(super) pool: PoolSpec,
    /// Each channel has a kernel of its own.
    pub(super) is_depthwise: bool,
    /// By output channel, not packed until [`Convolution::pack`].
    pub(super) weights: Constant,
    /// By output channel.
    pub(super) bias: Constant,
    /// The last input is added before the tail.
    pub(super) has_residual: bool,
}

impl Convolution {
    /// Multiply the result by a factor for each output channel.
    pub(super) fn scale(&mut self, factors: &[f32]) {
        let per_channel = self.weights.len() / factors.len().max(1);
        let mut weights = self.weights.to_vec();
        for (weights, factor) in weights.chunks_exact_mut(per_channel.max(1)).zip(factors) {
            weights.iter_mut().for_each(|weight| *weight *= factor);
        }
        self.weights = weights.into();
        self.bias = self.bias.iter().zip(factors).map(|(bias, factor)| bias * factor).collect();
    }

    /// Add a summand for each output channel to the result.
    pub(super) fn shift(&mut self, summands: &[f32]) {
        self.bias = self.bias.iter().zip(summands).map(|(bias, summand)| bias + summand).collect();
    }

    pub(super) fn output_channels(&self) -> usize {
        self.pool.output_channels
    }

    pub(super) fn pack(&mut self) {
        if !self.is_depthwise {
            let channels = self.pool.output_channels;
            let inner = self.weights.len() / channels.max(1);
            self.weights = pack_convolution_weights(channels, inner, &self.weights).into();
        }
    }

    pub(super) fn resolve(&self, input: &[usize], tail: Tail) -> TractResult<Resolved> {
        let (geometry, shape) = windows(&self.pool, input)?;
        let operation = if self.is_depthwise {
            Operation::DepthwiseConvolution(geometry, tail)
        } else {
            Operation::Convolution(geometry, tail)
        };
        Ok(Resolved { operation, shape })
    }

    pub(super) fn operands<'a>(&'a self, inputs: &[&'a [f32]]) -> TractResult<Operands<'a>> {
        let input = |index: usize| inputs.get(index).copied().context("a convolution's input");
        let residual = if self.has_residual { input(1)? } else { &[] };
        Ok(Operands { first: input(0)?, second: &self.weights, bias: &self.bias, residual })
    }
}

/// The transpose of a convolution, with constant weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Deconvolution {
    pub(super) pool: PoolSpec,
    /// The elements that are appended to the output's height and width.
    pub(super) adjustments: TVec<usize>,
    /// `[input channels][output channels][kernel]`, not packed until [`Deconvolution::pack`].
    pub(super) weights: Constant,
    /// By output channel.
    pub(super) bias: Constant,
}

impl Deconvolution {
    pub(super) fn pack(&mut self) {
        let rows = self.pool.input_channels;
        let columns = self.weights.len() / rows.max(1);
        self.weights = pack_matrix([rows, columns], [columns, 1], &self.weights).into();
    }

    pub(super) fn resolve(&self, input: &[usize], tail: Tail) -> TractResult<Resolved> {
        let pool = &self.pool;
        let padded = pool.padding.compute_for_deconv(
            &input[2..],
            &pool.kernel_shape,
            &pool.dilations(),
            &pool.strides(),
            &self.adjustments,
        )?;
        let output: TVec<usize> = padded.iter().map(|dimension| dimension.deconvoluted).collect();
        let before: TVec<usize> = padded.iter().map(|dimension| dimension.pad_before).collect();
        let geometry = geometry(pool, input, &output, &before)?;
        let mut shape = tvec!(input[0], pool.output_channels);
        shape.extend(output);
        let deconvolution = guesthouse_arithmetic::Deconvolution { geometry };
        Ok(Resolved { operation: Operation::Deconvolution(deconvolution, tail), shape })
    }

    pub(super) fn operands<'a>(&'a self, input: &'a [f32]) -> Operands<'a> {
        Operands { first: input, second: &self.weights, bias: &self.bias, residual: &[] }
    }
}

/// Describe the windows in an input of this shape (batch, channels, and one or two more
/// dimensions), and the shape of the output.
pub(super) fn windows(
    pool: &PoolSpec,
    input: &[usize],
) -> TractResult<(guesthouse_arithmetic::Convolution, TVec<usize>)> {
    ensure!(input.len() == pool.rank() + 2, "an image has a batch, channels and a size");
    let padded = pool.computed_padding(&input[2..]);
    let output: TVec<usize> = padded.iter().map(|dimension| dimension.convoluted).collect();
    let before: TVec<usize> = padded.iter().map(|dimension| dimension.pad_before).collect();
    let geometry = geometry(pool, input, &output, &before)?;
    let mut shape = tvec!(input[0], pool.output_channels);
    shape.extend(output);
    Ok((geometry, shape))
}

fn geometry(
    pool: &PoolSpec,
    input: &[usize],
    output: &[usize],
    before: &[usize],
) -> TractResult<guesthouse_arithmetic::Convolution> {
    Ok(guesthouse_arithmetic::Convolution {
        batch: size(input[0])?,
        input_channels: size(input[1])?,
        output_channels: size(pool.output_channels)?,
        input: pair(&input[2..], 1)?,
        output: pair(output, 1)?,
        kernel: pair(&pool.kernel_shape, 1)?,
        stride: pair(&pool.strides(), 1)?,
        padding: pair(before, 0)?,
        dilation: pair(&pool.dilations(), 1)?,
    })
}

/// Height and width; an image of one dimension has the width only, and this height.
fn pair(sizes: &[usize], height: u32) -> TractResult<[u32; 2]> {
    match *sizes {
        [width] => Ok([height, size(width)?]),
        [height, width] => Ok([size(height)?, size(width)?]),
        _ => bail!("an image has one or two dimensions"),
    }
}
