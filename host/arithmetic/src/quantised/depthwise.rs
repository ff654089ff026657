//! Depthwise convolutions of u8: a band of rows of a plane is copied with its padding, and each lane
//! gets four neighbouring values of its window at a time.

use super::simd::{IntegerKernel, IntegerSimd, MAX_WINDOWS, Numbers};
use super::target::{Scales, Target};
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::simd::Simd;
use crate::windows::Windows;
use crate::{K_GROUP, Stopped};

/// The most groups of a kernel for which code is generated.
const MAX_GROUPS: usize = 10;

/// A depthwise convolution and its output.
pub(crate) struct DepthwiseKernel<'a, 'b, T: Target> {
    pub(crate) windows: Windows,
    pub(crate) padding_value: u8,
    pub(crate) input: &'a [u8],
    /// `[channels][kernel]`
    pub(crate) weights: &'a [u8],
    pub(crate) scales: Scales<'a>,
    pub(crate) target: T,
    pub(crate) output: &'a mut [T::Element],
    pub(crate) progress: &'a mut Progress<'b>,
}

impl<T: Target> IntegerKernel for DepthwiseKernel<'_, '_, T> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<I: IntegerSimd>(mut self, simd: I) -> Result<(), Stopped> {
        let mut scratch = Scratch::take();
        let result = self.planes(simd, scratch.parts8().bytes);
        scratch.put_back();
        result
    }
}

impl<T: Target> DepthwiseKernel<'_, '_, T> {
    #[inline(always)]
    fn planes<I: IntegerSimd>(&mut self, simd: I, padded: &mut [u8]) -> Result<(), Stopped> {
        let windows = self.windows;
        let [rows, columns] = windows.output;
        let Some((pitch, band)) = self.band_size::<I>(padded.len()) else {
            return self.elements(simd);
        };
        let stride = windows.stride;
        let reach = (windows.kernel[0] - 1) * windows.dilation[0] + 1;
        let padded = &mut padded[..((band - 1) * stride[0] + reach) * pitch];
        padded.fill(self.padding_value);
        for plane in 0..windows.batch * windows.channels[1] {
            for row in (0..rows).step_by(band) {
                let count = (rows - row).min(band);
                let height = (count - 1) * stride[0] + reach;
                let taps = windows.kernel[0] * windows.kernel[1];
                self.progress.spend(count * columns * taps / K_GROUP + height * pitch)?;
                self.copy_band([plane, row, height], (&mut *padded, pitch), band < rows);
                let channel = plane % windows.channels[1];
                let start = plane * rows * columns;
                let end = start + (row + count) * columns;
                let part = Band {
                    windows,
                    padded,
                    pitch,
                    weights: &self.weights[channel * taps..][..taps],
                    channel,
                    scales: self.scales,
                    target: self.target,
                    rows: count,
                    output: &mut self.output[start + row * columns..end],
                };
                simd.call(part);
                let values = &mut self.output[start + row * columns..end];
                let length = values.len();
                self.target.follow(simd, values, length, [1, length]);
            }
        }
        Ok(())
    }

    /// The distance between rows of padded input and the rows of the output in a band, if so many
    /// bytes suffice for one.
    #[inline(always)]
    fn band_size<I: IntegerSimd>(&self, bytes: usize) -> Option<(usize, usize)> {
        let windows = &self.windows;
        let columns = windows.output[1].checked_next_multiple_of(I::Floats::LANES)?;
        // The last vector of windows may read a group behind the last window.
        let reach = (windows.kernel[1] + K_GROUP).checked_mul(windows.dilation[1])?;
        let padded = columns.checked_mul(windows.stride[1])?.checked_add(reach)?;
        let pitch = padded.checked_add(MAX_WINDOWS)?;
        let least = (windows.kernel[0] - 1) * windows.dilation[0] + 1;
        let more = (bytes / pitch).checked_sub(least)?;
        Some((pitch, windows.output[0].min(more / windows.stride[0] + 1)))
    }

    /// Copy the rows that a band sees. What lies around them is copied as well if it can be that
    /// of another band.
    #[inline(always)]
    fn copy_band(
        &self,
        [plane, first, height]: [usize; 3],
        (padded, pitch): (&mut [u8], usize),
        several: bool,
    ) {
        let windows = &self.windows;
        let [rows, columns] = windows.input;
        let input = &self.input[plane * rows * columns..][..rows * columns];
        let before = windows.padding[1].min(pitch);
        let count = columns.min(pitch - before);
        for (index, padded) in padded.chunks_exact_mut(pitch).take(height).enumerate() {
            let row = (first * windows.stride[0] + index).checked_sub(windows.padding[0]);
            match row.filter(|row| *row < rows) {
                Some(row) => {
                    copy_bytes(&input[row * columns..][..count], &mut padded[before..][..count]);
                }
                None if several => padded.fill(self.padding_value),
                None => {}
            }
        }
    }

    /// The output element by element, for windows that would need too much memory.
    #[inline(always)]
    fn elements<I: IntegerSimd>(&mut self, simd: I) -> Result<(), Stopped> {
        let windows = self.windows;
        let [rows, columns] = windows.output;
        let [height, width] = windows.input;
        let taps = windows.kernel[0] * windows.kernel[1];
        for index in 0..self.output.len() {
            let (y, x, plane) = (index / columns % rows, index % columns, index / columns / rows);
            let channel = plane % windows.channels[1];
            let input = &self.input[plane * height * width..][..height * width];
            let mut sum = 0;
            for (ky, weights) in
                self.weights[channel * taps..][..taps].chunks_exact(windows.kernel[1]).enumerate()
            {
                self.progress.spend(windows.kernel[1])?;
                for (kx, weight) in weights.iter().enumerate() {
                    let value = match (windows.position(0, y, ky), windows.position(1, x, kx)) {
                        (Some(row), Some(column)) => input[row * width + column],
                        _ => self.padding_value,
                    };
                    sum += i32::from(value) * i32::from(weight.cast_signed());
                }
            }
            let (offset, factors) = self.scales.of_channel(simd, channel);
            let sums = simd.add_integers(simd.splat_integer(sum), offset);
            let output = &mut self.output[index..=index];
            // SAFETY: the slice has one element.
            #[expect(unsafe_code, reason = "it writes to a pointer")]
            unsafe {
                self.target.store(simd, (output.as_mut_ptr(), 1), sums, factors);
            }
            self.target.follow(simd, output, 1, [1, 1]);
        }
        Ok(())
    }
}

/// Copy a few bytes faster than `memcpy`.
#[inline(always)]
fn copy_bytes(from: &[u8], to: &mut [u8]) {
    /// Copy in pieces of `N`, of which the last two may overlap.
    #[inline(always)]
    fn pieces<const N: usize>(from: &[u8], to: &mut [u8]) {
        for (to, from) in to.as_chunks_mut::<N>().0.iter_mut().zip(from.as_chunks::<N>().0) {
            *to = *from;
        }
        if let (Some(to), Some(from)) = (to.last_chunk_mut::<N>(), from.last_chunk::<N>()) {
            *to = *from;
        }
    }
    match from.len() {
        16.. => pieces::<16>(from, to),
        8.. => pieces::<8>(from, to),
        4.. => pieces::<4>(from, to),
        _ => pieces::<1>(from, to),
    }
}

/// The rows of a band.
struct Band<'a, T: Target> {
    windows: Windows,
    padded: &'a [u8],
    /// The distance between rows of padded input.
    pitch: usize,
    weights: &'a [u8],
    channel: usize,
    scales: Scales<'a>,
    target: T,
    rows: usize,
    output: &'a mut [T::Element],
}

impl<T: Target> IntegerKernel for Band<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: IntegerSimd>(mut self, simd: I) {
        let windows = &self.windows;
        match (windows.kernel, windows.stride, windows.dilation[0] * windows.dilation[1]) {
            ([3, 3], [1, 1], 1) => self.unrolled::<I, 3, 1, 4>(simd),
            ([3, 3], [2, 2], 1) => self.unrolled::<I, 3, 2, 2>(simd),
            ([5, 5], [1, 1], 1) => self.unrolled::<I, 5, 1, 2>(simd),
            ([5, 5], [2, 2], 1) => self.unrolled::<I, 5, 2, 2>(simd),
            _ => self.rolled(simd),
        }
    }
}

impl<T: Target> Band<'_, T> {
    /// A square kernel of known size and stride, `ROWS` rows of the output at a time.
    #[inline(always)]
    fn unrolled<I: IntegerSimd, const KERNEL: usize, const STRIDE: usize, const ROWS: usize>(
        &mut self,
        simd: I,
    ) {
        let lanes = I::Floats::LANES;
        let columns = self.windows.output[1];
        let groups = KERNEL.div_ceil(K_GROUP);
        let mut weights = [[0; K_GROUP]; MAX_GROUPS];
        for (index, weight) in self.weights.iter().enumerate() {
            let (ky, kx) = (index / KERNEL, index % KERNEL);
            weights[ky * groups + kx / K_GROUP][kx % K_GROUP] = *weight;
        }
        let scales = self.scales.of_channel(simd, self.channel);
        for row in (0..self.rows).step_by(ROWS) {
            // The last rows are computed once more if they are not as many.
            let row = if row + ROWS > self.rows { self.rows.saturating_sub(ROWS) } else { row };
            let count = ROWS.min(self.rows);
            let height = (count - 1) * STRIDE + KERNEL;
            for column in (0..columns).step_by(lanes) {
                let start = row * STRIDE * self.pitch + column * STRIDE;
                let last = start + (height - 1) * self.pitch + (groups - 1) * K_GROUP;
                assert!(last + MAX_WINDOWS <= self.padded.len(), "windows lie in the band");
                let mut sums = [simd.no_sums(); ROWS];
                // A loop over as many rows would not be unrolled, and would look up whether a row
                // of the output sees the row.
                macro_rules! rows {
                    ($($y:literal)*) => {
                        $(if $y < (ROWS - 1) * STRIDE + KERNEL && $y < height {
                            let from = start + $y * self.pitch;
                            // SAFETY: the row is not behind the last one, whose groups lie in the
                            // band with so many bytes, as asserted.
                            #[expect(unsafe_code, reason = "the bounds are asserted for all rows")]
                            unsafe {
                                let from = self.padded.as_ptr().add(from);
                                add_row::<I, KERNEL, STRIDE, ROWS>(
                                    simd, $y, from, &weights, &mut sums,
                                );
                            }
                        })*
                    };
                }
                rows!(0 1 2 3 4 5 6);
                assert!(height <= 7, "all rows are computed");
                for (index, sums) in sums.into_iter().enumerate().take(count) {
                    self.store(simd, [row + index, column], simd.total(sums), scales);
                }
            }
        }
    }

    /// Any kernel.
    #[inline(always)]
    fn rolled<I: IntegerSimd>(&mut self, simd: I) {
        let Windows { kernel: [height, width], stride, dilation, .. } = self.windows;
        let lanes = I::Floats::LANES;
        let columns = self.windows.output[1];
        let scales = self.scales.of_channel(simd, self.channel);
        for row in 0..self.rows {
            for column in (0..columns).step_by(lanes) {
                let start = row * stride[0] * self.pitch + column * stride[1];
                let mut sums = simd.no_sums();
                for ky in 0..height {
                    let weights = &self.weights[ky * width..][..width];
                    for (index, weights) in weights.chunks(K_GROUP).enumerate() {
                        let from = start + ky * dilation[0] * self.pitch;
                        let from = &self.padded[from + index * K_GROUP * dilation[1]..];
                        let end = (lanes - 1) * stride[1] + (K_GROUP - 1) * dilation[1] + 1;
                        assert!(end <= from.len(), "windows lie in the band");
                        // SAFETY: the last element of the last lane lies in the slice, as asserted.
                        #[expect(unsafe_code, reason = "the bounds are asserted for a vector")]
                        let values = unsafe {
                            simd.load_spread_windows(from.as_ptr(), stride[1], dilation[1])
                        };
                        let mut group = [0; K_GROUP];
                        group[..weights.len()].copy_from_slice(weights);
                        sums = simd.add_products(values, simd.splat_signed(group), sums);
                    }
                }
                self.store(simd, [row, column], simd.total(sums), scales);
            }
        }
    }

    /// Store the sums of neighbouring elements of a row.
    #[inline(always)]
    fn store<I: IntegerSimd>(
        &mut self,
        simd: I,
        [row, column]: [usize; 2],
        sums: I::Integers,
        (offset, factors): (I::Integers, [Numbers<I>; 2]),
    ) {
        let columns = self.windows.output[1];
        let output = &mut self.output[row * columns + column..];
        let exists = (columns - column).min(I::Floats::LANES);
        // What is stored behind a row that is shorter than a vector is overwritten by the next row.
        let spills = columns < I::Floats::LANES && output.len() >= I::Floats::LANES;
        let count = if spills { I::Floats::LANES } else { exists };
        let output = &mut output[..count];
        let sums = simd.add_integers(sums, offset);
        // SAFETY: the slice has so many elements.
        #[expect(unsafe_code, reason = "it writes to a pointer")]
        unsafe {
            self.target.store(simd, (output.as_mut_ptr(), count), sums, factors);
        }
    }
}

/// Add the products of a row of a band, the `y`th that the first window sees, to the sums of the
/// rows of the output that see it.
///
/// # Safety
/// [`MAX_WINDOWS`] bytes can be read from the address, and from that of each group behind it.
#[inline(always)]
#[expect(unsafe_code, reason = "the bounds are asserted for all rows")]
unsafe fn add_row<I: IntegerSimd, const KERNEL: usize, const STRIDE: usize, const ROWS: usize>(
    simd: I,
    y: usize,
    from: *const u8,
    weights: &[[u8; K_GROUP]; MAX_GROUPS],
    sums: &mut [I::Sums; ROWS],
) {
    let groups = KERNEL.div_ceil(K_GROUP);
    for group in 0..groups {
        // SAFETY: the caller has so many bytes there.
        let values = unsafe { simd.load_windows::<STRIDE>(from.add(group * K_GROUP)) };
        for (row, sum) in sums.iter_mut().enumerate() {
            if y >= row * STRIDE && y - row * STRIDE < KERNEL {
                let weight = weights[(y - row * STRIDE) * groups + group];
                *sum = simd.add_products(values, simd.splat_signed(weight), *sum);
            }
        }
    }
}
