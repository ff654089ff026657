//! Single columns of sums of products: the lanes of a vector are rows, because a vector of columns
//! would be almost empty. Planes of 7x7 elements end in such a column, and those of one element,
//! which gates of channels have, are one.

use crate::WEIGHT_BLOCK;
use crate::simd::{Kernel, Simd};
use crate::tile::{Bias, Factors, Finish, K_BLOCK, Rows};

/// The blocks of rows whose sums are computed together.
const BLOCKS: usize = 4;

/// Whether a panel of so many rows and columns is computed as a column. With fewer rows, a vector of
/// columns is not emptier than one of rows.
#[inline(always)]
pub(crate) fn is_narrow<S: Simd>(rows: usize, columns: usize) -> bool {
    columns == 1 && rows >= WEIGHT_BLOCK && S::LANES >= WEIGHT_BLOCK
}

/// All rows of a column.
pub(crate) struct Column<'a, R> {
    pub(crate) factors: Factors<'a, R>,
    /// From the first element on.
    pub(crate) output: &'a mut [f32],
    /// The distance between the rows of the output.
    pub(crate) output_stride: usize,
    pub(crate) rows: usize,
    /// Whether the output already has the sums of a smaller `k`.
    pub(crate) resume: bool,
    /// What follows the last sum.
    pub(crate) finish: Option<Finish<'a>>,
}

impl<R: Rows> Kernel for Column<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        debug_assert!(S::LANES >= WEIGHT_BLOCK, "a vector has the rows of a block");
        let Factors { k, left, left_block, right, rows: right_rows } = self.factors;
        let mut values = [0.0; K_BLOCK];
        let values = &mut values[..k];
        assert!(right_rows.greatest(k) < right.len(), "right factors of a column");
        for (index, value) in values.iter_mut().enumerate() {
            // SAFETY: the row is one of the first k ones, of which the greatest beginning lies in
            // the slice, as asserted.
            #[expect(unsafe_code, reason = "the beginnings of rows are not checked once more")]
            unsafe {
                *value = *right.get_unchecked(right_rows.start(index));
            }
        }
        let blocks = self.rows.div_ceil(WEIGHT_BLOCK);
        for first in (0..blocks).step_by(BLOCKS) {
            let mut sums = [simd.splat(0.0); BLOCKS];
            // A block that does not exist is the last one once more.
            let block = |index: usize| {
                let start = (first + index).min(blocks - 1) * left_block;
                left[start..][..k * WEIGHT_BLOCK].chunks_exact(WEIGHT_BLOCK)
            };
            if self.resume {
                for (index, sums) in sums.iter_mut().enumerate() {
                    let mut lanes = [0.0; 16];
                    self.rows_of(first + index, |lane, output| lanes[lane] = *output);
                    *sums = simd.load_slice(&lanes);
                }
            }
            let rows = block(0).zip(block(1)).zip(block(2)).zip(block(3)).zip(&*values);
            for ((((first, second), third), fourth), value) in rows {
                let value = simd.splat(*value);
                sums[0] = simd.multiply_add(value, load(simd, first), sums[0]);
                sums[1] = simd.multiply_add(value, load(simd, second), sums[1]);
                sums[2] = simd.multiply_add(value, load(simd, third), sums[2]);
                sums[3] = simd.multiply_add(value, load(simd, fourth), sums[3]);
            }
            for (index, sums) in sums.into_iter().enumerate() {
                let sums = self.finish(simd, first + index, sums);
                let mut lanes = [0.0; 16];
                simd.store_slice(&mut lanes, sums);
                self.rows_of(first + index, |lane, output| *output = lanes[lane]);
            }
        }
    }
}

impl<R: Rows> Column<'_, R> {
    /// Call the function with the rows of a block, and with what the output has there.
    #[inline(always)]
    fn rows_of(&mut self, block: usize, mut function: impl FnMut(usize, &mut f32)) {
        let first = block * WEIGHT_BLOCK;
        for row in first..self.rows.min(first + WEIGHT_BLOCK) {
            function(row - first, &mut self.output[row * self.output_stride]);
        }
    }

    /// Do what follows the sums of a block.
    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, block: usize, sums: S::Vector) -> S::Vector {
        let Some(finish) = &self.finish else { return sums };
        let first = block * WEIGHT_BLOCK;
        let count = self.rows.saturating_sub(first).min(WEIGHT_BLOCK);
        let mut bias = [0.0; 16];
        match finish.bias {
            Bias::None => {}
            Bias::Rows(rows) if count > 0 => {
                bias[..count].copy_from_slice(&rows[first..][..count]);
            }
            Bias::Rows(_) => {}
            Bias::Columns(columns) => bias = [columns[0]; 16],
        }
        let (scale, bias) = (simd.splat(finish.scale), simd.load_slice(&bias));
        let mut results = simd.multiply_add(sums, scale, bias);
        if let Some(residual) = finish.residual {
            let mut lanes = [0.0; 16];
            for (lane, value) in lanes.iter_mut().enumerate().take(count) {
                *value = residual[(first + lane) * self.output_stride];
            }
            results = simd.add(results, simd.load_slice(&lanes));
        }
        let mut results = [[results]];
        finish.tail.apply(simd, &mut results);
        results[0][0]
    }
}

/// The factors of the rows of a block.
#[inline(always)]
fn load<S: Simd>(simd: S, rows: &[f32]) -> S::Vector {
    if S::LANES > WEIGHT_BLOCK {
        simd.load_short(&rows[..WEIGHT_BLOCK])
    } else {
        simd.load_slice(&rows[..WEIGHT_BLOCK])
    }
}
