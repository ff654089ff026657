//! Tiles of sums of products of u8 with i8, which stay in registers while `k` passes, for all rows
//! of a panel.

use super::factors::{Factors, LEFT_GROUP};
use super::narrow::Column;
use super::simd::{IntegerKernel, IntegerSimd, Numbers};
use super::target::{Scales, Target};
use crate::narrow::is_narrow;
use crate::progress::Progress;
use crate::scratch::SUM_COLUMNS;
use crate::simd::Simd;
use crate::{K_GROUP, Stopped, WEIGHT_BLOCK};

/// The rows between two uses of an activation that is not done in registers.
const ROWS_BETWEEN_TAILS: usize = 64;

/// The sums of some groups for all rows of a panel of at most [`SUM_COLUMNS`] columns. If
/// `UNSIGNED_LEFT`, the left factors are u8 and what follows the sums is by column, as of a product
/// of matrices; else the right ones are u8 and it is by row, as of a convolution.
pub(crate) struct Panel<'a, 'b, T: Target, const UNSIGNED_LEFT: bool> {
    pub(crate) factors: Factors<'a>,
    pub(crate) target: T,
    /// Of the rows, or of the columns.
    pub(crate) scales: Scales<'a>,
    /// From the first element on.
    pub(crate) output: &'a mut [T::Element],
    /// The distance between the rows of the output.
    pub(crate) output_stride: usize,
    /// The rows and columns.
    pub(crate) size: [usize; 2],
    /// The sums of earlier groups, [`SUM_COLUMNS`] in a row, if there are some or more follow.
    pub(crate) sums: &'a mut [i32],
    /// Whether there are sums of earlier groups, and whether these groups are the last ones.
    pub(crate) resume_and_finish: [bool; 2],
    pub(crate) progress: &'a mut Progress<'b>,
}

impl<T: Target, const UNSIGNED_LEFT: bool> IntegerKernel for Panel<'_, '_, T, UNSIGNED_LEFT> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<I: IntegerSimd>(mut self, simd: I) -> Result<(), Stopped> {
        let [rows, columns] = self.size;
        let lanes = I::Floats::LANES;
        let mut column = 0;
        while column < columns {
            let left = (columns - column).div_ceil(lanes);
            // Two and two rather than three and one.
            let vectors = if left == I::TILE_VECTORS + 1 { 2 } else { left.min(I::TILE_VECTORS) };
            let width = (columns - column).min(vectors * lanes);
            let is_narrow = !UNSIGNED_LEFT
                && is_narrow::<I::Floats>(rows, width)
                && self.resume_and_finish == [false, true];
            for from in (0..rows).step_by(ROWS_BETWEEN_TAILS) {
                let to = rows.min(from + ROWS_BETWEEN_TAILS);
                self.progress.spend((to - from) * vectors * lanes * self.factors.groups)?;
                if is_narrow {
                    simd.call(self.column_of(from, to, column));
                } else {
                    self.tiles(simd, [from, to], [column, column + width]);
                }
                if self.resume_and_finish[1] {
                    let values = &mut self.output[from * self.output_stride + column..];
                    let size = if width == self.output_stride {
                        [1, (to - from) * width]
                    } else {
                        [to - from, width]
                    };
                    self.target.follow(simd, values, self.output_stride, size);
                }
            }
            column += width;
        }
        Ok(())
    }
}

impl<T: Target, const UNSIGNED_LEFT: bool> Panel<'_, '_, T, UNSIGNED_LEFT> {
    /// The tiles of some rows and columns.
    #[inline(always)]
    fn tiles<I: IntegerSimd>(&mut self, simd: I, rows: [usize; 2], columns: [usize; 2]) {
        let vectors = (columns[1] - columns[0]).div_ceil(I::Floats::LANES);
        let most = I::TILE_ROWS[vectors - 1];
        let whole = rows[0] + (rows[1] - rows[0]) / most * most;
        let whole = if rows[1] - whole > 4 { rows[1] } else { whole };
        for [from, to, tile] in [[rows[0], whole, most], [whole, rows[1], rows[1] - whole]] {
            if from == to {
                continue;
            }
            let (rows, three) = ([from, to], I::TILE_VECTORS == 3);
            match [vectors, tile] {
                [1, 1] => simd.call(self.place::<1, 1>(rows, columns)),
                [1, 8] if I::TILE_ROWS[0] == 8 => simd.call(self.place::<8, 1>(rows, columns)),
                [1, _] => simd.call(self.place::<4, 1>(rows, columns)),
                [2, 1] => simd.call(self.place::<1, 2>(rows, columns)),
                [2, 8] if I::TILE_ROWS[1] == 8 => simd.call(self.place::<8, 2>(rows, columns)),
                [2, _] => simd.call(self.place::<4, 2>(rows, columns)),
                [3, 1] if three => simd.call(self.place::<1, 3>(rows, columns)),
                [3, 8] if three => simd.call(self.place::<8, 3>(rows, columns)),
                [3, _] if three => simd.call(self.place::<4, 3>(rows, columns)),
                _ => unreachable!("a tile has other sizes"),
            }
        }
    }

    /// Rows of a single column with their part of the operands.
    #[inline(always)]
    fn column_of(&mut self, row: usize, end: usize, column: usize) -> Column<'_, T> {
        let left = row / WEIGHT_BLOCK * self.factors.left_block;
        Column {
            factors: Factors {
                left: &self.factors.left[left..],
                right: &self.factors.right[column * K_GROUP..],
                ..self.factors
            },
            target: self.target,
            scales: self.scales.from(row),
            output: &mut self.output[row * self.output_stride + column..],
            output_stride: self.output_stride,
            rows: end - row,
        }
    }

    /// Tiles with their part of the operands.
    #[inline(always)]
    fn place<const ROWS: usize, const VECTORS: usize>(
        &mut self,
        [row, end]: [usize; 2],
        [column, column_end]: [usize; 2],
    ) -> Tiles<'_, T, UNSIGNED_LEFT, ROWS, VECTORS> {
        let left = row / WEIGHT_BLOCK * self.factors.left_block + row % WEIGHT_BLOCK * K_GROUP;
        let [resume, finish] = self.resume_and_finish;
        let sums = row * SUM_COLUMNS + column;
        let sums = if resume || !finish { &mut self.sums[sums..] } else { &mut [] };
        Tiles {
            factors: Factors {
                left: &self.factors.left[left..],
                right: &self.factors.right[column * K_GROUP..],
                ..self.factors
            },
            target: self.target,
            scales: self.scales.from(if UNSIGNED_LEFT { column } else { row }),
            output: &mut self.output[row * self.output_stride + column..],
            output_stride: self.output_stride,
            size: [end - row, column_end - column],
            sums,
            resume_and_finish: self.resume_and_finish,
        }
    }
}

/// A column of tiles, of which each has at most `ROWS` rows of at most `VECTORS` vectors.
struct Tiles<'a, T: Target, const UNSIGNED_LEFT: bool, const ROWS: usize, const VECTORS: usize> {
    factors: Factors<'a>,
    target: T,
    scales: Scales<'a>,
    output: &'a mut [T::Element],
    output_stride: usize,
    size: [usize; 2],
    sums: &'a mut [i32],
    resume_and_finish: [bool; 2],
}

impl<T: Target, const UNSIGNED_LEFT: bool, const ROWS: usize, const VECTORS: usize> IntegerKernel
    for Tiles<'_, T, UNSIGNED_LEFT, ROWS, VECTORS>
{
    type Output = ();

    #[inline(always)]
    fn run<I: IntegerSimd>(self, simd: I) {
        self.check_bounds::<I>();
        let Factors { groups, left, left_block, right, right_stride } = self.factors;
        let lanes = I::Floats::LANES;
        let columns = self.column_scales(simd);
        for row in (0..self.size[0]).step_by(ROWS) {
            let block = row / WEIGHT_BLOCK * left_block + row % WEIGHT_BLOCK * K_GROUP;
            let mut sums = [[simd.no_sums(); VECTORS]; ROWS];
            // SAFETY: the groups of the tile's factors lie in theirs, as checked.
            #[expect(unsafe_code, reason = "the bounds are checked for all tiles")]
            unsafe {
                let right = (right.as_ptr(), right_stride);
                accumulate::<I, UNSIGNED_LEFT, ROWS, VECTORS>(
                    simd,
                    groups,
                    left.as_ptr().add(block),
                    right,
                    &mut sums,
                );
            }
            for (index, sums) in sums.into_iter().enumerate() {
                if row + index >= self.size[0] {
                    continue;
                }
                let (offsets, factors) = if UNSIGNED_LEFT {
                    columns
                } else {
                    let (offset, factors) = self.scales.of_channel(simd, row + index);
                    ([offset; VECTORS], [factors; VECTORS])
                };
                for (vector, sums) in sums.into_iter().enumerate() {
                    let column = vector * lanes;
                    let count = (self.size[1] - column).min(lanes);
                    // SAFETY: the row and the columns of the tile exist, and lie in the output and
                    // in the sums, as checked.
                    #[expect(unsafe_code, reason = "the bounds are checked for all tiles")]
                    unsafe {
                        let mut total = simd.total(sums);
                        let place = self.sums.as_mut_ptr();
                        let place = place.wrapping_add((row + index) * SUM_COLUMNS + column);
                        if self.resume_and_finish[0] {
                            total = simd.add_integers(total, simd.load_integers(place));
                        }
                        if self.resume_and_finish[1] {
                            let to = (row + index) * self.output_stride + column;
                            let to = self.output.as_mut_ptr().add(to);
                            let sums = simd.add_integers(total, offsets[vector]);
                            self.target.store(simd, (to, count), sums, factors[vector]);
                        } else {
                            simd.store_integers(place, total);
                        }
                    }
                }
            }
        }
    }
}

/// The scales of vectors of columns.
type ColumnScales<I, const VECTORS: usize> =
    ([<I as IntegerSimd>::Integers; VECTORS], [[Numbers<I>; 2]; VECTORS]);

impl<T: Target, const UNSIGNED_LEFT: bool, const ROWS: usize, const VECTORS: usize>
    Tiles<'_, T, UNSIGNED_LEFT, ROWS, VECTORS>
{
    /// The scales of the columns, if they are by column.
    #[inline(always)]
    fn column_scales<I: IntegerSimd>(&self, simd: I) -> ColumnScales<I, VECTORS> {
        let zero = simd.floats().splat(0.0);
        let mut columns = ([simd.splat_integer(0); VECTORS], [[zero; 2]; VECTORS]);
        if UNSIGNED_LEFT {
            let lanes = I::Floats::LANES;
            for (vector, (offsets, factors)) in columns.0.iter_mut().zip(&mut columns.1).enumerate()
            {
                let count = (self.size[1] - vector * lanes).min(lanes);
                (*offsets, *factors) = self.scales.of_columns(simd, vector * lanes, count);
            }
        }
        columns
    }

    /// Prove that all tiles lie within their operands.
    ///
    /// # Panics
    /// They do not.
    #[inline(always)]
    fn check_bounds<I: IntegerSimd>(&self) {
        let [rows, columns] = self.size;
        let lanes = I::Floats::LANES;
        let whole = (VECTORS - 1) * lanes;
        assert!(WEIGHT_BLOCK.is_multiple_of(ROWS) && rows > 0, "rows of tiles");
        assert!(whole < columns && columns <= whole + lanes, "columns of tiles");
        let output = end(rows, self.output_stride, columns);
        assert!(self.output.len() >= output, "tiles lie in their output");
        let Factors { groups, left, left_block, right, right_stride } = self.factors;
        // Whole blocks end before the last one does, of which only some rows are used.
        assert!(left_block >= LEFT_GROUP || rows <= WEIGHT_BLOCK, "blocks of left factors");
        let last_rows = ((rows - 1) % WEIGHT_BLOCK / ROWS * ROWS + ROWS) * K_GROUP;
        let block = end(groups, LEFT_GROUP, last_rows);
        assert!(left.len() >= end(rows.div_ceil(WEIGHT_BLOCK), left_block, block), "left factors");
        let width = (whole + lanes) * K_GROUP;
        assert!(right.len() >= end(groups, right_stride, width), "right factors of tiles");
        let [resume, finish] = self.resume_and_finish;
        if resume || !finish {
            assert!(self.sums.len() >= end(rows, SUM_COLUMNS, whole + lanes), "sums of tiles");
        }
    }
}

/// The elements from the first one of the first row to the last one of the last row.
fn end(rows: usize, stride: usize, columns: usize) -> usize {
    let last = (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(columns));
    last.expect("a tile lies in memory")
}

/// Add the products of so many groups to each sum.
///
/// # Safety
/// `groups` times `ROWS` groups, [`LEFT_GROUP`] bytes apart, can be read from the first address,
/// and `VECTORS` vectors of groups from each of `groups` rows at the second one.
#[inline(always)]
#[expect(unsafe_code, reason = "the bounds are checked for all tiles")]
unsafe fn accumulate<
    I: IntegerSimd,
    const UNSIGNED_LEFT: bool,
    const ROWS: usize,
    const VECTORS: usize,
>(
    simd: I,
    groups: usize,
    left: *const u8,
    (right, right_stride): (*const u8, usize),
    sums: &mut [[I::Sums; VECTORS]; ROWS],
) {
    let mut rest = *sums;
    for group in 0..groups {
        // SAFETY: the caller has so many groups of all rows and vectors; groups have no alignment.
        unsafe {
            let right = right.add(group * right_stride);
            let left = left.add(group * LEFT_GROUP).cast::<[u8; K_GROUP]>();
            let load = |vector: usize| {
                let from = right.add(vector * I::Floats::LANES * K_GROUP);
                if UNSIGNED_LEFT { simd.load_signed(from) } else { simd.load_unsigned(from) }
            };
            let mut vectors = [load(0); VECTORS];
            for (index, vector) in vectors.iter_mut().enumerate().skip(1) {
                *vector = load(index);
            }
            for (row, sums) in rest.iter_mut().enumerate() {
                let factor = left.add(row).read();
                if UNSIGNED_LEFT {
                    let factor = simd.splat_unsigned(factor);
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = simd.add_products(factor, vector, *sum);
                    }
                } else {
                    let factor = simd.splat_signed(factor);
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = simd.add_products(vector, factor, *sum);
                    }
                }
            }
        }
    }
    *sums = rest;
}
