//! Vectors of integers as arrays, on any processor and under Miri.

use super::{IntegerKernel, IntegerSimd};
use crate::K_GROUP;
use crate::simd::scalar::Scalar;
use crate::simd::{Kernel, Simd};

/// A kernel over integers as one over numbers, of backends whose instructions are the same.
pub(crate) struct AsKernel<I, K>(pub(crate) I, pub(crate) K);

impl<I: IntegerSimd, K: IntegerKernel> Kernel for AsKernel<I, K> {
    type Output = K::Output;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> K::Output {
        self.1.run(self.0)
    }
}

#[expect(unsafe_code, reason = "the trait reads and writes through pointers")]
impl<const N: usize> IntegerSimd for Scalar<N> {
    type Floats = Self;
    type Integers = [i32; N];
    type Sums = [i32; N];
    type Factors = [[i16; K_GROUP]; N];
    const TILE_VECTORS: usize = 2;
    const TILE_ROWS: [usize; 3] = [4, 4, 4];

    #[inline(always)]
    fn floats(self) -> Self {
        self
    }

    #[inline(always)]
    fn call<K: IntegerKernel>(self, kernel: K) -> K::Output {
        Simd::call(self, AsKernel(self, kernel))
    }

    #[inline(always)]
    fn no_sums(self) -> [i32; N] {
        [0; N]
    }

    #[inline(always)]
    fn add_products(
        self,
        unsigned: [[i16; K_GROUP]; N],
        signed: [[i16; K_GROUP]; N],
        mut sums: [i32; N],
    ) -> [i32; N] {
        for (sum, (left, right)) in sums.iter_mut().zip(unsigned.iter().zip(&signed)) {
            for (left, right) in left.iter().zip(right) {
                *sum += i32::from(*left) * i32::from(*right);
            }
        }
        sums
    }

    #[inline(always)]
    fn total(self, sums: [i32; N]) -> [i32; N] {
        sums
    }

    #[inline(always)]
    unsafe fn load_unsigned(self, from: *const u8) -> [[i16; K_GROUP]; N] {
        // SAFETY: the caller has the groups there, and bytes have no alignment.
        unsafe { from.cast::<[[u8; K_GROUP]; N]>().read() }.map(|group| group.map(i16::from))
    }

    #[inline(always)]
    unsafe fn load_signed(self, from: *const u8) -> [[i16; K_GROUP]; N] {
        // SAFETY: the caller has the groups there, and bytes have no alignment.
        unsafe { from.cast::<[[i8; K_GROUP]; N]>().read() }.map(|group| group.map(i16::from))
    }

    #[inline(always)]
    fn splat_unsigned(self, group: [u8; K_GROUP]) -> [[i16; K_GROUP]; N] {
        [group.map(i16::from); N]
    }

    #[inline(always)]
    fn splat_signed(self, group: [u8; K_GROUP]) -> [[i16; K_GROUP]; N] {
        [group.map(|value| value.cast_signed().into()); N]
    }

    #[inline(always)]
    unsafe fn load_integers(self, from: *const i32) -> [i32; N] {
        // SAFETY: the caller has N numbers there; an array of them is aligned as they are.
        unsafe { from.cast::<[i32; N]>().read() }
    }

    #[inline(always)]
    unsafe fn store_integers(self, to: *mut i32, vector: [i32; N]) {
        // SAFETY: the caller has N numbers there; an array of them is aligned as they are.
        unsafe { to.cast::<[i32; N]>().write(vector) }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> [i32; N] {
        // SAFETY: the caller has N bytes there.
        unsafe { from.cast::<[u8; N]>().read() }.map(i32::from)
    }

    #[inline(always)]
    fn group(self, [mut first, second, third, fourth]: [[i32; N]; K_GROUP]) -> [i32; N] {
        for (lane, group) in first.iter_mut().enumerate() {
            *group |= second[lane] << 8 | third[lane] << 16 | fourth[lane] << 24;
        }
        first
    }

    #[inline(always)]
    unsafe fn store_groups(self, to: *mut u8, vector: [i32; N]) {
        let groups = vector.map(i32::to_le_bytes);
        // SAFETY: the caller has N groups there, and bytes have no alignment.
        unsafe { to.cast::<[[u8; K_GROUP]; N]>().write(groups) }
    }

    #[inline(always)]
    fn and(self, mut left: [i32; N], right: [i32; N]) -> [i32; N] {
        for (left, right) in left.iter_mut().zip(right) {
            *left &= right;
        }
        left
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a u8")]
    unsafe fn store_bytes(self, to: *mut u8, vector: [i32; N]) {
        // SAFETY: the caller has N bytes there.
        unsafe { to.cast::<[u8; N]>().write(vector.map(|value| value as u8)) }
    }

    #[inline(always)]
    fn splat_integer(self, value: i32) -> [i32; N] {
        [value; N]
    }

    #[inline(always)]
    fn add_integers(self, mut left: [i32; N], right: [i32; N]) -> [i32; N] {
        for (left, right) in left.iter_mut().zip(right) {
            *left = left.wrapping_add(right);
        }
        left
    }

    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "it is rounded")]
    fn to_numbers(self, vector: [i32; N]) -> [f32; N] {
        vector.map(|value| value as f32)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "it is a small integer")]
    fn round(self, vector: [f32; N]) -> [i32; N] {
        vector.map(|value| value.round_ties_even() as i32)
    }
}
