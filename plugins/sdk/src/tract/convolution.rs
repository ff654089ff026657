//! Convolutions and their transposes: geometry and weights.

use guesthouse_arithmetic::{Operands, Operation, PANEL, Tail, WEIGHT_BLOCK};
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
            self.weights = pack_by_channel(&self.weights, self.pool.output_channels);
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
    /// `[output channels][input channels][kernel]`, not packed until [`Deconvolution::pack`].
    pub(super) weights: Constant,
    /// By output channel.
    pub(super) bias: Constant,
}

impl Deconvolution {
    pub(super) fn pack(&mut self) {
        let [inputs, outputs] = [self.pool.input_channels, self.pool.output_channels];
        let kernel: usize = self.pool.kernel_shape.iter().product();
        self.weights = pack_columns([inputs, outputs * kernel], |input, column| {
            let (output, tap) = (column / kernel, column % kernel);
            self.weights[(output * inputs + input) * kernel + tap]
        });
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

/// Pack weights `[channels][k]` in blocks of channels.
fn pack_by_channel(weights: &[f32], channels: usize) -> Constant {
    let k = weights.len() / channels.max(1);
    let mut packed = vec![0.0; channels.div_ceil(WEIGHT_BLOCK) * k * WEIGHT_BLOCK];
    for (channel, weights) in weights.chunks_exact(k.max(1)).enumerate() {
        let block = channel / WEIGHT_BLOCK * k * WEIGHT_BLOCK;
        let lane = channel % WEIGHT_BLOCK;
        for (index, weight) in weights.iter().enumerate() {
            packed[block + index * WEIGHT_BLOCK + lane] = *weight;
        }
    }
    packed.into()
}

/// Pack a matrix `[k, n]` in panels of columns, as the right operand of a matrix product.
pub(super) fn pack_columns(
    [k, n]: [usize; 2],
    element: impl Fn(usize, usize) -> f32,
) -> Constant {
    let mut packed = vec![0.0; n.div_ceil(PANEL) * k * PANEL];
    for row in 0..k {
        for column in 0..n {
            packed[(column / PANEL * k + row) * PANEL + column % PANEL] = element(row, column);
        }
    }
    packed.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_weights_are_in_blocks_of_channels() {
        let weights: Vec<f32> = (0..18_u8).map(f32::from).collect();
        let packed = pack_by_channel(&weights, 9);
        assert_eq!(packed.len(), 2 * 2 * WEIGHT_BLOCK);
        assert_eq!(packed[..3], [0.0, 2.0, 4.0]);
        assert_eq!(packed[WEIGHT_BLOCK..][..3], [1.0, 3.0, 5.0]);
        assert_eq!(packed[2 * WEIGHT_BLOCK..][..2], [16.0, 0.0]);
    }

    #[test]
    fn packed_columns_are_in_panels() {
        let packed = pack_columns([2, PANEL + 1], |row, column| (row * 100 + column) as f32);
        assert_eq!(packed.len(), 2 * 2 * PANEL);
        assert_eq!(packed[PANEL], 100.0);
        assert_eq!(packed[2 * PANEL..][..2], [PANEL as f32, 0.0]);
        assert_eq!(packed[3 * PANEL], 100.0 + PANEL as f32);
    }
}
