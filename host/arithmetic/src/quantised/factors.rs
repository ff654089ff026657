//! The factors of sums of products of u8 with i8.

use crate::{K_GROUP, WEIGHT_BLOCK};

/// The bytes of the left factors of a block for a group of `k`.
pub(crate) const LEFT_GROUP: usize = WEIGHT_BLOCK * K_GROUP;

/// The operands of a tile, or of all tiles of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    /// The groups of the sums, at least 1.
    pub(crate) groups: usize,
    /// The left factors, blocks of `[groups][WEIGHT_BLOCK][K_GROUP]`, from the first row on. They
    /// have all rows of the last block.
    pub(crate) left: &'a [u8],
    /// The distance between the blocks of left factors.
    pub(crate) left_block: usize,
    /// The right factors, rows of whole vectors of groups.
    pub(crate) right: &'a [u8],
    /// The distance between the rows of right factors.
    pub(crate) right_stride: usize,
}
