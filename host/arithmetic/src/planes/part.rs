//! The rows of a band of a plane: vectors of windows next to each other, of several rows at a time.

use super::Window;
use crate::functions::ShortTail;
use crate::panel::block_size;
use crate::simd::{Kernel, Simd};
use crate::windows::Windows;

/// The columns of a kernel whose places are computed once for a band.
pub(super) const MAX_PLACES: usize = 16;

/// Where a row of padded input has the values of a column of the kernel, from the first window on.
#[inline(always)]
pub(super) fn place_in_row(windows: &Windows, phase: usize, kx: usize) -> usize {
    let (column, stride) = (kx * windows.dilation[1], windows.stride[1]);
    column % stride * phase + column / stride
}

/// What rows of a band share.
#[derive(Clone, Copy)]
pub(super) struct PlanePart<'a, W> {
    pub(super) window: W,
    pub(super) windows: Windows,
    /// The elements of a phase of a row of the padded input.
    pub(super) phase: usize,
    /// Where a row of the padded input has the values of the kernel's first columns.
    pub(super) places: [usize; MAX_PLACES],
    /// The greatest of the places of all columns of the kernel.
    pub(super) last_place: usize,
    /// The distance between the rows of a window in the padded input.
    pub(super) distance: usize,
    /// The distance between rows of windows in the padded input.
    pub(super) stride: usize,
    pub(super) padded: &'a [f32],
    pub(super) weights: Option<&'a [f32]>,
    pub(super) bias: Option<f32>,
    /// As the output, or empty.
    pub(super) residual: &'a [f32],
    pub(super) tail: ShortTail,
    pub(super) output_stride: usize,
}

/// The rows of a band.
pub(super) struct PlaneRows<'a, W> {
    pub(super) part: PlanePart<'a, W>,
    pub(super) size: [usize; 2],
    /// From the first element on.
    pub(super) output: &'a mut [f32],
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
