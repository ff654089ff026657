//! NEON: vectors of four integers, without the instructions for dot products, which not all
//! processors have.

use std::arch::aarch64::*;

use super::scalar::AsKernel;
use super::{IntegerKernel, IntegerSimd};
use crate::K_GROUP;
use crate::simd::Simd;
use crate::simd::neon::Neon;

/// The even and the odd bytes of groups, as i16.
type Halves = [int16x8_t; 2];

// In each function a value of Neon proves that the processor has the instructions.
#[expect(unsafe_code, reason = "instructions that not all processors have, and pointers")]
impl IntegerSimd for Neon {
    type Floats = Self;
    type Integers = int32x4_t;
    /// Two sums for each lane: of the first two lanes, and of the last two.
    type Sums = [int32x4_t; 2];
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
    fn no_sums(self) -> [int32x4_t; 2] {
        // SAFETY: the instructions are there.
        unsafe { [vdupq_n_s32(0); 2] }
    }

    #[inline(always)]
    fn add_products(
        self,
        unsigned: Halves,
        signed: Halves,
        sums: [int32x4_t; 2],
    ) -> [int32x4_t; 2] {
        let [mut first, mut last] = sums;
        for (unsigned, signed) in unsigned.into_iter().zip(signed) {
            // SAFETY: the instructions are there.
            unsafe {
                first = vmlal_s16(first, vget_low_s16(unsigned), vget_low_s16(signed));
                last = vmlal_high_s16(last, unsigned, signed);
            }
        }
        [first, last]
    }

    #[inline(always)]
    fn total(self, sums: [int32x4_t; 2]) -> int32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vpaddq_s32(sums[0], sums[1]) }
    }

    #[inline(always)]
    unsafe fn load_unsigned(self, from: *const u8) -> Halves {
        // SAFETY: the instructions are there; the caller has a vector's bytes there.
        unsafe { unsigned(vld1q_u8(from)) }
    }

    #[inline(always)]
    unsafe fn load_signed(self, from: *const u8) -> Halves {
        // SAFETY: the instructions are there; the caller has a vector's bytes there.
        unsafe { signed(vld1q_u8(from)) }
    }

    #[inline(always)]
    fn splat_unsigned(self, group: [u8; K_GROUP]) -> Halves {
        // SAFETY: the instructions are there.
        unsafe { unsigned(vreinterpretq_u8_u32(vdupq_n_u32(u32::from_le_bytes(group)))) }
    }

    #[inline(always)]
    fn splat_signed(self, group: [u8; K_GROUP]) -> Halves {
        // SAFETY: the instructions are there.
        unsafe { signed(vreinterpretq_u8_u32(vdupq_n_u32(u32::from_le_bytes(group)))) }
    }

    #[inline(always)]
    unsafe fn load_windows<const STRIDE: usize>(self, from: *const u8) -> Halves {
        const NEIGHBOURS: [u8; 16] = [0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6];
        const EVEN: [u8; 16] = [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7, 8, 9];
        let windows = match STRIDE {
            1 => NEIGHBOURS,
            2 => EVEN,
            // SAFETY: the caller has the bytes.
            _ => return unsafe { self.load_spread_windows(from, STRIDE, 1) },
        };
        // SAFETY: the instructions are there; the caller has 64 bytes there.
        unsafe { unsigned(vqtbl1q_u8(vld1q_u8(from), vld1q_u8(windows.as_ptr()))) }
    }

    #[inline(always)]
    unsafe fn load_integers(self, from: *const i32) -> int32x4_t {
        // SAFETY: the caller has four numbers there.
        unsafe { vld1q_s32(from) }
    }

    #[inline(always)]
    unsafe fn store_integers(self, to: *mut i32, vector: int32x4_t) {
        // SAFETY: the caller has four numbers there.
        unsafe { vst1q_s32(to, vector) }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> int32x4_t {
        // SAFETY: the instructions are there; the caller has four bytes there, and an array of
        // bytes has no alignment.
        unsafe {
            let bytes = vdup_n_u32(u32::from_le_bytes(from.cast::<[u8; 4]>().read()));
            let pairs = vmovl_u8(vreinterpret_u8_u32(bytes));
            vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(pairs)))
        }
    }

    #[inline(always)]
    fn group(self, bytes: [int32x4_t; K_GROUP]) -> int32x4_t {
        // SAFETY: the instructions are there.
        unsafe {
            let low = vorrq_s32(bytes[0], vshlq_n_s32::<8>(bytes[1]));
            let high = vorrq_s32(bytes[2], vshlq_n_s32::<8>(bytes[3]));
            vorrq_s32(low, vshlq_n_s32::<16>(high))
        }
    }

    #[inline(always)]
    unsafe fn store_groups(self, to: *mut u8, vector: int32x4_t) {
        // SAFETY: the caller has sixteen bytes there.
        unsafe { vst1q_u8(to, vreinterpretq_u8_s32(vector)) }
    }

    #[inline(always)]
    fn and(self, left: int32x4_t, right: int32x4_t) -> int32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vandq_s32(left, right) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, vector: int32x4_t) {
        // SAFETY: the instructions are there; the caller has four bytes there, and an array of
        // bytes has no alignment.
        unsafe {
            let pairs = vqmovun_s32(vector);
            let bytes = vqmovn_u16(vcombine_u16(pairs, pairs));
            let bytes = vget_lane_u32::<0>(vreinterpret_u32_u8(bytes));
            to.cast::<[u8; 4]>().write(bytes.to_le_bytes());
        }
    }

    #[inline(always)]
    fn splat_integer(self, value: i32) -> int32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vdupq_n_s32(value) }
    }

    #[inline(always)]
    fn add_integers(self, left: int32x4_t, right: int32x4_t) -> int32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vaddq_s32(left, right) }
    }

    #[inline(always)]
    fn to_numbers(self, vector: int32x4_t) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vcvtq_f32_s32(vector) }
    }

    #[inline(always)]
    fn round(self, vector: float32x4_t) -> int32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vcvtnq_s32_f32(vector) }
    }
}

/// The halves of groups of u8.
#[inline]
#[target_feature(enable = "neon")]
fn unsigned(groups: uint8x16_t) -> Halves {
    let pairs = vreinterpretq_u16_u8(groups);
    [
        vreinterpretq_s16_u16(vandq_u16(pairs, vdupq_n_u16(0xff))),
        vreinterpretq_s16_u16(vshrq_n_u16::<8>(pairs)),
    ]
}

/// The halves of groups of i8.
#[inline]
#[target_feature(enable = "neon")]
fn signed(groups: uint8x16_t) -> Halves {
    let pairs = vreinterpretq_s16_u8(groups);
    [vshrq_n_s16::<8>(vshlq_n_s16::<8>(pairs)), vshrq_n_s16::<8>(pairs)]
}
