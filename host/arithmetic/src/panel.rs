//! All rows of a panel of at most [`PANEL`] columns, tile by tile.

use crate::functions::{ShortTail, apply_tail};
use crate::narrow::{Column, is_narrow};
use crate::progress::Progress;
use crate::simd::{Kernel, Simd};
use crate::tile::{Bias, Factors, Finish, Rows, Tiles};
use crate::{PANEL, Stopped, Tail, WEIGHT_BLOCK};

/// The rows between two uses of an activation that is not done in registers: they stay in the
/// first cache.
const ROWS_BETWEEN_TAILS: usize = 64;

/// Blocks of about equal size, at most `limit`, of which there are as few as possible.
pub(crate) fn block_size(size: usize, limit: usize) -> usize {
    size.div_ceil(size.div_ceil(limit))
}

/// What follows the sums of all panels of a result.
#[derive(Clone, Copy)]
pub(crate) struct Ending<'a> {
    pub(crate) scale: f32,
    /// By row or by column of the result.
    pub(crate) bias: Bias<'a>,
    /// As the output, or empty.
    pub(crate) residual: &'a [f32],
    pub(crate) tail: Tail,
}

/// The sums of a block of `k` for all rows of a panel.
pub(crate) struct Panel<'a, 'b, R> {
    pub(crate) factors: Factors<'a, R>,
    /// The whole output.
    pub(crate) output: &'a mut [f32],
    /// Where the panel begins in the output.
    pub(crate) offset: usize,
    /// The distance between the rows of the output.
    pub(crate) output_stride: usize,
    /// The rows and columns.
    pub(crate) size: [usize; 2],
    /// The first row and column for the bias.
    pub(crate) first: [usize; 2],
    /// Whether the output already has the sums of a smaller `k`.
    pub(crate) resume: bool,
    /// What follows the last sum.
    pub(crate) ending: Option<Ending<'a>>,
    pub(crate) progress: &'a mut Progress<'b>,
}

impl<R: Rows> Kernel for Panel<'_, '_, R> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Result<(), Stopped> {
        let [rows, columns] = self.size;
        debug_assert!(columns <= PANEL, "a panel has at most {PANEL} columns");
        let mut column = 0;
        while column < columns {
            let vectors = tile_vectors::<S>((columns - column).div_ceil(S::LANES));
            let width = (columns - column).min(vectors * S::LANES);
            let mut from = 0;
            let is_narrow = is_narrow::<S>(rows, width);
            while from < rows {
                let to = rows.min(from + ROWS_BETWEEN_TAILS);
                if is_narrow {
                    self.progress.spend((to - from) * S::LANES * self.factors.k)?;
                    simd.call(self.column_of(from, to, column));
                } else {
                    self.tiles(simd, [from, to], [column, column + width])?;
                }
                if let Some(ending) = &self.ending
                    && ShortTail::new(&ending.tail).is_none()
                {
                    let start = self.offset + from * self.output_stride + column;
                    let values = &mut self.output[start..];
                    let size = if width == self.output_stride {
                        [1, (to - from) * width]
                    } else {
                        [to - from, width]
                    };
                    apply_tail(simd, &ending.tail, values, self.output_stride, size);
                }
                from = to;
            }
            column += width;
        }
        Ok(())
    }
}

impl<'a, R: Rows> Panel<'a, '_, R> {
    /// The tiles of some rows and columns.
    #[inline(always)]
    fn tiles<S: Simd>(
        &mut self,
        simd: S,
        [from, to]: [usize; 2],
        columns: [usize; 2],
    ) -> Result<(), Stopped> {
        let vectors = (columns[1] - columns[0]).div_ceil(S::LANES);
        let most = S::TILE_ROWS[vectors - 1];
        let whole = from + (to - from) / most * most;
        self.progress.spend((to - from) * vectors * S::LANES * self.factors.k)?;
        if from < whole {
            self.column(simd, [from, whole], columns, [vectors, most]);
        }
        if whole < to {
            self.column(simd, [whole, to], columns, [vectors, to - whole]);
        }
        Ok(())
    }

    /// A column of tiles of some vectors and at least so many rows.
    #[inline(always)]
    fn column<S: Simd>(
        &mut self,
        simd: S,
        rows: [usize; 2],
        columns: [usize; 2],
        tile: [usize; 2],
    ) {
        let three = S::TILE_VECTORS == 3;
        match tile {
            [1, 1] => simd.call(self.place::<1, 1>(rows, columns)),
            [1, 2] => simd.call(self.place::<2, 1>(rows, columns)),
            [1, 3 | 4] => simd.call(self.place::<4, 1>(rows, columns)),
            [1, _] if S::TILE_ROWS[0] == 8 => simd.call(self.place::<8, 1>(rows, columns)),
            [2, 1] => simd.call(self.place::<1, 2>(rows, columns)),
            [2, 2] => simd.call(self.place::<2, 2>(rows, columns)),
            [2, 3 | 4] => simd.call(self.place::<4, 2>(rows, columns)),
            [2, _] if S::TILE_ROWS[1] == 8 => simd.call(self.place::<8, 2>(rows, columns)),
            [3, 1] if three => simd.call(self.place::<1, 3>(rows, columns)),
            [3, 2] if three => simd.call(self.place::<2, 3>(rows, columns)),
            [3, 3 | 4] if three => simd.call(self.place::<4, 3>(rows, columns)),
            [3, _] if three && S::TILE_ROWS[2] == 8 => {
                simd.call(self.place::<8, 3>(rows, columns));
            }
            _ => unreachable!("a tile has other sizes"),
        }
    }

    /// Tiles with their part of the operands.
    #[inline(always)]
    fn place<const ROWS: usize, const VECTORS: usize>(
        &mut self,
        [row, end]: [usize; 2],
        [column, column_end]: [usize; 2],
    ) -> Tiles<'_, R, ROWS, VECTORS> {
        let (factors, finish) = (self.factors_from(row, column), self.finish_from(row, column));
        let start = self.offset + row * self.output_stride + column;
        Tiles {
            factors,
            output: &mut self.output[start..],
            output_stride: self.output_stride,
            size: [end - row, column_end - column],
            resume: self.resume,
            finish,
        }
    }

    /// Rows of a single column with their part of the operands.
    #[inline(always)]
    fn column_of(&mut self, row: usize, end: usize, column: usize) -> Column<'_, R> {
        let (factors, finish) = (self.factors_from(row, column), self.finish_from(row, column));
        let start = self.offset + row * self.output_stride + column;
        Column {
            factors,
            output: &mut self.output[start..],
            output_stride: self.output_stride,
            rows: end - row,
            resume: self.resume,
            finish,
        }
    }

    /// The factors from a row and a column on.
    #[inline(always)]
    fn factors_from(&self, row: usize, column: usize) -> Factors<'a, R> {
        let left = row / WEIGHT_BLOCK * self.factors.left_block + row % WEIGHT_BLOCK;
        Factors {
            left: &self.factors.left[left..],
            right: &self.factors.right[column..],
            ..self.factors
        }
    }

    /// What follows the sums from a row and a column on.
    #[inline(always)]
    fn finish_from(&self, row: usize, column: usize) -> Option<Finish<'a>> {
        let start = self.offset + row * self.output_stride + column;
        self.ending.map(|ending| Finish {
            scale: ending.scale,
            bias: match ending.bias {
                Bias::None => Bias::None,
                Bias::Rows(bias) => Bias::Rows(&bias[self.first[0] + row..]),
                Bias::Columns(bias) => Bias::Columns(&bias[self.first[1] + column..]),
            },
            residual: (!ending.residual.is_empty()).then(|| &ending.residual[start..]),
            tail: ShortTail::new(&ending.tail).unwrap_or(ShortTail::NONE),
        })
    }
}

/// The vectors of the next tile, if so many are left: 2 and 2 rather than 3 and 1.
#[inline(always)]
fn tile_vectors<S: Simd>(left: usize) -> usize {
    if left == S::TILE_VECTORS + 1 { 2 } else { left.min(S::TILE_VECTORS) }
}
