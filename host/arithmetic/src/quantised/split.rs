//! Parts of a call on 8-bit tensors that can be computed at the same time, and how much work it is.

use super::{
    QuantisedCall, QuantisedConvolution, QuantisedOperands, QuantisedOperation, QuantisedProduct,
};
use crate::split::{ranges, size, within};
use crate::{K_GROUP, WEIGHT_BLOCK};

impl<'a> QuantisedCall<'a> {
    /// Calls whose outputs, one behind the other, are the output of this one, bit by bit, as
    /// [`Call::split`](crate::Call::split) does it.
    pub fn split(&self, parts: usize) -> Vec<QuantisedCall<'a>> {
        let parts = parts.max(1);
        let split = match &self.operation {
            QuantisedOperation::Convolution(description) => {
                self.split_windows(description, parts, WEIGHT_BLOCK)
            }
            QuantisedOperation::DepthwiseConvolution(description) => {
                self.split_windows(description, parts, 1)
            }
            QuantisedOperation::MatrixProduct(product) => self.split_product(product, parts),
            QuantisedOperation::Sum(_)
            | QuantisedOperation::Quantise(..)
            | QuantisedOperation::Dequantise(_) => self.split_elements(parts),
        };
        debug_assert_eq!(
            split.iter().map(QuantisedCall::output_len).sum::<usize>(),
            self.output_len,
            "the parts are the whole"
        );
        split
    }

    /// About how many multiplications the call takes, or steps that take as long: to compare with
    /// the cost of computing parts of it on other threads. Those of sums of products take less
    /// time than on f32.
    pub fn work(&self) -> u64 {
        let output = self.output_len as u64;
        let steps = match &self.operation {
            QuantisedOperation::Convolution(description) => {
                let windows = &description.geometry;
                let taps = u64::from(windows.kernel[0]) * u64::from(windows.kernel[1]);
                taps.saturating_mul(windows.input_channels.into())
            }
            QuantisedOperation::DepthwiseConvolution(description) => {
                let [height, width] = description.geometry.kernel;
                u64::from(height) * u64::from(width)
            }
            QuantisedOperation::MatrixProduct(product) => product.size[2].into(),
            QuantisedOperation::Sum(_)
            | QuantisedOperation::Quantise(..)
            | QuantisedOperation::Dequantise(_) => 1,
        };
        output.saturating_mul(steps)
    }

    /// Parts of elements.
    fn split_elements(&self, parts: usize) -> Vec<QuantisedCall<'a>> {
        let part = |range: [usize; 2]| QuantisedCall {
            operands: QuantisedOperands {
                first: within(self.operands.first, range),
                second: within(self.operands.second, range),
                numbers: within(self.operands.numbers, range),
                ..self.operands
            },
            output_len: range[1] - range[0],
            ..*self
        };
        ranges(self.output_len, parts).map(part).collect()
    }

    /// Parts of images, or of the channels of each image in multiples of `block`.
    fn split_windows(
        &self,
        description: &QuantisedConvolution,
        parts: usize,
        block: usize,
    ) -> Vec<QuantisedCall<'a>> {
        let batch = description.geometry.batch as usize;
        let channels = description.geometry.output_channels as usize;
        if batch >= parts {
            let images = |images| self.part_of_windows(description, images, [0, channels]);
            return ranges(batch, parts).map(images).collect();
        }
        let mut split = Vec::new();
        for image in 0..batch {
            for [from, to] in ranges(channels.div_ceil(block), parts.div_ceil(batch)) {
                let channels = [from * block, (to * block).min(channels)];
                split.push(self.part_of_windows(description, [image, image + 1], channels));
            }
        }
        split
    }

    /// Some channels of some images: of one image, if they are not all channels.
    fn part_of_windows(
        &self,
        description: &QuantisedConvolution,
        images: [usize; 2],
        channels: [usize; 2],
    ) -> QuantisedCall<'a> {
        let plane = |size: [u32; 2]| size[0] as usize * size[1] as usize;
        let windows = &description.geometry;
        let (inputs, outputs) = (windows.input_channels as usize, windows.output_channels as usize);
        let taps = plane(windows.kernel);
        let mut part = *description;
        part.geometry.batch = size(images[1] - images[0]);
        part.geometry.output_channels = size(channels[1] - channels[0]);
        let planes = [images[0] * outputs + channels[0], (images[1] - 1) * outputs + channels[1]];
        let output = planes.map(|channel| channel * plane(windows.output));
        let (operation, inputs, weights) = match self.operation {
            QuantisedOperation::DepthwiseConvolution(_) => {
                part.geometry.input_channels = part.geometry.output_channels;
                let weights = channels.map(|channel| channel * taps);
                (QuantisedOperation::DepthwiseConvolution(part), planes, weights)
            }
            _ => {
                let block = inputs.div_ceil(K_GROUP) * taps * WEIGHT_BLOCK * K_GROUP;
                let weights = [
                    channels[0] / WEIGHT_BLOCK * block,
                    channels[1].div_ceil(WEIGHT_BLOCK) * block,
                ];
                let images = images.map(|image| image * inputs);
                (QuantisedOperation::Convolution(part), images, weights)
            }
        };
        QuantisedCall {
            operation,
            operands: QuantisedOperands {
                first: within(self.operands.first, inputs.map(|p| p * plane(windows.input))),
                second: within(self.operands.second, weights),
                numbers: &[],
                offsets: within(self.operands.offsets, channels),
                multipliers: within(self.operands.multipliers, channels),
                bias: within(self.operands.bias, channels),
            },
            output_len: output[1] - output[0],
        }
    }

    /// Parts of the rows of a product.
    fn split_product(&self, product: &QuantisedProduct, parts: usize) -> Vec<QuantisedCall<'a>> {
        let [m, n, k] = product.size.map(|size| size as usize);
        let part = |[from, to]: [usize; 2]| {
            let mut part = *product;
            part.size[0] = size(to - from);
            QuantisedCall {
                operation: QuantisedOperation::MatrixProduct(part),
                operands: QuantisedOperands {
                    first: &self.operands.first[from * k..to * k],
                    ..self.operands
                },
                output_len: (to - from) * n,
            }
        };
        ranges(m, parts).map(part).collect()
    }
}
