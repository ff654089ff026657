//! WebAssembly's 128-bit vectors: four integers.

use std::arch::wasm32::*;

use super::scalar::AsKernel;
use super::{IntegerKernel, IntegerSimd};
use crate::K_GROUP;
use crate::simd::Simd;
use crate::simd::simd128::Simd128;

/// The even and the odd bytes of groups, as i16.
type Halves = [v128; 2];

#[expect(unsafe_code, reason = "the trait reads and writes through pointers")]
impl IntegerSimd for Simd128 {
    type Floats = Self;
    type Integers = v128;
    type Sums = v128;
    type Factors = Halves;
    const TILE_VECTORS: usize = 2;
    const TILE_ROWS: [usize; 3] = [8, 4, 4];

    #[inline(always)]
    fn floats(self) -> Self {
        self
    }

    #[inline(always)]
    fn call<K: IntegerKernel>(self, kernel: K) -> K::Output {
        Simd::call(self, AsKernel(self, kernel))
    }

    #[inline(always)]
    fn no_sums(self) -> v128 {
        i32x4_splat(0)
    }

    #[inline(always)]
    fn add_products(self, unsigned: Halves, signed: Halves, sums: v128) -> v128 {
        let even = i32x4_dot_i16x8(unsigned[0], signed[0]);
        let odd = i32x4_dot_i16x8(unsigned[1], signed[1]);
        i32x4_add(sums, i32x4_add(even, odd))
    }

    #[inline(always)]
    fn total(self, sums: v128) -> v128 {
        sums
    }

    #[inline(always)]
    unsafe fn load_unsigned(self, from: *const u8) -> Halves {
        // SAFETY: the caller has sixteen bytes there.
        unsigned(unsafe { v128_load(from.cast()) })
    }

    #[inline(always)]
    unsafe fn load_signed(self, from: *const u8) -> Halves {
        // SAFETY: the caller has sixteen bytes there.
        signed(unsafe { v128_load(from.cast()) })
    }

    #[inline(always)]
    fn splat_unsigned(self, group: [u8; K_GROUP]) -> Halves {
        unsigned(i32x4_splat(i32::from_le_bytes(group)))
    }

    #[inline(always)]
    fn splat_signed(self, group: [u8; K_GROUP]) -> Halves {
        signed(i32x4_splat(i32::from_le_bytes(group)))
    }

    #[inline(always)]
    unsafe fn load_windows<const STRIDE: usize>(self, from: *const u8) -> Halves {
        // SAFETY: the caller has 64 bytes there.
        unsafe {
            let bytes = || v128_load(from.cast());
            match STRIDE {
                1 => {
                    let bytes = bytes();
                    unsigned(i8x16_shuffle::<0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6>(
                        bytes, bytes,
                    ))
                }
                2 => {
                    let bytes = bytes();
                    unsigned(i8x16_shuffle::<0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7, 8, 9>(
                        bytes, bytes,
                    ))
                }
                _ => self.load_spread_windows(from, STRIDE, 1),
            }
        }
    }

    #[inline(always)]
    unsafe fn load_integers(self, from: *const i32) -> v128 {
        // SAFETY: the caller has four numbers there.
        unsafe { v128_load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_integers(self, to: *mut i32, vector: v128) {
        // SAFETY: the caller has four numbers there.
        unsafe { v128_store(to.cast(), vector) }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> v128 {
        // SAFETY: the caller has four bytes there.
        let bytes = unsafe { v128_load32_zero(from.cast()) };
        u32x4_extend_low_u16x8(u16x8_extend_low_u8x16(bytes))
    }

    #[inline(always)]
    fn group(self, bytes: [v128; K_GROUP]) -> v128 {
        let low = v128_or(bytes[0], i32x4_shl(bytes[1], 8));
        let high = v128_or(bytes[2], i32x4_shl(bytes[3], 8));
        v128_or(low, i32x4_shl(high, 16))
    }

    #[inline(always)]
    unsafe fn store_groups(self, to: *mut u8, vector: v128) {
        // SAFETY: the caller has sixteen bytes there.
        unsafe { v128_store(to.cast(), vector) }
    }

    #[inline(always)]
    fn and(self, left: v128, right: v128) -> v128 {
        v128_and(left, right)
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, vector: v128) {
        let pairs = u16x8_narrow_i32x4(vector, vector);
        // SAFETY: the caller has four bytes there.
        unsafe { v128_store32_lane::<0>(u8x16_narrow_i16x8(pairs, pairs), to.cast()) }
    }

    #[inline(always)]
    fn splat_integer(self, value: i32) -> v128 {
        i32x4_splat(value)
    }

    #[inline(always)]
    fn add_integers(self, left: v128, right: v128) -> v128 {
        i32x4_add(left, right)
    }

    #[inline(always)]
    fn to_numbers(self, vector: v128) -> v128 {
        f32x4_convert_i32x4(vector)
    }

    #[inline(always)]
    fn round(self, vector: v128) -> v128 {
        i32x4_trunc_sat_f32x4(f32x4_nearest(vector))
    }
}

/// The halves of groups of u8.
#[inline(always)]
fn unsigned(groups: v128) -> Halves {
    [v128_and(groups, i16x8_splat(0xff)), u16x8_shr(groups, 8)]
}

/// The halves of groups of i8.
#[inline(always)]
fn signed(groups: v128) -> Halves {
    [i16x8_shr(i16x8_shl(groups, 8), 8), i16x8_shr(groups, 8)]
}
