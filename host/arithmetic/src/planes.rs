//! Depthwise convolutions and pools: each output plane depends on one input plane, of which a band
//! of rows is copied with its padding, so that every window of it lies in memory.

mod part;

use self::part::{MAX_PLACES, PlanePart, PlaneRows, place_in_row};
use crate::functions::{ShortTail, apply_tail};
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::simd::{Kernel, Simd};
use crate::windows::{Inside, Windows};
use crate::{Operands, Stopped, Tail};

/// The phases of a row whose elements inside of the input are computed once for a band.
const MAX_PHASES: usize = 4;

/// How the values of a window are combined.
pub(crate) trait Window: Copy {
    /// The result of a window without values.
    const START: f32;
    /// What lies around the input.
    const AROUND: f32;
    /// Whether values have weights, and code is generated for the common sizes of windows.
    const WEIGHTED: bool;
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
    const WEIGHTED: bool = true;

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
    const WEIGHTED: bool = false;

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
    const WEIGHTED: bool = false;

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

/// A rectangle of an output plane, and the input that its windows see, with padding. If windows are
/// more than one element apart, a row of input is copied as several ones, its phases: every so many
/// elements from the first one on, from the second one on, and so on.
#[derive(Clone, Copy)]
struct Band {
    /// The index of the plane.
    plane: usize,
    /// The first row and the first column.
    start: [usize; 2],
    /// The rows and columns.
    size: [usize; 2],
    /// The elements of a phase of a row of the padded input.
    phase: usize,
    /// The distance between the rows of the padded input.
    width: usize,
    /// The rows of the padded input.
    height: usize,
    /// Whether it is the only one of its plane.
    is_whole: bool,
}

impl<W: Window> PlaneKernel<'_, '_, W> {
    #[inline(always)]
    fn planes<S: Simd>(&mut self, simd: S, padded: &mut [f32]) -> Result<(), Stopped> {
        let [rows, columns] = self.windows.output;
        let Some(size) = self.band_size::<S>(padded.len()) else {
            return self.elements(simd);
        };
        let [band_rows, band_columns] = size;
        let is_whole = size == [rows, columns];
        if is_whole {
            let width = self.padded_width::<S>(columns);
            padded[..width * self.padded_height(rows)].fill(W::AROUND);
        }
        for plane in 0..self.windows.batch * self.windows.channels[1] {
            for column in (0..columns).step_by(band_columns) {
                let width = (columns - column).min(band_columns);
                for row in (0..rows).step_by(band_rows) {
                    let height = (rows - row).min(band_rows);
                    let padded_width = self.padded_width::<S>(width);
                    let band = Band {
                        plane,
                        start: [row, column],
                        size: [height, width],
                        phase: padded_width / self.windows.stride[1],
                        width: padded_width,
                        height: self.padded_height(height),
                        is_whole,
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
        let reach = (windows.kernel[1] - 1) * windows.dilation[1];
        (columns.next_multiple_of(S::LANES) + reach / windows.stride[1])
            .saturating_mul(windows.stride[1])
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

    /// Copy the input that a band sees; what lies around it is there already if the band is the
    /// only one of its plane.
    #[inline(always)]
    fn pad<S: Simd>(&self, simd: S, band: Band, padded: &mut [f32]) {
        let windows = &self.windows;
        let [height, width] = windows.input;
        let input = &self.operands.first[band.plane * height * width..][..height * width];
        let first = [0, 1].map(|axis| band.start[axis] * windows.stride[axis]);
        let mut insides = [Inside::default(); MAX_PHASES];
        for (phase, inside) in insides.iter_mut().enumerate().take(windows.stride[1]) {
            *inside = windows.inside(first[1] + phase, band.phase);
        }
        let rows = padded.chunks_exact_mut(band.width).take(band.height);
        for (row, padded) in rows.enumerate() {
            let row = (first[0] + row).checked_sub(windows.padding[0]);
            let row = row.filter(|row| *row < height);
            if !band.is_whole {
                padded.fill(W::AROUND);
            }
            let Some(row) = row else { continue };
            let row = &input[row * width..][..width];
            for phase in 0..windows.stride[1] {
                let inside = match insides.get(phase) {
                    Some(inside) => *inside,
                    None => windows.inside(first[1] + phase, band.phase),
                };
                let padded = &mut padded[phase * band.phase..][..band.phase];
                windows.copy_inside(simd, row, inside, padded);
            }
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
        let mut places = [0; MAX_PLACES];
        let mut last_place = 0;
        for kx in 0..windows.kernel[1] {
            let place = place_in_row(windows, band.phase, kx);
            last_place = last_place.max(place);
            if let Some(first) = places.get_mut(kx) {
                *first = place;
            }
        }
        let part = PlanePart {
            window: self.window,
            windows: *windows,
            phase: band.phase,
            places,
            last_place,
            distance: windows.dilation[0] * band.width,
            stride: windows.stride[0] * band.width,
            padded: &padded[..band.width * band.height],
            weights: self.operands.second.chunks_exact(taps).nth(channel),
            bias: self.operands.bias.get(channel).copied(),
            residual: if residual.is_empty() { residual } else { &residual[start..] },
            tail: ShortTail::new(self.tail).unwrap_or(ShortTail::NONE),
            output_stride: columns,
        };
        let output = &mut self.output[start..];
        simd.call(PlaneRows { part, size: band.size, output });
        if ShortTail::new(self.tail).is_none() {
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
