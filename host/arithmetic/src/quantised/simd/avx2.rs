//! AVX2: vectors of eight integers. Pairs of products are added in i32, because the instruction for
//! products of u8 with i8 saturates at 16 bits.

use std::arch::x86_64::*;

use super::{IntegerKernel, IntegerSimd};
use crate::K_GROUP;
use crate::simd::Simd;
use crate::simd::avx2::Avx2;

/// The even and the odd bytes of groups, as i16.
type Halves = [__m256i; 2];

// In each function a value of Avx2 proves that the processor has the instructions.
#[expect(unsafe_code, reason = "instructions that not all processors have, and pointers")]
impl IntegerSimd for Avx2 {
    type Floats = Self;
    type Integers = __m256i;
    type Sums = __m256i;
    type Factors = Halves;
    const TILE_VECTORS: usize = 2;
    const TILE_ROWS: [usize; 3] = [8, 4, 4];

    #[inline(always)]
    fn floats(self) -> Self {
        self
    }

    #[inline(always)]
    fn call<K: IntegerKernel>(self, kernel: K) -> K::Output {
        Simd::call(self, super::scalar::AsKernel(self, kernel))
    }

    #[inline(always)]
    fn no_sums(self) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn add_products(self, unsigned: Halves, signed: Halves, sums: __m256i) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe {
            let even = _mm256_madd_epi16(unsigned[0], signed[0]);
            let odd = _mm256_madd_epi16(unsigned[1], signed[1]);
            _mm256_add_epi32(sums, _mm256_add_epi32(even, odd))
        }
    }

    #[inline(always)]
    fn total(self, sums: __m256i) -> __m256i {
        sums
    }

    #[inline(always)]
    unsafe fn load_unsigned(self, from: *const u8) -> Halves {
        // SAFETY: the processor has the instructions; the caller has a vector's bytes there.
        unsafe { unsigned(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_signed(self, from: *const u8) -> Halves {
        // SAFETY: the processor has the instructions; the caller has a vector's bytes there.
        unsafe { signed(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    fn splat_unsigned(self, group: [u8; K_GROUP]) -> Halves {
        // SAFETY: the processor has the instructions.
        unsafe { unsigned(_mm256_set1_epi32(i32::from_le_bytes(group))) }
    }

    #[inline(always)]
    fn splat_signed(self, group: [u8; K_GROUP]) -> Halves {
        // SAFETY: the processor has the instructions.
        unsafe { signed(_mm256_set1_epi32(i32::from_le_bytes(group))) }
    }

    #[inline(always)]
    unsafe fn load_windows<const STRIDE: usize>(self, from: *const u8) -> Halves {
        // SAFETY: the processor has the instructions; the caller has 64 bytes there.
        unsafe {
            let half = |offset: usize| _mm_loadu_si128(from.add(offset).cast());
            let windows = match STRIDE {
                1 => _mm_setr_epi8(0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6),
                2 => _mm_setr_epi8(0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7, 8, 9),
                _ => return self.load_spread_windows(from, STRIDE, 1),
            };
            let bytes = _mm256_set_m128i(half(4 * STRIDE), half(0));
            unsigned(_mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(windows)))
        }
    }

    #[inline(always)]
    unsafe fn load_integers(self, from: *const i32) -> __m256i {
        // SAFETY: the processor has the instructions; the caller has a vector's numbers there.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_integers(self, to: *mut i32, vector: __m256i) {
        // SAFETY: the processor has the instructions; the caller has a vector's numbers there.
        unsafe { _mm256_storeu_si256(to.cast(), vector) }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> __m256i {
        // SAFETY: the processor has the instructions; the caller has eight bytes there.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_even_bytes(self, from: *const u8) -> __m256i {
        // SAFETY: the processor has the instructions; the caller has sixteen bytes there.
        unsafe {
            let pairs = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_and_si256(pairs, _mm256_set1_epi32(0xff))
        }
    }

    #[inline(always)]
    fn group(self, bytes: [__m256i; K_GROUP]) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe {
            let low = _mm256_or_si256(bytes[0], _mm256_slli_epi32::<8>(bytes[1]));
            let high = _mm256_or_si256(bytes[2], _mm256_slli_epi32::<8>(bytes[3]));
            _mm256_or_si256(low, _mm256_slli_epi32::<16>(high))
        }
    }

    #[inline(always)]
    unsafe fn store_groups(self, to: *mut u8, vector: __m256i) {
        // SAFETY: the processor has the instructions; the caller has a vector's bytes there.
        unsafe { _mm256_storeu_si256(to.cast(), vector) }
    }

    #[inline(always)]
    fn and(self, left: __m256i, right: __m256i) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_and_si256(left, right) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, vector: __m256i) {
        // SAFETY: the processor has the instructions; the caller has eight bytes there.
        unsafe {
            let (low, high) =
                (_mm256_castsi256_si128(vector), _mm256_extracti128_si256::<1>(vector));
            let pairs = _mm_packus_epi32(low, high);
            _mm_storel_epi64(to.cast(), _mm_packus_epi16(pairs, pairs));
        }
    }

    #[inline(always)]
    fn splat_integer(self, value: i32) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    fn add_integers(self, left: __m256i, right: __m256i) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_add_epi32(left, right) }
    }

    #[inline(always)]
    fn to_numbers(self, vector: __m256i) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_cvtepi32_ps(vector) }
    }

    #[inline(always)]
    fn round(self, vector: __m256) -> __m256i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_cvtps_epi32(vector) }
    }
}

/// The halves of groups of u8.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn unsigned(groups: __m256i) -> Halves {
    [_mm256_and_si256(groups, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(groups)]
}

/// The halves of groups of i8.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn signed(groups: __m256i) -> Halves {
    [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(groups)), _mm256_srai_epi16::<8>(groups)]
}
