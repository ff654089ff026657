//! Depthwise convolutions and pools: each output plane depends on one input plane, of which a band
//! of rows is copied with its padding, so that every window of it lies in memory.

use crate::functions::apply_tail;
use crate::panel::{block_size, clip_of};
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::simd::{Kernel, Simd};
use crate::windows::{Windows, copy};
use crate::{Operands, Stopped, Tail};

/// How the values of a window are combined.
pub(crate) trait Window: Copy {
    /// The result of a window without values.
    const START: f32;
    /// What lies around the input.
    const AROUND: f32;
    /// The most vectors of a row that are computed together.
    const MAX_VECTORS: usize;
    /// Whether code is generated for the common sizes of windows.
    const UNROLLED: bool;
    /// The result with one more value, and with its weight if there are weights.
    fn step<S: Simd>(
        self,
        simd: S,
        result: S::Vector,
        value: S::Vector,
        weight: S::Vector,
    ) -> S::Vector;
}

/// The sum of the values times their weights.
#[derive(Clone, Copy)]
pub(crate) struct WeightedSum;

impl Window for WeightedSum {
    const START: f32 = 0.0;
    const AROUND: f32 = 0.0;
    const MAX_VECTORS: usize = 6;
    const UNROLLED: bool = true;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        simd: S,
        result: S::Vector,
        value: S::Vector,
        weight: S::Vector,
    ) -> S::Vector {
        simd.multiply_add(value, weight, result)
    }
}

/// The sum of the values.
#[derive(Clone, Copy)]
pub(crate) struct Sum;

impl Window for Sum {
    const START: f32 = 0.0;
    const AROUND: f32 = 0.0;
    const MAX_VECTORS: usize = 2;
    const UNROLLED: bool = false;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        simd: S,
        result: S::Vector,
        value: S::Vector,
        _weight: S::Vector,
    ) -> S::Vector {
        simd.add(result, value)
    }
}

/// The greatest value.
#[derive(Clone, Copy)]
pub(crate) struct Greatest;

impl Window for Greatest {
    const START: f32 = f32::NEG_INFINITY;
    const AROUND: f32 = f32::NEG_INFINITY;
    const MAX_VECTORS: usize = 2;
    const UNROLLED: bool = false;

    #[inline(always)]
    fn step<S: Simd>(
        self,
        simd: S,
        result: S::Vector,
        value: S::Vector,
        _weight: S::Vector,
    ) -> S::Vector {
        simd.maximum(value, result)
    }
}

/// Windows of planes and their output.
pub(crate) struct PlaneKernel<'a, 'b, W> {
    pub(crate) windows: Windows,
    pub(crate) window: W,
    /// What follows the windows.
    pub(crate) tail: &'a Tail,
    /// The second operand is the weights, or empty.
    pub(crate) operands: Operands<'a>,
    pub(crate) output: &'a mut [f32],
    pub(crate) progress: &'a mut Progress<'b>,
}

impl<W: Window> Kernel for PlaneKernel<'_, '_, W> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Result<(), Stopped> {
        let mut scratch = Scratch::take();
        let result = self.planes(simd, scratch.parts().plane);
        scratch.put_back();
        result
    }
}

/// A rectangle of an output plane, and the input that its windows see, with padding.
#[derive(Clone, Copy)]
struct Band {
    /// The index of the plane.
    plane: usize,
    /// The first row and the first column.
    start: [usize; 2],
    /// The rows and columns.
    size: [usize; 2],
    /// The distance between the rows of the padded input.
    width: usize,
    /// The rows of the padded input.
    height: usize,
}

impl<W: Window> PlaneKernel<'_, '_, W> {
    #[inline(always)]
    fn planes<S: Simd>(&mut self, simd: S, padded: &mut [f32]) -> Result<(), Stopped> {
        let [rows, columns] = self.windows.output;
        let Some([band_rows, band_columns]) = self.band_size::<S>(padded.len()) else {
            return self.elements(simd);
        };
        for plane in 0..self.windows.batch * self.windows.channels[1] {
            for column in (0..columns).step_by(band_columns) {
                let width = (columns - column).min(band_columns);
                for row in (0..rows).step_by(band_rows) {
                    let height = (rows - row).min(band_rows);
                    let band = Band {
                        plane,
                        start: [row, column],
                        size: [height, width],
                        width: self.padded_width::<S>(width),
                        height: self.padded_height(height),
                    };
                    let taps = self.windows.kernel[0] * self.windows.kernel[1];
                    self.progress.spend(height * width * taps + band.width * band.height)?;
                    self.pad(simd, band, padded);
                    self.compute(simd, band, padded);
                }
            }
        }
        Ok(())
    }

    /// The columns of padded input that so many output columns read, in whole vectors.
    #[inline(always)]
    fn padded_width<S: Simd>(&self, columns: usize) -> usize {
        let windows = &self.windows;
        columns.next_multiple_of(S::LANES) * windows.stride[1]
            + (windows.kernel[1] - 1) * windows.dilation[1]
    }

    /// The rows of padded input that so many output rows read.
    #[inline(always)]
    fn padded_height(&self, rows: usize) -> usize {
        let windows = &self.windows;
        (rows - 1) * windows.stride[0] + (windows.kernel[0] - 1) * windows.dilation[0] + 1
    }

    /// The most output rows and columns whose padded input has at most so many elements, if there
    /// are some.
    #[inline(always)]
    fn band_size<S: Simd>(&self, elements: usize) -> Option<[usize; 2]> {
        let [rows, mut columns] = self.windows.output;
        let least = self.padded_height(1);
        while least.checked_mul(self.padded_width::<S>(columns)).is_none_or(|size| size > elements)
        {
            if columns <= S::LANES {
                return None;
            }
            columns = columns.div_ceil(2).next_multiple_of(S::LANES).min(columns - 1);
        }
        let height = elements / self.padded_width::<S>(columns);
        Some([rows.min((height - least) / self.windows.stride[0] + 1), columns])
    }

    /// Copy the input that a band sees, with its padding.
    #[inline(always)]
    fn pad<S: Simd>(&self, simd: S, band: Band, padded: &mut [f32]) {
        let windows = &self.windows;
        let [height, width] = windows.input;
        let input = &self.operands.first[band.plane * height * width..][..height * width];
        let first = [0, 1].map(|axis| band.start[axis] * windows.stride[axis]);
        let before = windows.padding[1].saturating_sub(first[1]).min(band.width);
        let column = first[1].saturating_sub(windows.padding[1]).min(width);
        let count = (width - column).min(band.width - before);
        let rows = padded.chunks_exact_mut(band.width).take(band.height);
        for (row, padded) in rows.enumerate() {
            let row = (first[0] + row).checked_sub(windows.padding[0]);
            let Some(row) = row.filter(|row| *row < height) else {
                padded.fill(W::AROUND);
                continue;
            };
            let (outside, inside) = padded.split_at_mut(before);
            let (inside, behind) = inside.split_at_mut(count);
            outside.fill(W::AROUND);
            behind.fill(W::AROUND);
            copy(simd, &input[row * width + column..][..count], inside);
        }
    }

    /// The output of a band.
    #[inline(always)]
    fn compute<S: Simd>(&mut self, simd: S, band: Band, padded: &[f32]) {
        let windows = &self.windows;
        let [rows, columns] = windows.output;
        let taps = windows.kernel[0] * windows.kernel[1];
        let channel = band.plane % windows.channels[1];
        let start = (band.plane * rows + band.start[0]) * columns + band.start[1];
        let residual = self.operands.residual;
        let part = PlanePart {
            window: self.window,
            kernel: windows.kernel,
            distance: [windows.dilation[0] * band.width, windows.dilation[1]],
            stride: [windows.stride[0] * band.width, windows.stride[1]],
            padded: &padded[..band.width * band.height],
            weights: self.operands.second.chunks_exact(taps).nth(channel),
            bias: self.operands.bias.get(channel).copied(),
            residual: if residual.is_empty() { residual } else { &residual[start..] },
            clip: clip_of(self.tail).unwrap_or([f32::NEG_INFINITY, f32::INFINITY]),
            output_stride: columns,
        };
        let output = &mut self.output[start..];
        simd.call(PlaneRows { part, size: band.size, output });
        if clip_of(self.tail).is_none() {
            let size =
                if band.size[1] == columns { [1, band.size[0] * columns] } else { band.size };
            apply_tail(simd, self.tail, output, columns, size);
        }
    }

    /// The output element by element, for windows that would need too much memory.
    #[inline(always)]
    fn elements<S: Simd>(&mut self, simd: S) -> Result<(), Stopped> {
        let windows = self.windows;
        let [rows, columns] = windows.output;
        let [height, width] = windows.input;
        for index in 0..self.output.len() {
            let (y, x, plane) = (index / columns % rows, index % columns, index / columns / rows);
            let channel = plane % windows.channels[1];
            let input = &self.operands.first[plane * height * width..][..height * width];
            let weights = channel * windows.kernel[0] * windows.kernel[1];
            let mut result = simd.splat(W::START);
            for ky in 0..windows.kernel[0] {
                self.progress.spend(windows.kernel[1])?;
                for kx in 0..windows.kernel[1] {
                    let weight = weights + ky * windows.kernel[1] + kx;
                    let weight = self.operands.second.get(weight).copied().unwrap_or(0.0);
                    let value = match (windows.position(0, y, ky), windows.position(1, x, kx)) {
                        (Some(row), Some(column)) => input[row * width + column],
                        _ => W::AROUND,
                    };
                    let (value, weight) = (simd.splat(value), simd.splat(weight));
                    result = self.window.step(simd, result, value, weight);
                }
            }
            if let Some(bias) = self.operands.bias.get(channel) {
                result = simd.add(result, simd.splat(*bias));
            } else if !self.operands.second.is_empty() {
                result = simd.add(result, simd.splat(0.0));
            }
            if let Some(residual) = self.operands.residual.get(index) {
                result = simd.add(result, simd.splat(*residual));
            }
            let mut lanes = [0.0; 16];
            simd.store_slice(&mut lanes, result);
            self.output[index] = lanes[0];
            apply_tail(simd, self.tail, &mut self.output[index..=index], 0, [1, 1]);
        }
        Ok(())
    }
}

/// What rows of a band share.
#[derive(Clone, Copy)]
struct PlanePart<'a, W> {
    window: W,
    kernel: [usize; 2],
    /// The distances between the values of a window in the padded input.
    distance: [usize; 2],
    /// The distances between windows in the padded input.
    stride: [usize; 2],
    padded: &'a [f32],
    weights: Option<&'a [f32]>,
    bias: Option<f32>,
    /// As the output, or empty.
    residual: &'a [f32],
    clip: [f32; 2],
    output_stride: usize,
}

/// The rows of a band.
struct PlaneRows<'a, W> {
    part: PlanePart<'a, W>,
    size: [usize; 2],
    /// From the first element on.
    output: &'a mut [f32],
}

impl<W: Window> Kernel for PlaneRows<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { part, size: [rows, columns], output } = self;
        let step = block_size(columns.div_ceil(S::LANES), W::MAX_VECTORS);
        for row in 0..rows {
            let mut column = 0;
            while column < columns {
                let width = (columns - column).min(step * S::LANES);
                let start = row * part.stride[0] + column * part.stride[1];
                let place = row * part.output_stride + column;
                let residual = match part.residual {
                    [] => part.residual,
                    residual => &residual[place..][..width],
                };
                let output = &mut output[place..][..width];
                match width.div_ceil(S::LANES) {
                    1 => part.vectors::<S, 1>(simd, start, residual, output),
                    2 => part.vectors::<S, 2>(simd, start, residual, output),
                    3 if W::MAX_VECTORS == 6 => {
                        part.vectors::<S, 3>(simd, start, residual, output);
                    }
                    4 if W::MAX_VECTORS == 6 => {
                        part.vectors::<S, 4>(simd, start, residual, output);
                    }
                    5 if W::MAX_VECTORS == 6 => {
                        part.vectors::<S, 5>(simd, start, residual, output);
                    }
                    6 if W::MAX_VECTORS == 6 => {
                        part.vectors::<S, 6>(simd, start, residual, output);
                    }
                    _ => unreachable!("a row is cut into vectors"),
                }
                column += width;
            }
        }
    }
}

impl<W: Window> PlanePart<'_, W> {
    /// Neighbouring windows, from the given element of the padded input on.
    #[inline(always)]
    fn vectors<S: Simd, const VECTORS: usize>(
        &self,
        simd: S,
        start: usize,
        residual: &[f32],
        output: &mut [f32],
    ) {
        let unrolled = W::UNROLLED && S::UNROLLED;
        let mut results = match (self.stride[1], self.kernel) {
            (1, [3, 3]) if unrolled => self.combine::<S, VECTORS, 1, 3>(simd, start),
            (1, [5, 5]) if unrolled => self.combine::<S, VECTORS, 1, 5>(simd, start),
            (1, _) => self.combine::<S, VECTORS, 1, 0>(simd, start),
            (2, [3, 3]) if unrolled => self.combine::<S, VECTORS, 2, 3>(simd, start),
            (2, [5, 5]) if unrolled => self.combine::<S, VECTORS, 2, 5>(simd, start),
            (2, _) => self.combine::<S, VECTORS, 2, 0>(simd, start),
            _ => self.combine::<S, VECTORS, 0, 0>(simd, start),
        };
        // Without weights, nothing is added: the opposite of zero stays what it is.
        if self.weights.is_some() {
            let bias = simd.splat(self.bias.unwrap_or(0.0));
            for result in &mut results {
                *result = simd.add(*result, bias);
            }
        }
        let [least, greatest] = self.clip.map(|bound| simd.splat(bound));
        for (index, result) in results.into_iter().enumerate() {
            let first = index * S::LANES;
            let mut result = result;
            if output.len() - first >= S::LANES {
                if !residual.is_empty() {
                    result = simd.add(result, simd.load_slice(&residual[first..]));
                }
                result = simd.minimum(greatest, simd.maximum(least, result));
                simd.store_slice(&mut output[first..], result);
            } else {
                if !residual.is_empty() {
                    result = simd.add(result, simd.load_short(&residual[first..]));
                }
                result = simd.minimum(greatest, simd.maximum(least, result));
                simd.store_short(&mut output[first..], result);
            }
        }
    }

    /// The results of whole vectors of windows. `STRIDE` is the distance between windows, or 0 if
    /// it is more than 2; `KERNEL` the height and width of windows, or 0 if they are others.
    #[inline(always)]
    fn combine<S: Simd, const VECTORS: usize, const STRIDE: usize, const KERNEL: usize>(
        &self,
        simd: S,
        start: usize,
    ) -> [S::Vector; VECTORS] {
        let [height, width] = if KERNEL == 0 { self.kernel } else { [KERNEL, KERNEL] };
        let stride = if STRIDE == 0 { self.stride[1] } else { STRIDE };
        let last = (height - 1) * self.distance[0] + (width - 1) * self.distance[1];
        let end = start + last + VECTORS * S::LANES * stride;
        assert!(end <= self.padded.len(), "windows lie in the padded input");
        if let Some(weights) = self.weights {
            assert!(weights.len() == height * width, "each value has a weight");
        }
        let mut results = [simd.splat(W::START); VECTORS];
        for ky in 0..height {
            for kx in 0..width {
                let weight = self.weights.map_or(0.0, |weights| weights[ky * width + kx]);
                let weight = simd.splat(weight);
                let from = start + ky * self.distance[0] + kx * self.distance[1];
                for (index, result) in results.iter_mut().enumerate() {
                    // SAFETY: the window at the end of the last vector reads the element before
                    // `end`, at most, which lies in the padded input, as asserted; others read
                    // earlier ones.
                    #[expect(unsafe_code, reason = "the bounds are asserted for all windows")]
                    let value = unsafe {
                        let from = self.padded.as_ptr().add(from + index * S::LANES * stride);
                        match STRIDE {
                            1 => simd.load(from),
                            2 => simd.load_even(from),
                            _ => load_strided(simd, from, stride),
                        }
                    };
                    *result = self.window.step(simd, *result, value, weight);
                }
            }
        }
        results
    }
}

/// Load every so many elements.
///
/// # Safety
/// The stride times [`Simd::LANES`] numbers can be read from the address.
#[inline(always)]
#[expect(unsafe_code, reason = "it reads from a pointer")]
unsafe fn load_strided<S: Simd>(simd: S, from: *const f32, stride: usize) -> S::Vector {
    let mut lanes = [0.0; 16];
    for (lane, value) in lanes.iter_mut().enumerate().take(S::LANES) {
        // SAFETY: the lane is less than the number of lanes.
        *value = unsafe { from.add(lane * stride).read() };
    }
    simd.load_slice(&lanes)
}
