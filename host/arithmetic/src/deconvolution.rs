//! Deconvolutions: a matrix product whose columns are the values of the windows of an input
//! element, which are then added to the output, input element by input element.

use crate::functions::apply_tail;
use crate::panel::{Panel, block_size};
use crate::products::{Matrix, pack_left};
use crate::progress::Progress;
use crate::scratch::{Parts, Scratch};
use crate::simd::{Kernel, Simd};
use crate::tile::{Factors, K_BLOCK, Stride};
use crate::windows::Windows;
use crate::{Operands, PANEL, Stopped, Tail, WEIGHT_BLOCK};

/// The input elements whose windows are computed together: a multiple of [`WEIGHT_BLOCK`].
const ELEMENTS: usize = 64;

/// A deconvolution and its output.
pub(crate) struct DeconvolutionKernel<'a, 'b> {
    /// The windows lie in the output.
    pub(crate) windows: Windows,
    pub(crate) tail: &'a Tail,
    pub(crate) operands: Operands<'a>,
    pub(crate) output: &'a mut [f32],
    pub(crate) progress: &'a mut Progress<'b>,
}

impl Kernel for DeconvolutionKernel<'_, '_> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Result<(), Stopped> {
        let mut scratch = Scratch::take();
        let result = self.images(simd, scratch.parts());
        scratch.put_back();
        result
    }
}

impl DeconvolutionKernel<'_, '_> {
    #[inline(always)]
    fn images<S: Simd>(&mut self, simd: S, mut scratch: Parts<'_>) -> Result<(), Stopped> {
        let [inputs, outputs] = self.windows.channels;
        let elements = self.windows.input[0] * self.windows.input[1];
        let plane = self.windows.output[0] * self.windows.output[1];
        let columns = outputs * self.windows.kernel[0] * self.windows.kernel[1];
        for image in 0..self.windows.batch {
            let input = &self.operands.first[image * inputs * elements..][..inputs * elements];
            for output in self.output[image * outputs * plane..][..outputs * plane].chunks_mut(4096)
            {
                self.progress.spend(output.len())?;
                output.fill(0.0);
            }
            for start in (0..elements).step_by(ELEMENTS) {
                let count = (elements - start).min(ELEMENTS);
                // The sums of an output element are in order of the input elements only if later
                // columns come first.
                for column in (0..columns).step_by(PANEL).rev() {
                    let width = (columns - column).min(PANEL);
                    let place = [start, count];
                    self.products(simd, input, [place, [column, width]], &mut scratch)?;
                    self.progress.spend(4 * count * width)?;
                    let output = &mut self.output[image * outputs * plane..];
                    let values = &scratch.plane[ELEMENTS * K_BLOCK..];
                    // Parts of the panel that are one row of a kernel, or its part in the panel.
                    let mut end = width;
                    while end > 0 {
                        let in_row = (column + end - 1) % self.windows.kernel[1] + 1;
                        let from = end - in_row.min(end);
                        let part = [column + from, end - from];
                        add_kernel_row(&self.windows, part, place, &values[from..], output);
                        end = from;
                    }
                }
            }
            self.finish(simd, image)?;
        }
        Ok(())
    }

    /// The products of some input elements and the columns of a panel.
    #[inline(always)]
    fn products<S: Simd>(
        &mut self,
        simd: S,
        input: &[f32],
        [[start, count], [column, columns]]: [[usize; 2]; 2],
        scratch: &mut Parts<'_>,
    ) -> Result<(), Stopped> {
        let k = self.windows.channels[0];
        let elements = self.windows.input[0] * self.windows.input[1];
        let step = block_size(k, K_BLOCK);
        let (packed, products) = scratch.plane.split_at_mut(ELEMENTS * K_BLOCK);
        for from in (0..k).step_by(step) {
            let length = (k - from).min(step);
            let matrix = Matrix { values: input, strides: [1, elements] };
            self.progress.spend(4 * count * length)?;
            pack_left(simd, matrix, [start, from], [count, length], packed);
            let panel = column * k + from * PANEL;
            let right = &self.operands.second[panel..][..length * PANEL];
            let panel = Panel {
                factors: Factors {
                    k: length,
                    left: packed,
                    left_block: length * WEIGHT_BLOCK,
                    right,
                    rows: Stride(PANEL),
                },
                output: products,
                offset: 0,
                output_stride: PANEL,
                size: [count, columns],
                first: [0, 0],
                resume: from > 0,
                ending: None,
                progress: &mut *self.progress,
            };
            simd.call(panel)?;
        }
        Ok(())
    }

    /// Add the bias, and apply the tail.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, image: usize) -> Result<(), Stopped> {
        let outputs = self.windows.channels[1];
        let plane = self.windows.output[0] * self.windows.output[1];
        let output = &mut self.output[image * outputs * plane..][..outputs * plane];
        for (channel, output) in output.chunks_exact_mut(plane).enumerate() {
            let bias = self.operands.bias.get(channel).copied().unwrap_or(0.0);
            for chunk in output.chunks_mut(4096) {
                self.progress.spend(16 * chunk.len())?;
                let length = chunk.len();
                chunk.iter_mut().for_each(|value| *value += bias);
                apply_tail(simd, self.tail, chunk, 0, [1, length]);
            }
        }
        Ok(())
    }
}

/// Add the values of some input elements at neighbouring places in a row of their windows.
#[inline(always)]
fn add_kernel_row(
    windows: &Windows,
    [column, columns]: [usize; 2],
    [start, count]: [usize; 2],
    values: &[f32],
    output: &mut [f32],
) {
    let [kernel_height, kernel_width] = windows.kernel;
    let (kx, ky) = (column % kernel_width, column / kernel_width % kernel_height);
    let channel = column / kernel_width / kernel_height;
    let [height, width] = windows.output;
    let output = &mut output[channel * height * width..][..height * width];
    let input_width = windows.input[1];
    let (stride, dilation) = (windows.stride[1], windows.dilation[1]);
    let reach = (columns - 1) * dilation;
    let mut done = 0;
    while done < count {
        let (y, x) = ((start + done) / input_width, (start + done) % input_width);
        let run = (input_width - x).min(count - done);
        let row = (y * windows.stride[0] + ky * windows.dilation[0])
            .checked_sub(windows.padding[0])
            .filter(|row| *row < height);
        if let Some(row) = row {
            let output = &mut output[row * width..][..width];
            // Places in the padded row.
            let mut place = x * stride + kx * dilation;
            let first = place.checked_sub(windows.padding[1]);
            if let Some(first) = first
                && [columns, stride, dilation] == [2, 2, 1]
                && first + 2 * run <= width
            {
                add_pairs(&mut output[first..][..2 * run], &values[done * PANEL..]);
                done += run;
                continue;
            }
            for values in values[done * PANEL..].chunks(PANEL).take(run) {
                let values = &values[..columns];
                match place.checked_sub(windows.padding[1]) {
                    Some(place) if dilation == 1 && place + reach < width => {
                        let output = &mut output[place..][..columns];
                        match columns {
                            2 => add_all::<2>(output, values),
                            3 => add_all::<3>(output, values),
                            4 => add_all::<4>(output, values),
                            _ => {
                                output.iter_mut().zip(values).for_each(|(to, value)| *to += *value)
                            }
                        }
                    }
                    Some(place) if place + reach < width => {
                        let output = output[place..].iter_mut().step_by(dilation);
                        output.zip(values).for_each(|(output, value)| *output += *value);
                    }
                    _ => {
                        for (index, value) in values.iter().enumerate() {
                            let place = (place + index * dilation).checked_sub(windows.padding[1]);
                            let output = place.and_then(|place| output.get_mut(place));
                            output.into_iter().for_each(|output| *output += *value);
                        }
                    }
                }
                place += stride;
            }
        }
        done += run;
    }
}

/// Add pairs of values that are [`PANEL`] apart to neighbouring elements.
#[inline(always)]
fn add_pairs(output: &mut [f32], values: &[f32]) {
    const PAIRS: usize = 8;
    let (groups, rest) = output.as_chunks_mut::<{ 2 * PAIRS }>();
    for (group, values) in groups.iter_mut().zip(values.chunks(PAIRS * PANEL)) {
        // The last pair may be all that is there of its row.
        let values = &values[..(PAIRS - 1) * PANEL + 2];
        let mut pairs = [0.0; 2 * PAIRS];
        for (index, pair) in pairs.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *pair = [values[index * PANEL], values[index * PANEL + 1]];
        }
        for (output, value) in group.iter_mut().zip(pairs) {
            *output += value;
        }
    }
    let done = groups.len() * PAIRS;
    for (index, output) in rest.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        add_all::<2>(output, &values[(done + index) * PANEL..]);
    }
}

/// Add a known number of values.
#[inline(always)]
fn add_all<const COUNT: usize>(output: &mut [f32], values: &[f32]) {
    let (output, values) = (&mut output[..COUNT], &values[..COUNT]);
    for index in 0..COUNT {
        output[index] += values[index];
    }
}
