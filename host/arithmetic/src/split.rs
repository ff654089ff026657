//! Parts of a call that can be computed at the same time.

use crate::{
    Call, Convolution, Deconvolution, MatrixProduct, Operands, Operation, Pool, RightOperand, Tail,
    WEIGHT_BLOCK,
};

impl<'a> Call<'a> {
    /// Calls whose outputs, one behind the other, are the output of this one, bit by bit. There are
    /// about `parts` of equal size; fewer, and at least one, where the operation cannot be split
    /// so often, and up to twice as many where a batch of images does not divide evenly.
    ///
    /// The output is split with `split_at_mut` by [`Call::output_len`] of each.
    pub fn split(&self, parts: usize) -> Vec<Call<'a>> {
        let parts = parts.max(1);
        let split = match &self.operation {
            Operation::Convolution(windows, tail) => {
                let kind = |windows| Operation::Convolution(windows, *tail);
                self.split_windows(windows, parts, WEIGHT_BLOCK, kind)
            }
            Operation::DepthwiseConvolution(windows, tail) => {
                let kind = |windows| Operation::DepthwiseConvolution(windows, *tail);
                self.split_windows(windows, parts, 1, kind)
            }
            Operation::Pool(pool) => {
                let kind = |geometry| Operation::Pool(Pool { geometry, ..*pool });
                self.split_windows(&pool.geometry, parts, 1, kind)
            }
            Operation::Deconvolution(description, tail) => {
                let kind = |geometry| Operation::Deconvolution(Deconvolution { geometry }, *tail);
                let windows = &description.geometry;
                self.split_windows(windows, parts, usize::MAX, kind)
            }
            Operation::MatrixProduct(product, tail) => self.split_product(product, tail, parts),
            Operation::Unary(_) => self.split_rows(1, 1, parts),
            Operation::Binary(..) => self.split_binary(parts),
            Operation::Softmax(softmax) => self.split_rows(softmax.columns, softmax.columns, parts),
            Operation::LayerNorm(norm) => self.split_rows(norm.columns, norm.columns, parts),
            Operation::Reduction(reduction) => self.split_rows(reduction.columns, 1, parts),
        };
        debug_assert_eq!(
            split.iter().map(Call::output_len).sum::<usize>(),
            self.output_len,
            "the parts are the whole"
        );
        split
    }

    /// Parts of rows of elements.
    fn split_rows(&self, columns: u32, results: u32, parts: usize) -> Vec<Call<'a>> {
        let (columns, results) = (columns as usize, results as usize);
        let first = self.operands.first;
        if first.is_empty() {
            return vec![*self];
        }
        let part = |[from, to]: [usize; 2]| Call {
            operands: Operands { first: &first[from * columns..to * columns], ..self.operands },
            output_len: (to - from) * results,
            ..*self
        };
        ranges(first.len() / columns, parts).map(part).collect()
    }

    /// Parts of images, or of the channels of each image in multiples of `block`.
    fn split_windows(
        &self,
        windows: &Convolution,
        parts: usize,
        block: usize,
        kind: impl Fn(Convolution) -> Operation,
    ) -> Vec<Call<'a>> {
        let batch = windows.batch as usize;
        let channels = windows.output_channels as usize;
        if batch >= parts {
            let images = |images| self.part_of_windows(windows, images, [0, channels], &kind);
            return ranges(batch, parts).map(images).collect();
        }
        let blocks = channels.div_ceil(block);
        let mut split = Vec::new();
        for image in 0..batch {
            for [from, to] in ranges(blocks, parts.div_ceil(batch)) {
                let to = to.saturating_mul(block).min(channels);
                let channels = [from.saturating_mul(block).min(channels), to];
                split.push(self.part_of_windows(windows, [image, image + 1], channels, &kind));
            }
        }
        split
    }

    /// Some channels of some images: of one image, if they are not all channels.
    fn part_of_windows(
        &self,
        windows: &Convolution,
        images: [usize; 2],
        channels: [usize; 2],
        kind: &impl Fn(Convolution) -> Operation,
    ) -> Call<'a> {
        let plane = |size: [u32; 2]| size[0] as usize * size[1] as usize;
        let (inputs, outputs) = (windows.input_channels as usize, windows.output_channels as usize);
        let taps = plane(windows.kernel);
        let first_output = images[0] * outputs + channels[0];
        let end_output = (images[1] - 1) * outputs + channels[1];
        let mut part = *windows;
        part.batch = size(images[1] - images[0]);
        part.output_channels = size(channels[1] - channels[0]);
        let separate =
            !matches!(self.operation, Operation::Convolution(..) | Operation::Deconvolution(..));
        let (input, second) = if separate {
            part.input_channels = part.output_channels;
            let weights = match self.operands.second {
                [] => self.operands.second,
                weights => &weights[channels[0] * taps..channels[1] * taps],
            };
            ([first_output, end_output], weights)
        } else {
            let weights = match self.operation {
                Operation::Convolution(..) => {
                    let block = inputs * taps * WEIGHT_BLOCK;
                    let [from, to] =
                        [channels[0] / WEIGHT_BLOCK, channels[1].div_ceil(WEIGHT_BLOCK)];
                    &self.operands.second[from * block..to * block]
                }
                _ => self.operands.second,
            };
            ([images[0] * inputs, images[1] * inputs], weights)
        };
        let input = input.map(|channel| channel * plane(windows.input));
        let output = [first_output, end_output].map(|channel| channel * plane(windows.output));
        Call {
            operation: kind(part),
            operands: Operands {
                first: &self.operands.first[input[0]..input[1]],
                second,
                bias: within(self.operands.bias, channels),
                residual: within(self.operands.residual, output),
            },
            output_len: output[1] - output[0],
        }
    }

    /// Parts of the dimension of a product's output that is outermost in memory.
    fn split_product(&self, product: &MatrixProduct, tail: &Tail, parts: usize) -> Vec<Call<'a>> {
        let sizes = [product.batch[0], product.batch[1], product.size[0]];
        let outermost =
            (0..3).filter(|axis| sizes[*axis] > 1).max_by_key(|axis| product.output[*axis]);
        let Some(axis) = outermost else {
            return vec![*self];
        };
        let stride = product.output[axis] as usize;
        let part = |[from, to]: [usize; 2]| {
            let mut part = *product;
            match axis {
                2 => part.size[0] = size(to - from),
                _ => part.batch[axis] = size(to - from),
            }
            let left = from * product.left[axis] as usize;
            let right = match product.right {
                RightOperand::Strided(strides) if axis < 2 => from * strides[axis] as usize,
                _ => 0,
            };
            let output = [from * stride, to * stride];
            Call {
                operation: Operation::MatrixProduct(part, *tail),
                operands: Operands {
                    first: &self.operands.first[left..],
                    second: &self.operands.second[right..],
                    bias: self.operands.bias,
                    residual: within(self.operands.residual, output),
                },
                output_len: output[1] - output[0],
            }
        };
        ranges(sizes[axis] as usize, parts).map(part).collect()
    }

    /// Parts of the outermost dimension with more than one element.
    fn split_binary(&self, parts: usize) -> Vec<Call<'a>> {
        let Operation::Binary(binary, tail) = &self.operation else {
            return vec![*self];
        };
        let Some(axis) = binary.shape.iter().position(|size| *size > 1) else {
            return vec![*self];
        };
        let inner: usize = binary.shape[axis + 1..].iter().map(|size| *size as usize).product();
        let part = |[from, to]: [usize; 2]| {
            let mut part = *binary;
            part.shape[axis] = size(to - from);
            let (left, right) = (binary.left[axis] as usize, binary.right[axis] as usize);
            Call {
                operation: Operation::Binary(part, *tail),
                operands: Operands {
                    first: &self.operands.first[from * left..],
                    second: &self.operands.second[from * right..],
                    ..self.operands
                },
                output_len: (to - from) * inner,
            }
        };
        ranges(binary.shape[axis] as usize, parts).map(part).collect()
    }
}

/// Ranges of about equal size, at most `parts`.
pub(crate) fn ranges(count: usize, parts: usize) -> impl Iterator<Item = [usize; 2]> {
    let parts = parts.min(count).max(1);
    (0..parts).map(move |part| {
        let place = |part: usize| count / parts * part + part.min(count % parts);
        [place(part), place(part + 1)]
    })
}

/// A range of an operand that may be left out.
pub(crate) fn within<T>(operand: &[T], [from, to]: [usize; 2]) -> &[T] {
    if operand.is_empty() { operand } else { &operand[from..to] }
}

/// A part of a size.
pub(crate) fn size(part: usize) -> u32 {
    u32::try_from(part).expect("a part of a size is at most as large")
}
