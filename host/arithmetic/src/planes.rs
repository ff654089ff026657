//! Depthwise convolutions and pools: each output plane depends on one input plane, of which a band
//! of rows is copied with its padding, so that every window of it lies in memory.

use crate::functions::{ShortTail, apply_tail};
use crate::panel::block_size;
use crate::progress::Progress;
use crate::scratch::Scratch;
use crate::simd::{Kernel, Simd};
use crate::windows::{Inside, Windows};
use crate::{Operands, Stopped, Tail};

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

/// The phases of a row whose elements inside of the input are computed once for a band.
const MAX_PHASES: usize = 4;

/// The columns of a kernel whose places are computed once for a band.
const MAX_PLACES: usize = 16;

/// Where a row of padded input has the values of a column of the kernel, from the first window on.
#[inline(always)]
fn place_in_row(windows: &Windows, phase: usize, kx: usize) -> usize {
    let (column, stride) = (kx * windows.dilation[1], windows.stride[1]);
    column % stride * phase + column / stride
}

/// What rows of a band share.
#[derive(Clone, Copy)]
struct PlanePart<'a, W> {
    window: W,
    windows: Windows,
    /// The elements of a phase of a row of the padded input.
    phase: usize,
    /// Where a row of the padded input has the values of the kernel's first columns.
    places: [usize; MAX_PLACES],
    /// The greatest of the places of all columns of the kernel.
    last_place: usize,
    /// The distance between the rows of a window in the padded input.
    distance: usize,
    /// The distance between rows of windows in the padded input.
    stride: usize,
    padded: &'a [f32],
    weights: Option<&'a [f32]>,
    bias: Option<f32>,
    /// As the output, or empty.
    residual: &'a [f32],
    tail: ShortTail,
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
        let Self { part, size, output } = self;
        let Windows { kernel, stride, dilation, .. } = part.windows;
        // Rows that are computed together share what they load.
        let shared = W::WEIGHTED && S::UNROLLED && dilation[0] == 1 && size[0] >= 2;
        match (kernel, stride[0]) {
            ([3, 3], 1) if shared && S::LANES == 16 && size[0] >= 4 => {
                part.rows::<S, 3, 1, 4>(simd, size, output);
            }
            ([3, 3], 1) if shared => part.rows::<S, 3, 1, 2>(simd, size, output),
            ([5, 5], 1) if shared => part.rows::<S, 5, 1, 2>(simd, size, output),
            ([3, 3], 2) if shared => part.rows::<S, 3, 2, 2>(simd, size, output),
            ([5, 5], 2) if shared => part.rows::<S, 5, 2, 2>(simd, size, output),
            _ => part.rows::<S, 0, 0, 1>(simd, size, output),
        }
    }
}

impl<W: Window> PlanePart<'_, W> {
    /// The rows of a band, `ROWS` at a time.
    #[inline(always)]
    fn rows<S: Simd, const KERNEL: usize, const STRIDE: usize, const ROWS: usize>(
        &self,
        simd: S,
        [rows, columns]: [usize; 2],
        output: &mut [f32],
    ) {
        let step = block_size(columns.div_ceil(S::LANES), 2);
        for row in (0..rows).step_by(ROWS) {
            // The last rows are computed once more if they are not as many.
            let row = row.min(rows - ROWS);
            for column in (0..columns).step_by(step * S::LANES) {
                let place = [row, column];
                let width = (columns - column).min(step * S::LANES);
                if width > S::LANES {
                    self.vectors::<S, KERNEL, STRIDE, ROWS, 2>(simd, place, width, output);
                } else {
                    self.vectors::<S, KERNEL, STRIDE, ROWS, 1>(simd, place, width, output);
                }
            }
        }
    }

    /// Neighbouring windows of some rows.
    #[inline(always)]
    fn vectors<
        S: Simd,
        const KERNEL: usize,
        const STRIDE: usize,
        const ROWS: usize,
        const VECTORS: usize,
    >(
        &self,
        simd: S,
        [row, column]: [usize; 2],
        width: usize,
        output: &mut [f32],
    ) {
        let start = row * self.stride + column;
        let mut results = self.combine::<S, KERNEL, STRIDE, ROWS, VECTORS>(simd, start);
        let bias = simd.splat(self.bias.unwrap_or(0.0));
        for (index, results) in results.iter_mut().enumerate() {
            let residual = match self.residual {
                [] => self.residual,
                residual => &residual[(row + index) * self.output_stride + column..][..width],
            };
            for (vector, result) in results.iter_mut().enumerate() {
                // Without weights, nothing is added: the opposite of zero stays what it is.
                if W::WEIGHTED {
                    *result = simd.add(*result, bias);
                }
                let first = vector * S::LANES;
                if !residual.is_empty() {
                    let residual = &residual[first..];
                    let residual = if width - first >= S::LANES {
                        simd.load_slice(residual)
                    } else {
                        simd.load_short(residual)
                    };
                    *result = simd.add(*result, residual);
                }
            }
        }
        self.tail.apply(simd, &mut results);
        for (index, results) in results.into_iter().enumerate() {
            let output = &mut output[(row + index) * self.output_stride + column..][..width];
            for (vector, result) in results.into_iter().enumerate() {
                let first = vector * S::LANES;
                if width - first >= S::LANES {
                    simd.store_slice(&mut output[first..], result);
                } else {
                    simd.store_short(&mut output[first..], result);
                }
            }
        }
    }

    /// The results of whole vectors of windows in `ROWS` rows. `KERNEL` is the height and width of
    /// windows and `STRIDE` the distance between their rows, or both are 0 for any window in one
    /// row.
    #[inline(always)]
    fn combine<
        S: Simd,
        const KERNEL: usize,
        const STRIDE: usize,
        const ROWS: usize,
        const VECTORS: usize,
    >(
        &self,
        simd: S,
        start: usize,
    ) -> [[S::Vector; VECTORS]; ROWS] {
        let [height, width] = if KERNEL == 0 { self.windows.kernel } else { [KERNEL, KERNEL] };
        let weights = self.weights.unwrap_or(&[]);
        assert!(!W::WEIGHTED || weights.len() == height * width, "each value has a weight");
        let last_row = (ROWS - 1) * STRIDE + height - 1;
        let last = start + last_row * self.distance + self.last_place;
        assert!(last + VECTORS * S::LANES <= self.padded.len(), "windows lie in the padded input");
        let mut results = [[simd.splat(W::START); VECTORS]; ROWS];
        // SAFETY: no row is behind the last one, from which all vectors lie in the padded input, as
        // asserted.
        #[expect(unsafe_code, reason = "the bounds are asserted for all windows")]
        unsafe {
            let values = self.padded.as_ptr().add(start);
            if KERNEL == 0 {
                for y in 0..height {
                    let weights = &weights[if W::WEIGHTED { y * width } else { 0 }..];
                    let values = values.add(y * self.distance);
                    self.row::<S, 0, 0, ROWS, VECTORS>(simd, 0, values, weights, &mut results);
                }
            } else {
                // A loop over as many rows would not be unrolled, and would look up whether a row
                // of the output has the row.
                macro_rules! rows {
                    ($($y:literal)*) => {
                        $(if last_row + 1 > $y {
                            let values = values.add($y * self.distance);
                            self.row::<S, KERNEL, STRIDE, ROWS, VECTORS>(
                                simd, $y, values, weights, &mut results,
                            );
                        })*
                    };
                }
                rows!(0 1 2 3 4 5 6);
                assert!(last_row <= 6, "all rows are computed");
            }
        }
        results
    }

    /// Add the values of a row of the padded input, the `y`th that the first window sees, to the
    /// results of the rows of the output that see it.
    ///
    /// # Safety
    /// `VECTORS` vectors can be read from each of the places in the row.
    #[inline(always)]
    #[expect(unsafe_code, clippy::too_many_arguments, reason = "a part of a function")]
    unsafe fn row<
        S: Simd,
        const KERNEL: usize,
        const STRIDE: usize,
        const ROWS: usize,
        const VECTORS: usize,
    >(
        &self,
        simd: S,
        y: usize,
        from: *const f32,
        weights: &[f32],
        results: &mut [[S::Vector; VECTORS]; ROWS],
    ) {
        let width = if KERNEL == 0 { self.windows.kernel[1] } else { KERNEL };
        for kx in 0..width {
            let place = if kx < MAX_PLACES {
                self.places[kx]
            } else {
                place_in_row(&self.windows, self.phase, kx)
            };
            let mut vectors = [simd.splat(0.0); VECTORS];
            for (index, vector) in vectors.iter_mut().enumerate() {
                // SAFETY: the caller has so many vectors at the place.
                *vector = unsafe { simd.load(from.add(place + index * S::LANES)) };
            }
            for (row, results) in results.iter_mut().enumerate() {
                if KERNEL > 0 && (y < row * STRIDE || y - row * STRIDE >= KERNEL) {
                    continue;
                }
                let mut weight = 0.0;
                if W::WEIGHTED {
                    weight = weights[(y - row * STRIDE) * width + kx];
                }
                let weight = simd.splat(weight);
                for (result, vector) in results.iter_mut().zip(vectors) {
                    *result = self.window.step(simd, *result, vector, weight);
                }
            }
        }
    }
}
