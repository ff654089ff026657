//! Products of u8 matrices with packed i8 ones.

use super::QuantisedProduct;
use super::factors::{Factors, LEFT_GROUP};
use super::simd::{IntegerKernel, IntegerSimd};
use super::target::{Scales, Target};
use super::tile::Panel;
use crate::progress::Progress;
use crate::scratch::{BYTES, M_BLOCK, Parts8, Scratch};
use crate::{K_GROUP, PANEL, Stopped, WEIGHT_BLOCK};

/// A product and its output.
pub(crate) struct ProductKernel<'a, 'b, T: Target> {
    pub(crate) description: &'a QuantisedProduct,
    pub(crate) left: &'a [u8],
    pub(crate) right: &'a [u8],
    pub(crate) scales: Scales<'a>,
    pub(crate) target: T,
    pub(crate) output: &'a mut [T::Element],
    pub(crate) progress: &'a mut Progress<'b>,
}

impl<T: Target> IntegerKernel for ProductKernel<'_, '_, T> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<I: IntegerSimd>(mut self, simd: I) -> Result<(), Stopped> {
        let mut scratch = Scratch::take();
        let result = self.rows(simd, scratch.parts8());
        scratch.put_back();
        result
    }
}

impl<T: Target> ProductKernel<'_, '_, T> {
    #[inline(always)]
    fn rows<I: IntegerSimd>(&mut self, simd: I, mut scratch: Parts8<'_>) -> Result<(), Stopped> {
        let [m, n, k] = self.description.size.map(|size| size as usize);
        let groups = k.div_ceil(K_GROUP);
        // As many rows as there is memory for; if there is not enough for a block, the sums are
        // computed in parts.
        let blocks = BYTES / (groups * LEFT_GROUP);
        let (row_step, step) = match blocks {
            0 => (M_BLOCK, BYTES / (M_BLOCK * K_GROUP)),
            _ => ((blocks * WEIGHT_BLOCK).min(M_BLOCK), groups),
        };
        for row in (0..m).step_by(row_step) {
            let rows = [row, (m - row).min(row_step)];
            if blocks > 0 {
                self.pack(rows, [0, groups], &mut scratch)?;
            }
            for column in (0..n).step_by(PANEL) {
                let columns = [column, (n - column).min(PANEL)];
                for from in (0..groups).step_by(step) {
                    let block = [from, (groups - from).min(step)];
                    if blocks == 0 {
                        self.pack(rows, block, &mut scratch)?;
                    }
                    self.panel(simd, [rows, columns, block], &mut scratch)?;
                }
            }
        }
        Ok(())
    }

    /// Some groups of the sums of some rows and columns.
    #[inline(always)]
    fn panel<I: IntegerSimd>(
        &mut self,
        simd: I,
        [rows, columns, block]: [[usize; 2]; 3],
        scratch: &mut Parts8<'_>,
    ) -> Result<(), Stopped> {
        let [_, n, k] = self.description.size.map(|size| size as usize);
        let groups = k.div_ceil(K_GROUP);
        let right = (columns[0] / PANEL * groups + block[0]) * PANEL * K_GROUP;
        let panel = Panel::<_, true> {
            factors: Factors {
                groups: block[1],
                left: scratch.bytes,
                left_block: block[1] * LEFT_GROUP,
                right: &self.right[right..],
                right_stride: PANEL * K_GROUP,
            },
            target: self.target,
            scales: self.scales.from(columns[0]),
            output: &mut self.output[rows[0] * n + columns[0]..],
            output_stride: n,
            size: [rows[1], columns[1]],
            sums: scratch.sums,
            resume_and_finish: [block[0] > 0, block[0] + block[1] == groups],
            progress: &mut *self.progress,
        };
        simd.call(panel)
    }

    /// Pack some groups of some rows of the left matrix in blocks
    /// `[groups][WEIGHT_BLOCK][K_GROUP]`; what fills up the last block and the last group is zeros.
    #[inline(always)]
    fn pack(
        &mut self,
        rows: [usize; 2],
        groups: [usize; 2],
        scratch: &mut Parts8<'_>,
    ) -> Result<(), Stopped> {
        let k = self.description.size[2] as usize;
        self.progress.spend(4 * rows[1] * groups[1])?;
        let blocks = scratch.bytes.chunks_exact_mut(groups[1] * LEFT_GROUP);
        for (block, packed) in blocks.take(rows[1].div_ceil(WEIGHT_BLOCK)).enumerate() {
            let first = block * WEIGHT_BLOCK;
            let packed = packed.as_chunks_mut::<K_GROUP>().0;
            if rows[1] - first < WEIGHT_BLOCK {
                packed.fill([0; K_GROUP]);
            }
            for row in 0..(rows[1] - first).min(WEIGHT_BLOCK) {
                let values = &self.left[(rows[0] + first + row) * k..][..k];
                let values = &values[groups[0] * K_GROUP..];
                let values = &values[..values.len().min(groups[1] * K_GROUP)];
                let (whole, rest) = values.as_chunks::<K_GROUP>();
                for (to, from) in packed[row..].iter_mut().step_by(WEIGHT_BLOCK).zip(whole) {
                    *to = *from;
                }
                if !rest.is_empty() {
                    let mut group = [0; K_GROUP];
                    group[..rest.len()].copy_from_slice(rest);
                    packed[whole.len() * WEIGHT_BLOCK + row] = group;
                }
            }
        }
        Ok(())
    }
}
