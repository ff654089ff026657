//! Convolutions of u8 as products of matrices: the windows of a panel of output elements are laid
//! out as rows of groups of four channels.

use super::factors::{Factors, LEFT_GROUP};
use super::simd::{IntegerKernel, IntegerSimd};
use super::target::{Scales, Target};
use super::tile::Panel;
use crate::narrow::is_narrow;
use crate::panel::block_size;
use crate::progress::Progress;
use crate::scratch::{BYTES, M_BLOCK, Parts8, SUM_COLUMNS, Scratch};
use crate::simd::Simd;
use crate::windows::Windows;
use crate::{K_GROUP, Stopped, WEIGHT_BLOCK};

/// A convolution and its output.
pub(crate) struct ConvolutionKernel<'a, 'b, T: Target> {
    pub(crate) windows: Windows,
    pub(crate) padding_value: u8,
    pub(crate) input: &'a [u8],
    pub(crate) weights: &'a [u8],
    pub(crate) scales: Scales<'a>,
    pub(crate) target: T,
    pub(crate) output: &'a mut [T::Element],
    pub(crate) progress: &'a mut Progress<'b>,
}

impl<T: Target> IntegerKernel for ConvolutionKernel<'_, '_, T> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<I: IntegerSimd>(mut self, simd: I) -> Result<(), Stopped> {
        let mut scratch = Scratch::take();
        let result = self.images(simd, scratch.parts8());
        scratch.put_back();
        result
    }
}

impl<T: Target> ConvolutionKernel<'_, '_, T> {
    #[inline(always)]
    fn images<I: IntegerSimd>(&mut self, simd: I, mut scratch: Parts8<'_>) -> Result<(), Stopped> {
        let windows = self.windows;
        let [inputs, outputs] = windows.channels;
        let taps = windows.kernel[0] * windows.kernel[1];
        let groups = inputs.div_ceil(K_GROUP) * taps;
        let plane = windows.output[0] * windows.output[1];
        let lanes = I::Floats::LANES;
        // As many columns as there is memory for; if there is not enough for a vector, the sums
        // are computed in parts.
        let vectors = BYTES / (groups * lanes * K_GROUP);
        let most = vectors.clamp(1, SUM_COLUMNS / lanes);
        let mut columns = block_size(plane.div_ceil(lanes), most) * lanes;
        if is_narrow::<I::Floats>(outputs, plane % lanes) && vectors > 0 {
            // A panel of whole vectors, and then the last column.
            columns = (plane / lanes).clamp(1, most) * lanes;
        }
        let step = if vectors == 0 { BYTES / (lanes * K_GROUP) } else { groups };
        let row_step = if vectors == 0 { M_BLOCK } else { outputs };
        for image in 0..windows.batch {
            for row in (0..outputs).step_by(row_step) {
                let rows = [row, (outputs - row).min(row_step)];
                for start in (0..plane).step_by(columns) {
                    let place = [start, (plane - start).min(columns)];
                    for from in (0..groups).step_by(step) {
                        let block = [from, (groups - from).min(step)];
                        self.panel(simd, [image, columns], [rows, place, block], &mut scratch)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Some groups of the sums of some rows and columns; of all three, the first one and how many
    /// there are.
    #[inline(always)]
    fn panel<I: IntegerSimd>(
        &mut self,
        simd: I,
        [image, width]: [usize; 2],
        [rows, columns, block]: [[usize; 2]; 3],
        scratch: &mut Parts8<'_>,
    ) -> Result<(), Stopped> {
        let windows = self.windows;
        let [inputs, outputs] = windows.channels;
        let taps = windows.kernel[0] * windows.kernel[1];
        let groups = inputs.div_ceil(K_GROUP) * taps;
        let plane = windows.output[0] * windows.output[1];
        let right_stride = width * K_GROUP;
        self.progress.spend(4 * block[1] * width)?;
        let layout = Layout {
            windows,
            image: {
                let image_len = inputs * windows.input[0] * windows.input[1];
                &self.input[image * image_len..][..image_len]
            },
            padding_value: self.padding_value,
            right_stride,
        };
        layout.groups(simd, columns, block, scratch.bytes);
        let left = (rows[0] / WEIGHT_BLOCK * groups + block[0]) * LEFT_GROUP;
        let panel = Panel::<_, false> {
            factors: Factors {
                groups: block[1],
                left: &self.weights[left..],
                left_block: groups * LEFT_GROUP,
                right: scratch.bytes,
                right_stride,
            },
            target: self.target,
            scales: self.scales.from(rows[0]),
            output: &mut self.output[(image * outputs + rows[0]) * plane + columns[0]..],
            output_stride: plane,
            size: [rows[1], columns[1]],
            sums: scratch.sums,
            resume_and_finish: [block[0] > 0, block[0] + block[1] == groups],
            progress: &mut *self.progress,
        };
        simd.call(panel)
    }
}

/// How windows are laid out.
struct Layout<'a> {
    windows: Windows,
    image: &'a [u8],
    padding_value: u8,
    /// The distance between rows of groups.
    right_stride: usize,
}

/// Neighbouring output elements in a row.
#[derive(Clone, Copy)]
struct Segment {
    /// The row and the first column.
    start: [usize; 2],
    /// The number of elements.
    run: usize,
    /// The group of channels.
    channels: usize,
    /// The row and column of the kernel.
    tap: [usize; 2],
}

impl Layout<'_> {
    /// Lay out some groups of the windows of some output elements of a plane; of both, the first
    /// one and how many there are. Groups are by channels, row and column of the kernel.
    #[inline(always)]
    fn groups<I: IntegerSimd>(
        &self,
        simd: I,
        columns: [usize; 2],
        groups: [usize; 2],
        to: &mut [u8],
    ) {
        let windows = &self.windows;
        let taps = windows.kernel[0] * windows.kernel[1];
        let rows = to.chunks_exact_mut(self.right_stride).take(groups[1]);
        if windows.are_elements() {
            let width = windows.input[0] * windows.input[1];
            for (group, to) in rows.enumerate() {
                let first = (groups[0] + group) * K_GROUP;
                let planes = self.rows([first, width], columns[0]);
                interleave(simd, planes, 1, &mut to[..columns[1] * K_GROUP]);
            }
            return;
        }
        for (group, to) in rows.enumerate() {
            let group = groups[0] + group;
            let (channels, tap) = (group / taps, group % taps);
            let tap = [tap / windows.kernel[1], tap % windows.kernel[1]];
            let mut start = columns[0];
            let mut rest = &mut to[..columns[1] * K_GROUP];
            while !rest.is_empty() {
                let place = [start / windows.output[1], start % windows.output[1]];
                let run = (windows.output[1] - place[1]).min(rest.len() / K_GROUP);
                let (part, behind) = rest.split_at_mut(run * K_GROUP);
                let segment = Segment { start: place, run, channels, tap };
                self.segment(simd, segment, part);
                (start, rest) = (start + run, behind);
            }
        }
    }

    /// The value of a tap in the windows of a segment.
    #[inline(always)]
    fn segment<I: IntegerSimd>(&self, simd: I, segment: Segment, to: &mut [u8]) {
        let windows = &self.windows;
        let Segment { start, run, channels, tap } = segment;
        let [height, width] = windows.input;
        let (stride, padding) = (windows.stride[1], windows.padding[1]);
        let Some(y) = windows.position(0, start[0], tap[0]) else {
            self.pad(channels, to);
            return;
        };
        let x = start[1] * stride + tap[1] * windows.dilation[1];
        // The elements that lie before the row, and those that do not lie behind it.
        let before = padding.saturating_sub(x).div_ceil(stride).min(run);
        let end = (width + padding).saturating_sub(x).div_ceil(stride);
        let (inside, behind) = to.split_at_mut(end.clamp(before, run) * K_GROUP);
        self.pad(channels, behind);
        let (outside, inside) = inside.split_at_mut(before * K_GROUP);
        self.pad(channels, outside);
        if !inside.is_empty() {
            let from = y * width + x + before * stride - padding;
            let rows = self.rows([channels * K_GROUP, height * width], from);
            interleave(simd, rows, stride, inside);
        }
    }

    /// The planes of a group of channels, of the given size, from an element on, and how many of
    /// them exist.
    #[inline(always)]
    fn rows(&self, [first, plane]: [usize; 2], from: usize) -> ([&[u8]; K_GROUP], usize) {
        let count = (self.windows.channels[0] - first).min(K_GROUP);
        let row = |index: usize| {
            let channel = first + index.min(count - 1);
            &self.image[channel * plane..][from..plane]
        };
        ([row(0), row(1), row(2), row(3)], count)
    }

    /// Fill groups with the value around the input.
    #[inline(always)]
    fn pad(&self, channels: usize, to: &mut [u8]) {
        let mut group = [self.padding_value; K_GROUP];
        let count = self.windows.channels[0] - channels * K_GROUP;
        group[count.min(K_GROUP)..].fill(0);
        for to in to.as_chunks_mut().0 {
            *to = group;
        }
    }
}

/// Every so many elements of four rows as groups, zeros instead of rows that do not exist.
#[inline(always)]
fn interleave<I: IntegerSimd>(
    simd: I,
    (rows, count): ([&[u8]; K_GROUP], usize),
    stride: usize,
    to: &mut [u8],
) {
    let lanes = I::Floats::LANES;
    let mask = [u32::MAX, 0xff, 0xffff, 0x00ff_ffff][count % K_GROUP];
    let elements = to.len() / K_GROUP;
    let least = rows.map(<[u8]>::len).into_iter().min().unwrap_or(0);
    let vectors = match stride {
        // The last one of a vector's elements is followed by another one, which is read as well.
        2 => (least / 2).min(elements) / lanes,
        1 => least.min(elements) / lanes,
        _ => 0,
    };
    let (whole, rest) = to.split_at_mut(vectors * lanes * K_GROUP);
    let lane_mask = simd.splat_integer(mask.cast_signed());
    for (vector, to) in whole.chunks_exact_mut(lanes * K_GROUP).enumerate() {
        let start = vector * lanes * stride;
        // SAFETY: each row has the elements of all vectors, times the stride, and the chunk has a
        // group for each lane.
        #[expect(unsafe_code, reason = "the number of vectors is bounded by the lengths")]
        unsafe {
            let load = |row: usize| {
                let from = rows[row].as_ptr().add(start);
                if stride == 1 { simd.load_bytes(from) } else { simd.load_even_bytes(from) }
            };
            let groups = simd.group([load(0), load(1), load(2), load(3)]);
            simd.store_groups(to.as_mut_ptr(), simd.and(groups, lane_mask));
        }
    }
    for (index, to) in rest.as_chunks_mut::<K_GROUP>().0.iter_mut().enumerate() {
        let place = (vectors * lanes + index) * stride;
        let group = u32::from_le_bytes(rows.map(|row| row[place])) & mask;
        *to = group.to_le_bytes();
    }
}
