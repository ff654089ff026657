//! Convolutions of planes that are wide enough: a band of padded input rows is copied, and tiles
//! read the windows where they lie, so that an element is copied once for all places of a kernel.
//!
//! If windows are more than one element apart, a row is copied as several ones, its phases: every
//! so many elements from the first one on, from the second one on, and so on.

use super::ConvolutionKernel;
use crate::panel::{Panel, block_size};
use crate::scratch::{PLANE, Parts};
use crate::simd::Simd;
use crate::tile::{Factors, K_BLOCK, Starts};
use crate::windows::Windows;
use crate::{PANEL, Stopped, WEIGHT_BLOCK};

/// The fewest columns of an output for which its rows are computed one by one.
const MIN_COLUMNS: usize = 16;

/// The sizes of bands.
#[derive(Clone, Copy)]
pub(crate) struct Bands {
    /// The elements of a phase of a row.
    phase: usize,
    /// The elements of a row with all of its phases.
    row: usize,
    /// The channels of a band.
    channels: usize,
    /// The rows of the output that a band is for.
    rows: usize,
    /// The rows of the padded input in a band.
    height: usize,
}

impl Bands {
    /// The bands of a convolution, if it is to be computed so.
    #[inline(always)]
    pub(crate) fn new<S: Simd>(windows: &Windows) -> Option<Self> {
        let [rows, columns] = windows.output;
        let taps = windows.kernel[0] * windows.kernel[1];
        if windows.are_elements() || columns < MIN_COLUMNS || taps > K_BLOCK {
            return None;
        }
        let reach = [0, 1].map(|axis| (windows.kernel[axis] - 1) * windows.dilation[axis]);
        let phase = columns.next_multiple_of(S::LANES) + reach[1] / windows.stride[1];
        let row = phase.checked_mul(windows.stride[1]).filter(|row| *row <= PLANE)?;
        let least = reach[0] + 1;
        let most = (PLANE / row / least).min(K_BLOCK / taps);
        if most == 0 {
            return None;
        }
        let channels = block_size(windows.channels[0], most);
        let height = PLANE / row / channels;
        let rows = rows.min((height - least) / windows.stride[0] + 1);
        let height = (rows - 1) * windows.stride[0] + least;
        Some(Self { phase, row, channels, rows, height })
    }

    /// Where the values of a window begin in a band, by channel, row and column of the kernel.
    #[inline(always)]
    fn starts(&self, windows: &Windows, starts: &mut [u32; K_BLOCK]) {
        let [kernel_height, kernel_width] = windows.kernel;
        for (index, start) in starts.iter_mut().enumerate() {
            let (kx, ky) = (index % kernel_width, index / kernel_width % kernel_height);
            let channel = index / kernel_width / kernel_height;
            if channel >= self.channels {
                break;
            }
            let (row, column) = (ky * windows.dilation[0], kx * windows.dilation[1]);
            let stride = windows.stride[1];
            let place = (channel * self.height + row) * self.row
                + column % stride * self.phase
                + column / stride;
            *start = u32::try_from(place).expect("a band is small");
        }
    }
}

impl ConvolutionKernel<'_, '_> {
    /// Compute an image band by band.
    #[inline(always)]
    pub(crate) fn bands<S: Simd>(
        &mut self,
        simd: S,
        bands: Bands,
        image: usize,
        scratch: &mut Parts<'_>,
    ) -> Result<(), Stopped> {
        let windows = self.windows;
        let mut starts = [0; K_BLOCK];
        bands.starts(&windows, &mut starts);
        let [inputs, outputs] = windows.channels;
        let [rows, columns] = windows.output;
        let taps = windows.kernel[0] * windows.kernel[1];
        for first in (0..rows).step_by(bands.rows) {
            let count = (rows - first).min(bands.rows);
            for channel in (0..inputs).step_by(bands.channels) {
                let channels = (inputs - channel).min(bands.channels);
                self.progress.spend(channels * bands.height * bands.row)?;
                let place = [image * inputs + channel, channels, first];
                self.copy_band(simd, bands, place, scratch.plane);
                for row in 0..count {
                    for column in (0..columns).step_by(PANEL) {
                        let right = row * windows.stride[0] * bands.row + column;
                        let panel = Panel {
                            factors: Factors {
                                k: channels * taps,
                                left: &self.operands.second[channel * taps * WEIGHT_BLOCK..],
                                left_block: inputs * taps * WEIGHT_BLOCK,
                                right: &scratch.plane[right..],
                                rows: Starts(&starts),
                            },
                            output: self.output,
                            offset: (image * outputs * rows + first + row) * columns + column,
                            output_stride: rows * columns,
                            size: [outputs, (columns - column).min(PANEL)],
                            first: [0, column],
                            resume: channel > 0,
                            ending: (channel + channels == inputs).then_some(self.ending),
                            progress: &mut *self.progress,
                        };
                        simd.call(panel)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Copy the rows of some channels that the windows of output rows from `first` on see.
    #[inline(always)]
    fn copy_band<S: Simd>(
        &self,
        simd: S,
        bands: Bands,
        [channel, channels, first]: [usize; 3],
        band: &mut [f32],
    ) {
        let windows = &self.windows;
        let [height, width] = windows.input;
        let planes = self.operands.first.chunks_exact(height * width).skip(channel);
        let copies = band.chunks_exact_mut(bands.height * bands.row);
        for (plane, copy) in planes.take(channels).zip(copies) {
            for (index, copy) in copy.chunks_exact_mut(bands.row).enumerate() {
                let row = (first * windows.stride[0] + index).checked_sub(windows.padding[0]);
                let Some(row) = row.filter(|row| *row < height) else {
                    copy.fill(0.0);
                    continue;
                };
                let row = &plane[row * width..][..width];
                for (phase, copy) in copy.chunks_exact_mut(bands.phase).enumerate() {
                    windows.copy_strided(simd, row, phase, copy);
                }
            }
        }
    }
}
