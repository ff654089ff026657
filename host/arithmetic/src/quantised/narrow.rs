//! Single columns of sums of products, whose lanes are rows, as those of [`crate::narrow`].

use super::factors::{Factors, LEFT_GROUP};
use super::simd::{IntegerKernel, IntegerSimd, MAX_LANES};
use super::target::{Scales, Target};
use crate::simd::Simd;
use crate::{K_GROUP, WEIGHT_BLOCK};

/// The vectors of rows whose sums are computed together.
const VECTORS: usize = 4;

/// All rows of a column of weights times values.
pub(crate) struct Column<'a, T: Target> {
    pub(crate) factors: Factors<'a>,
    pub(crate) target: T,
    /// Of the rows.
    pub(crate) scales: Scales<'a>,
    /// From the first element on.
    pub(crate) output: &'a mut [T::Element],
    /// The distance between the rows of the output.
    pub(crate) output_stride: usize,
    pub(crate) rows: usize,
}

impl<T: Target> IntegerKernel for Column<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: IntegerSimd>(self, simd: I) {
        let lanes = I::Floats::LANES;
        debug_assert!(lanes == WEIGHT_BLOCK || lanes == 2 * WEIGHT_BLOCK, "a vector has blocks");
        let blocks = self.rows.div_ceil(WEIGHT_BLOCK);
        for first in (0..self.rows).step_by(VECTORS * lanes) {
            let sums = self.sums(simd, first / WEIGHT_BLOCK, blocks - 1);
            for (vector, sums) in sums.into_iter().enumerate() {
                let row = first + vector * lanes;
                let count = self.rows.saturating_sub(row).min(lanes);
                if count == 0 {
                    break;
                }
                let (offsets, factors) = self.scales.of_columns(simd, row, count);
                let sums = simd.add_integers(simd.total(sums), offsets);
                let mut elements = [T::Element::default(); MAX_LANES];
                // SAFETY: the array has an element for each lane.
                #[expect(unsafe_code, reason = "it writes to a pointer")]
                unsafe {
                    self.target.store(simd, (elements.as_mut_ptr(), lanes), sums, factors);
                }
                for (lane, element) in elements.into_iter().enumerate().take(count) {
                    self.output[(row + lane) * self.output_stride] = element;
                }
            }
        }
    }
}

impl<T: Target> Column<'_, T> {
    /// The sums of the rows of blocks from the first one on. A block behind the last one is that
    /// one once more.
    #[inline(always)]
    fn sums<I: IntegerSimd>(&self, simd: I, first: usize, last: usize) -> [I::Sums; VECTORS] {
        let Factors { groups, left, left_block, right, right_stride } = self.factors;
        let per_vector = I::Floats::LANES / WEIGHT_BLOCK;
        let mut starts = [[0; 2]; VECTORS];
        for (vector, starts) in starts.iter_mut().enumerate() {
            for (index, start) in starts.iter_mut().enumerate() {
                *start = (first + vector * per_vector + index).min(last) * left_block;
                assert!(*start + groups * LEFT_GROUP <= left.len(), "left factors of a column");
            }
        }
        assert!((groups - 1) * right_stride + K_GROUP <= right.len(), "right factors of a column");
        let mut sums = [simd.no_sums(); VECTORS];
        for group in 0..groups {
            // SAFETY: all groups of all blocks lie in the left factors, and the first group of each
            // row in the right ones, as asserted; groups have no alignment.
            #[expect(unsafe_code, reason = "the bounds are asserted for all groups")]
            unsafe {
                let values = right.as_ptr().add(group * right_stride).cast::<[u8; K_GROUP]>();
                let values = simd.splat_unsigned(values.read());
                for (sums, starts) in sums.iter_mut().zip(&starts) {
                    let block = left.as_ptr().add(starts[0] + group * LEFT_GROUP);
                    let weights = if per_vector == 1 {
                        simd.load_signed(block)
                    } else {
                        let next = left.as_ptr().add(starts[1] + group * LEFT_GROUP);
                        simd.load_signed_halves(block, next)
                    };
                    *sums = simd.add_products(values, weights, *sums);
                }
            }
        }
        sums
    }
}
