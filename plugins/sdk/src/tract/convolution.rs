//! Convolutions and their transposes: geometry and weights.

use guesthouse_arithmetic::{
    Operands, Operation, Tail, WEIGHT_BLOCK, pack_convolution_weights, pack_matrix,
};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::PoolSpec;

use super::crop::cropped;
use super::node::{Constant, Resolved, size};

/// A convolution with constant weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Convolution {
    pub(super) pool: PoolSpec,
    /// The parts into which the channels are divided: all input channels of a part are for all
    /// output channels of the same part.
    pub(super) groups: usize,
    /// By output channel, not packed until [`Convolution::pack`].
    pub(super) weights: Constant,
    /// By output channel.
    pub(super) bias: Constant,
    /// The second input has a factor for each input channel of each image.
    pub(super) has_factors: bool,
    /// The last input is added before the tail.
    pub(super) has_residual: bool,
}

impl Convolution {
    /// Whether each channel has a kernel of its own.
    pub(super) fn is_depthwise(&self) -> bool {
        let PoolSpec { input_channels, output_channels, .. } = self.pool;
        self.groups > 1 && self.groups == input_channels && self.groups == output_channels
    }

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

    /// Remove the rows and columns of the kernel that cover only padding in images of this shape.
    pub(super) fn crop(&mut self, image: &[usize]) {
        if let Some((pool, weights)) = cropped(&self.pool, &image[2..], &self.weights) {
            self.pool = pool;
            self.weights = weights.into();
        }
    }

    pub(super) fn pack(&mut self) {
        if !self.is_depthwise() {
            let channels = self.pool.output_channels / self.groups;
            let inner = self.weights.len() / self.pool.output_channels.max(1);
            let parts = self.weights.chunks_exact((channels * inner).max(1));
            let packed = parts.map(|part| pack_convolution_weights(channels, inner, part));
            self.weights = packed.flatten().collect();
        }
    }

    pub(super) fn resolve(&self, input: &[usize], tail: Tail) -> TractResult<Resolved> {
        let (mut geometry, shape) = windows(&self.pool, input)?;
        if self.is_depthwise() {
            let operation = Operation::DepthwiseConvolution(geometry, tail);
            return Ok(Resolved { operation, shape, parts: 1 });
        }
        let groups = size(self.groups)?;
        let mut parts = 1;
        if groups > 1 || self.has_factors {
            parts = self.groups * input[0];
            geometry.batch = 1;
            geometry.input_channels /= groups;
            geometry.output_channels /= groups;
        }
        Ok(Resolved { operation: Operation::Convolution(geometry, tail), shape, parts })
    }

    /// The packed weights of each image, multiplied by its factors for the input channels.
    pub(super) fn scaled_weights(&self, factors: &[f32]) -> Vec<f32> {
        let channels = self.pool.input_channels;
        let taps = self.weights.len()
            / WEIGHT_BLOCK
            / channels
            / self.pool.output_channels.div_ceil(WEIGHT_BLOCK);
        let images = factors.chunks_exact(channels);
        let mut scaled = Vec::with_capacity(images.len() * self.weights.len());
        for factors in images {
            let weights = self.weights.chunks_exact(taps * WEIGHT_BLOCK);
            for (weights, factor) in weights.zip(factors.iter().cycle()) {
                scaled.extend(weights.iter().map(|weight| weight * factor));
            }
        }
        scaled
    }

    /// The operands of one of the parts of an operation: images and their groups of channels. The
    /// second input is what [`Convolution::scaled_weights`] has made of factors, if there are any.
    pub(super) fn operands<'a>(
        &'a self,
        inputs: &[&'a [f32]],
        [part, parts]: [usize; 2],
    ) -> TractResult<Operands<'a>> {
        let groups = if self.is_depthwise() { 1 } else { self.groups };
        let group = part % groups;
        let image = |index: usize| -> TractResult<&'a [f32]> {
            let image = inputs.get(index).copied().context("a convolution's input")?;
            Ok(nth_part(image, part, parts))
        };
        let weights = nth_part(&self.weights, group, groups);
        Ok(Operands {
            first: image(0)?,
            second: if self.has_factors { image(1)? } else { weights },
            bias: nth_part(&self.bias, group, groups),
            residual: match self.has_residual {
                true => image(1 + usize::from(self.has_factors))?,
                false => &[],
            },
        })
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
        Ok(Resolved::new(Operation::Deconvolution(deconvolution, tail), shape))
    }

    pub(super) fn operands<'a>(&'a self, input: &'a [f32]) -> Operands<'a> {
        Operands { first: input, second: &self.weights, bias: &self.bias, residual: &[] }
    }
}

/// One of so many equal parts.
fn nth_part(elements: &[f32], part: usize, parts: usize) -> &[f32] {
    let len = elements.len() / parts.max(1);
    &elements[part * len..][..len]
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
