//! Convolutions as products of matrices: the windows of a panel of output elements are laid out as
//! the rows of its right factors, a block of `k` at a time, unless they are read from
//! [bands].

mod bands;

use self::bands::Bands;
use crate::narrow::is_narrow;
use crate::panel::{Ending, Panel, block_size};
use crate::progress::Progress;
use crate::scratch::{Parts, Scratch};
use crate::simd::{Kernel, Simd};
use crate::tile::{Bias, Factors, K_BLOCK, Stride};
use crate::windows::Windows;
use crate::{Convolution, Operands, PANEL, Stopped, Tail, WEIGHT_BLOCK};

/// The most output channels for which a panel is read from the input where it lies.
const MAX_CHANNELS_IN_PLACE: usize = 2 * WEIGHT_BLOCK;

/// A convolution and its output.
pub(crate) struct ConvolutionKernel<'a, 'b> {
    pub(crate) windows: Windows,
    pub(crate) ending: Ending<'a>,
    pub(crate) operands: Operands<'a>,
    pub(crate) output: &'a mut [f32],
    pub(crate) progress: &'a mut Progress<'b>,
}

impl<'a, 'b> ConvolutionKernel<'a, 'b> {
    pub(crate) fn new(
        description: &Convolution,
        tail: &Tail,
        operands: Operands<'a>,
        output: &'a mut [f32],
        progress: &'a mut Progress<'b>,
    ) -> Self {
        let bias = operands.bias;
        let ending = Ending {
            scale: 1.0,
            bias: if bias.is_empty() { Bias::None } else { Bias::Rows(bias) },
            residual: operands.residual,
            tail: *tail,
        };
        Self { windows: Windows::new(description), ending, operands, output, progress }
    }
}

impl Kernel for ConvolutionKernel<'_, '_> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Result<(), Stopped> {
        let mut scratch = Scratch::take();
        let result = self.compute(simd, scratch.parts());
        scratch.put_back();
        result
    }
}

impl ConvolutionKernel<'_, '_> {
    #[inline(always)]
    fn compute<S: Simd>(&mut self, simd: S, mut scratch: Parts<'_>) -> Result<(), Stopped> {
        let bands = Bands::new::<S>(&self.windows);
        for image in 0..self.windows.batch {
            match bands {
                Some(bands) => self.bands(simd, bands, image, &mut scratch)?,
                None => self.panels(simd, image, &mut scratch)?,
            }
        }
        Ok(())
    }

    /// Compute an image panel by panel.
    #[inline(always)]
    fn panels<S: Simd>(
        &mut self,
        simd: S,
        image: usize,
        scratch: &mut Parts<'_>,
    ) -> Result<(), Stopped> {
        let windows = self.windows;
        let [inputs, outputs] = windows.channels;
        let k = inputs * windows.kernel[0] * windows.kernel[1];
        let plane = windows.output[0] * windows.output[1];
        let image_len = inputs * windows.input[0] * windows.input[1];
        let input = &self.operands.first[image * image_len..][..image_len];
        let step = block_size(k, K_BLOCK);
        for start in (0..plane).step_by(PANEL) {
            let columns = (plane - start).min(PANEL);
            let few_rows = outputs <= MAX_CHANNELS_IN_PLACE && columns.is_multiple_of(S::LANES);
            let in_place = windows.are_elements() && (few_rows || is_narrow::<S>(outputs, columns));
            for from in (0..k).step_by(step) {
                let to = k.min(from + step);
                let (right, stride) = if in_place {
                    (&input[from * plane + start..], plane)
                } else {
                    self.progress.spend(4 * (to - from) * PANEL)?;
                    let place = [start, start + columns];
                    windows.lay_out(simd, input, [place, [from, to]], scratch.right);
                    (&*scratch.right, PANEL)
                };
                let panel = Panel {
                    factors: Factors {
                        k: to - from,
                        left: &self.operands.second[from * WEIGHT_BLOCK..],
                        left_block: k * WEIGHT_BLOCK,
                        right,
                        rows: Stride(stride),
                    },
                    output: self.output,
                    offset: image * outputs * plane + start,
                    output_stride: plane,
                    size: [outputs, columns],
                    first: [0, start],
                    resume: from > 0,
                    ending: (to == k).then_some(self.ending),
                    progress: &mut *self.progress,
                };
                simd.call(panel)?;
            }
        }
        Ok(())
    }
}
