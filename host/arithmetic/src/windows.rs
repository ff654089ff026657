//! The geometry of windows, and windows laid out as rows of right factors.

use crate::simd::Simd;
use crate::{Convolution, PANEL};

/// The sizes of a checked [`Convolution`] as indexes. Pairs are height and width.
#[derive(Clone, Copy)]
pub(crate) struct Windows {
    pub(crate) batch: usize,
    /// Of the input and of the output.
    pub(crate) channels: [usize; 2],
    pub(crate) input: [usize; 2],
    pub(crate) output: [usize; 2],
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) padding: [usize; 2],
    pub(crate) dilation: [usize; 2],
}

fn sizes(pair: [u32; 2]) -> [usize; 2] {
    pair.map(|size| size as usize)
}

impl Windows {
    pub(crate) fn new(description: &Convolution) -> Self {
        Self {
            batch: description.batch as usize,
            channels: sizes([description.input_channels, description.output_channels]),
            input: sizes(description.input),
            output: sizes(description.output),
            kernel: sizes(description.kernel),
            stride: sizes(description.stride),
            padding: sizes(description.padding),
            dilation: sizes(description.dilation),
        }
    }

    /// Whether each window is the element of the input at the same place.
    pub(crate) fn are_elements(&self) -> bool {
        self.kernel == [1, 1]
            && self.stride == [1, 1]
            && self.padding == [0, 0]
            && self.input == self.output
    }

    /// The place in the input of a value of a window along an axis, if it is not in the padding.
    #[inline(always)]
    pub(crate) fn position(&self, axis: usize, window: usize, value: usize) -> Option<usize> {
        let padded = window * self.stride[axis] + value * self.dilation[axis];
        padded.checked_sub(self.padding[axis]).filter(|position| *position < self.input[axis])
    }

    /// The number of values of a window along an axis that are not in the padding.
    #[inline(always)]
    pub(crate) fn values_inside(&self, axis: usize, window: usize) -> usize {
        let start = window * self.stride[axis];
        let (padding, dilation) = (self.padding[axis], self.dilation[axis]);
        let before = padding.saturating_sub(start).div_ceil(dilation);
        let end = (self.input[axis] + padding).saturating_sub(start).div_ceil(dilation);
        end.min(self.kernel[axis]).saturating_sub(before)
    }

    /// The windows of the output elements `place` of a plane, for the positions `k` of their
    /// values (by channel, row and column of the kernel), as rows that are [`PANEL`] apart.
    #[inline(always)]
    pub(crate) fn lay_out<S: Simd>(
        &self,
        simd: S,
        image: &[f32],
        [place, k]: [[usize; 2]; 2],
        rows: &mut [f32],
    ) {
        let plane = self.input[0] * self.input[1];
        if self.are_elements() {
            for (channel, row) in (k[0]..k[1]).zip(rows.chunks_exact_mut(PANEL)) {
                let from = &image[channel * plane..][place[0]..place[1]];
                copy(simd, from, &mut row[..from.len()]);
            }
            return;
        }
        let width = self.output[1];
        let mut start = place[0];
        while start < place[1] {
            let (y, x) = (start / width, start % width);
            let run = (width - x).min(place[1] - start);
            let segment = Segment { y, x, run, column: start - place[0], k };
            self.lay_out_segment(simd, image, segment, rows);
            start += run;
        }
    }

    /// The windows of neighbouring output elements in a row.
    #[inline(always)]
    fn lay_out_segment<S: Simd>(&self, simd: S, image: &[f32], segment: Segment, rows: &mut [f32]) {
        let k = segment.k;
        let [kernel_height, kernel_width] = self.kernel;
        let [height, width] = self.input;
        let (mut kx, mut ky) = (k[0] % kernel_width, k[0] / kernel_width % kernel_height);
        let mut channel = k[0] / kernel_width / kernel_height;
        for row in rows.chunks_exact_mut(PANEL).take(k[1] - k[0]) {
            let to = &mut row[segment.column..][..segment.run];
            let y = (segment.y * self.stride[0] + ky * self.dilation[0])
                .checked_sub(self.padding[0])
                .filter(|y| *y < height);
            match y {
                Some(y) => {
                    let from = &image[(channel * height + y) * width..][..width];
                    let x = segment.x * self.stride[1] + kx * self.dilation[1];
                    self.copy_strided(simd, from, x, to);
                }
                None => to.fill(0.0),
            }
            kx += 1;
            if kx == kernel_width {
                (kx, ky) = (0, ky + 1);
            }
            if ky == kernel_height {
                (ky, channel) = (0, channel + 1);
            }
        }
    }

    /// Every so many elements of a row, from the place `x` of the padded row on.
    #[inline(always)]
    pub(crate) fn copy_strided<S: Simd>(&self, simd: S, from: &[f32], x: usize, to: &mut [f32]) {
        let inside = self.inside(x, to.len());
        to[inside.end..].fill(0.0);
        to[..inside.start].fill(0.0);
        self.copy_inside(simd, from, inside, to);
    }

    /// Which of so many elements of a padded row, a stride apart and from the place `x` on, are not
    /// in the padding.
    #[inline(always)]
    pub(crate) fn inside(&self, x: usize, count: usize) -> Inside {
        let (stride, padding) = (self.stride[1], self.padding[1]);
        let start = padding.saturating_sub(x).div_ceil(stride).min(count);
        let end = (self.input[1] + padding).saturating_sub(x).div_ceil(stride);
        let end = end.clamp(start, count);
        let from = if start < end { x + start * stride - padding } else { 0 };
        Inside { start, end, from }
    }

    /// The elements of a row that are not in the padding.
    #[inline(always)]
    pub(crate) fn copy_inside<S: Simd>(
        &self,
        simd: S,
        from: &[f32],
        inside: Inside,
        to: &mut [f32],
    ) {
        if inside.start == inside.end {
            return;
        }
        let to = &mut to[inside.start..inside.end];
        let from = &from[inside.from..];
        match self.stride[1] {
            1 => copy(simd, &from[..to.len()], to),
            2 => copy_even(simd, from, to),
            stride => {
                for (to, from) in to.iter_mut().zip(from.iter().step_by(stride)) {
                    *to = *from;
                }
            }
        }
    }
}

/// The elements of a padded row that are not in the padding.
#[derive(Clone, Copy, Default)]
pub(crate) struct Inside {
    /// The first one.
    pub(crate) start: usize,
    /// The end.
    pub(crate) end: usize,
    /// Where the input has the first one.
    from: usize,
}

/// Neighbouring output elements in a row.
#[derive(Clone, Copy)]
struct Segment {
    /// The row.
    y: usize,
    /// The first element.
    x: usize,
    /// The number of elements.
    run: usize,
    /// The column of the first one in the panel.
    column: usize,
    /// The first position in a window, and the end.
    k: [usize; 2],
}

/// Copy a few elements faster than `memcpy`.
#[inline(always)]
pub(crate) fn copy<S: Simd>(simd: S, from: &[f32], to: &mut [f32]) {
    let from = &from[..to.len()];
    let (mut sources, mut targets) = (from.chunks_exact(S::LANES), to.chunks_exact_mut(S::LANES));
    for (from, to) in (&mut sources).zip(&mut targets) {
        simd.store_slice(to, simd.load_slice(from));
    }
    let (from, to) = (sources.remainder(), targets.into_remainder());
    if !to.is_empty() {
        simd.store_short(to, simd.load_short(from));
    }
}

/// Copy the elements 0, 2, 4 and so on.
#[inline(always)]
pub(crate) fn copy_even<S: Simd>(simd: S, from: &[f32], to: &mut [f32]) {
    let mut done = 0;
    for (from, to) in from.chunks_exact(2 * S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
        // SAFETY: the chunks have the numbers of two vectors and of one.
        #[expect(unsafe_code, reason = "the lengths of the chunks are those of vectors")]
        unsafe {
            simd.store(to.as_mut_ptr(), simd.load_even(from.as_ptr()));
        }
        done += S::LANES;
    }
    let rest = &mut to[done..];
    if !rest.is_empty() {
        let from = &from[2 * done..];
        let count = from.len().min(2 * S::LANES);
        // SAFETY: the slice has so many numbers, which are at most those of two vectors.
        #[expect(unsafe_code, reason = "the count is the length of a slice")]
        let even = unsafe { simd.load_first_even(from.as_ptr(), count) };
        if rest.len() == S::LANES {
            simd.store_slice(rest, even);
        } else {
            simd.store_short(rest, even);
        }
    }
}
