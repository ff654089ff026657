//! Products of matrices, of which each has strides of its own.

use crate::panel::{Ending, Panel, block_size};
use crate::progress::Progress;
use crate::scratch::{M_BLOCK, Parts, Scratch};
use crate::simd::{Kernel, Simd, transpose};
use crate::tile::{Bias, Factors, K_BLOCK, Stride};
use crate::windows::copy;
use crate::{MatrixProduct, Operands, PANEL, RightOperand, Stopped, Tail, WEIGHT_BLOCK};

/// The most rows for which the right matrix is read where it lies, if its rows are dense.
const MAX_ROWS_IN_PLACE: usize = 2 * WEIGHT_BLOCK;

/// The longest sums in one go. Where a panel is read in parts, because no row of a tile is as wide,
/// all of its block stays in the first cache.
#[inline(always)]
const fn k_block<S: Simd>() -> usize {
    if S::TILE_VECTORS * S::LANES < PANEL { K_BLOCK_IN_PARTS } else { K_BLOCK }
}

/// A block of a panel has 24 kB.
const K_BLOCK_IN_PARTS: usize = 128;

/// Products and their output.
pub(crate) struct ProductKernel<'a, 'b> {
    pub(crate) description: &'a MatrixProduct,
    pub(crate) tail: &'a Tail,
    pub(crate) operands: Operands<'a>,
    pub(crate) output: &'a mut [f32],
    pub(crate) progress: &'a mut Progress<'b>,
}

impl Kernel for ProductKernel<'_, '_> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Result<(), Stopped> {
        let mut scratch = Scratch::take();
        let result = self.batches(simd, scratch.parts());
        scratch.put_back();
        result
    }
}

/// A matrix in a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) values: &'a [f32],
    /// The distances between neighbours in a column and in a row.
    pub(crate) strides: [usize; 2],
}

/// The right matrix.
#[derive(Clone, Copy)]
enum Right<'a> {
    Packed(&'a [f32]),
    Strided(Matrix<'a>),
}

impl ProductKernel<'_, '_> {
    #[inline(always)]
    fn batches<S: Simd>(&mut self, simd: S, mut scratch: Parts<'_>) -> Result<(), Stopped> {
        let strides = |strides: [u32; 4]| strides.map(|stride| stride as usize);
        let left = strides(self.description.left);
        let [first, second, row] = self.description.output.map(|stride| stride as usize);
        for b0 in 0..self.description.batch[0] as usize {
            for b1 in 0..self.description.batch[1] as usize {
                let matrix = Matrix {
                    values: &self.operands.first[b0 * left[0] + b1 * left[1]..],
                    strides: [left[2], left[3]],
                };
                let right = match self.description.right {
                    RightOperand::Packed => Right::Packed(self.operands.second),
                    RightOperand::Strided(right) => {
                        let right = strides(right);
                        Right::Strided(Matrix {
                            values: &self.operands.second[b0 * right[0] + b1 * right[1]..],
                            strides: [right[2], right[3]],
                        })
                    }
                };
                let place = [b0 * first + b1 * second, row];
                self.product(simd, (matrix, right), place, &mut scratch)?;
            }
        }
        Ok(())
    }

    /// One product, to the given offset and with the given distance between rows.
    #[inline(always)]
    fn product<S: Simd>(
        &mut self,
        simd: S,
        (left, right): (Matrix<'_>, Right<'_>),
        place: [usize; 2],
        scratch: &mut Parts<'_>,
    ) -> Result<(), Stopped> {
        let [m, n, k] = self.description.size.map(|size| size as usize);
        let (row_step, step) = (block_size(m, M_BLOCK), block_size(k, k_block::<S>()));
        let bias = self.operands.bias;
        let ending = Ending {
            scale: self.description.scale,
            bias: if bias.is_empty() { Bias::None } else { Bias::Columns(bias) },
            residual: self.operands.residual,
            tail: *self.tail,
        };
        for row in (0..m).step_by(row_step) {
            let rows = (m - row).min(row_step);
            for from in (0..k).step_by(step) {
                let length = (k - from).min(step);
                self.progress.spend(4 * rows * length)?;
                pack_left(simd, left, [row, from], [rows, length], scratch.plane);
                for column in (0..n).step_by(PANEL) {
                    let columns = (n - column).min(PANEL);
                    let (right, right_stride) = match right {
                        Right::Packed(values) => {
                            let panel = column * k + from * PANEL;
                            (&values[panel..][..length * PANEL], PANEL)
                        }
                        Right::Strided(matrix) => {
                            let start = from * matrix.strides[0] + column * matrix.strides[1];
                            let matrix = Matrix { values: &matrix.values[start..], ..matrix };
                            if rows <= MAX_ROWS_IN_PLACE
                                && matrix.strides[1] == 1
                                && columns.is_multiple_of(S::LANES)
                            {
                                (matrix.values, matrix.strides[0])
                            } else {
                                self.progress.spend(4 * length * PANEL)?;
                                pack_right(simd, matrix, [length, columns], scratch.right);
                                (&*scratch.right, PANEL)
                            }
                        }
                    };
                    let panel = Panel {
                        factors: Factors {
                            k: length,
                            left: scratch.plane,
                            left_block: length * WEIGHT_BLOCK,
                            right,
                            rows: Stride(right_stride),
                        },
                        output: self.output,
                        offset: place[0] + row * place[1] + column,
                        output_stride: place[1],
                        size: [rows, columns],
                        first: [row, column],
                        resume: from > 0,
                        ending: (from + length == k).then_some(ending),
                        progress: &mut *self.progress,
                    };
                    simd.call(panel)?;
                }
            }
        }
        Ok(())
    }
}

/// Pack rows of the left matrix in blocks `[k][WEIGHT_BLOCK]`; the rows that fill up the last block
/// are zeros.
#[inline(always)]
pub(crate) fn pack_left<S: Simd>(
    simd: S,
    matrix: Matrix<'_>,
    start: [usize; 2],
    [rows, length]: [usize; 2],
    packed: &mut [f32],
) {
    let [row_stride, stride] = matrix.strides;
    let blocks = packed.chunks_exact_mut(length * WEIGHT_BLOCK);
    for (block, packed) in blocks.take(rows.div_ceil(WEIGHT_BLOCK)).enumerate() {
        let first = block * WEIGHT_BLOCK;
        let rows = (rows - first).min(WEIGHT_BLOCK);
        let offset = (start[0] + first) * row_stride + start[1] * stride;
        let values = &matrix.values[offset..];
        if row_stride == 1 {
            for (position, packed) in packed.chunks_exact_mut(WEIGHT_BLOCK).enumerate() {
                let (packed, rest) = packed.split_at_mut(rows);
                copy(simd, &values[position * stride..][..rows], packed);
                rest.fill(0.0);
            }
            continue;
        }
        let mut done = 0;
        if rows < WEIGHT_BLOCK {
            packed.fill(0.0);
        } else if stride == 1 {
            while done + 8 <= length {
                let packed = &mut packed[done * WEIGHT_BLOCK..];
                transpose(simd, (&values[done..], row_stride), (packed, WEIGHT_BLOCK));
                done += 8;
            }
        }
        for row in 0..rows {
            let values = values[row * row_stride..].iter().step_by(stride.max(1)).skip(done);
            let packed = packed[row..].iter_mut().step_by(WEIGHT_BLOCK).skip(done);
            if stride == 0 {
                packed.for_each(|packed| *packed = matrix.values[offset + row * row_stride]);
            } else {
                packed.zip(values).for_each(|(packed, value)| *packed = *value);
            }
        }
    }
}

/// Pack a block of a panel of the right matrix.
#[inline(always)]
fn pack_right<S: Simd>(
    simd: S,
    matrix: Matrix<'_>,
    [length, columns]: [usize; 2],
    packed: &mut [f32],
) {
    let [row_stride, stride] = matrix.strides;
    let rows = packed.chunks_exact_mut(PANEL).take(length);
    if stride == 1 {
        for (row, packed) in rows.enumerate() {
            copy(simd, &matrix.values[row * row_stride..][..columns], &mut packed[..columns]);
        }
        return;
    }
    let mut column = 0;
    while column < columns {
        let values = &matrix.values[column * stride..];
        let mut done = 0;
        let block = row_stride == 1 && column + 8 <= columns;
        while block && done + 8 <= length {
            let packed = &mut packed[done * PANEL + column..];
            transpose(simd, (&values[done..], stride), (packed, PANEL));
            done += 8;
        }
        let width = if block { 8 } else { 1 };
        for index in 0..width {
            let packed = packed[column + index..].iter_mut().step_by(PANEL).take(length);
            for (row, packed) in packed.enumerate().skip(done) {
                *packed = values[row * row_stride + index * stride];
            }
        }
        column += width;
    }
}
