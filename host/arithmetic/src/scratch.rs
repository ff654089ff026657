//! Memory for packed factors and padded planes: of fixed size, one for each thread.

use std::cell::Cell;
use std::slice;

use crate::PANEL;
use crate::tile::K_BLOCK;

/// The rows of left factors that are packed at a time.
pub(crate) const M_BLOCK: usize = 128;

/// The elements for right factors: a block of a panel.
const RIGHT: usize = K_BLOCK * PANEL;

/// The elements for left factors or for padded rows of a plane.
pub(crate) const PLANE: usize = K_BLOCK * M_BLOCK;

/// So that both parts begin at a line of the cache, in elements.
const LINE: usize = 16;

/// Memory for intermediate values, 132 kB. The values are those of earlier uses.
pub(crate) struct Scratch(Box<[f32]>);

thread_local! {
    static SCRATCH: Cell<Option<Scratch>> = const { Cell::new(None) };
}

/// The parts of [`Scratch`].
pub(crate) struct Parts<'a> {
    /// A block of a panel of right factors, `[K_BLOCK][PANEL]`.
    pub(crate) right: &'a mut [f32],
    /// Left factors, or padded rows of a plane.
    pub(crate) plane: &'a mut [f32],
}

/// The columns of [`Parts8::sums`].
pub(crate) const SUM_COLUMNS: usize = 64;

/// The elements for sums of products of integers.
const SUMS: usize = M_BLOCK * SUM_COLUMNS;

/// The bytes for factors of products of integers.
pub(crate) const BYTES: usize = (RIGHT + PLANE - SUMS) * size_of::<f32>();

/// The parts of [`Scratch`] for operations on 8-bit tensors.
pub(crate) struct Parts8<'a> {
    /// Sums of products, `[M_BLOCK][SUM_COLUMNS]`.
    pub(crate) sums: &'a mut [i32],
    /// Factors, or padded rows of a plane.
    pub(crate) bytes: &'a mut [u8],
}

impl Scratch {
    /// Take the thread's memory. [`Scratch::put_back`] keeps it for the next use.
    pub(crate) fn take() -> Self {
        let fresh = || Self(vec![0.0; LINE + RIGHT + PLANE].into_boxed_slice());
        SCRATCH.take().unwrap_or_else(fresh)
    }

    pub(crate) fn put_back(self) {
        SCRATCH.set(Some(self));
    }

    pub(crate) fn parts(&mut self) -> Parts<'_> {
        let unaligned = self.0.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let (right, plane) = self.0[unaligned..].split_at_mut(RIGHT);
        Parts { right, plane: &mut plane[..PLANE] }
    }

    pub(crate) fn parts8(&mut self) -> Parts8<'_> {
        let unaligned = self.0.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let (sums, bytes) = self.0[unaligned..][..RIGHT + PLANE].split_at_mut(SUMS);
        // SAFETY: the slices are borrowed exclusively, for as long as their elements; i32 have the
        // size and alignment of f32, four bytes have the size of one, and all have any bits.
        #[expect(unsafe_code, reason = "the memory has values of several types")]
        unsafe {
            Parts8 {
                sums: slice::from_raw_parts_mut(sums.as_mut_ptr().cast(), SUMS),
                bytes: slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), BYTES),
            }
        }
    }
}
