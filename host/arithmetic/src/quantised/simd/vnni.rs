//! AVX-512 with VNNI: vectors of sixteen integers, and sums of four products in one instruction.

use std::arch::x86_64::*;

use super::{IntegerKernel, IntegerSimd};
use crate::K_GROUP;
use crate::simd::avx512::Avx512;

/// Proof that the processor has AVX-512F, BW, VL and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Vnni(Avx512);

impl Vnni {
    /// The backend, if the processor has its instructions.
    pub(crate) fn new() -> Option<Self> {
        let available = std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512vnni");
        Avx512::new().filter(|_| available).map(Self)
    }
}

/// Run a kernel with the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn with_instructions<K: IntegerKernel>(simd: Vnni, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// The mask, of which the compiler knows nothing: a store of one byte, if it is known when code is
/// generated that it is one, was seen to become a store of four.
#[inline(always)]
fn hidden(mask: __mmask16) -> __mmask16 {
    #[cfg(miri)]
    return mask;
    #[cfg(not(miri))]
    {
        let mut mask = mask;
        // SAFETY: there are no instructions.
        #[expect(unsafe_code, reason = "only assembly hides a value from the compiler")]
        unsafe {
            std::arch::asm!("/* {:x} */", inout(reg) mask, options(pure, nomem, nostack, preserves_flags));
        }
        mask
    }
}

// In each function a value of Vnni proves that the processor has the instructions.
#[expect(unsafe_code, reason = "instructions that not all processors have, and pointers")]
impl IntegerSimd for Vnni {
    type Floats = Avx512;
    type Integers = __m512i;
    type Sums = __m512i;
    type Factors = __m512i;
    const TILE_VECTORS: usize = 3;
    const TILE_ROWS: [usize; 3] = [8, 8, 8];

    #[inline(always)]
    fn floats(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn call<K: IntegerKernel>(self, kernel: K) -> K::Output {
        // SAFETY: the processor has the instructions.
        unsafe { with_instructions(self, kernel) }
    }

    #[inline(always)]
    fn no_sums(self) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn add_products(self, unsigned: __m512i, signed: __m512i, sums: __m512i) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_dpbusd_epi32(sums, unsigned, signed) }
    }

    #[inline(always)]
    fn total(self, sums: __m512i) -> __m512i {
        sums
    }

    #[inline(always)]
    unsafe fn load_unsigned(self, from: *const u8) -> __m512i {
        // SAFETY: the processor has the instructions; the caller has a vector's bytes there.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_signed(self, from: *const u8) -> __m512i {
        // SAFETY: the processor has the instructions; the caller has a vector's bytes there.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_signed_halves(self, low: *const u8, high: *const u8) -> __m512i {
        // SAFETY: the processor has the instructions; the caller has half a vector's bytes at both.
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(low.cast()));
            _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(high.cast()))
        }
    }

    #[inline(always)]
    fn splat_unsigned(self, group: [u8; K_GROUP]) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_set1_epi32(i32::from_le_bytes(group)) }
    }

    #[inline(always)]
    fn splat_signed(self, group: [u8; K_GROUP]) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_set1_epi32(i32::from_le_bytes(group)) }
    }

    #[inline(always)]
    unsafe fn load_windows<const STRIDE: usize>(self, from: *const u8) -> __m512i {
        // SAFETY: the processor has the instructions; the caller has 64 bytes there.
        unsafe {
            // Each 128 bits get the bytes of their four windows, then each window its own.
            match STRIDE {
                1 => {
                    let bytes = _mm512_castsi256_si512(_mm256_loadu_si256(from.cast()));
                    let parts = _mm512_setr_epi32(0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6);
                    let windows = _mm_setr_epi8(0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6);
                    let bytes = _mm512_permutexvar_epi32(parts, bytes);
                    _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(windows))
                }
                2 => {
                    let bytes = _mm512_loadu_si512(from.cast());
                    let parts = _mm512_setr_epi32(0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7, 8, 9);
                    let windows = _mm_setr_epi8(0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7, 8, 9);
                    let bytes = _mm512_permutexvar_epi32(parts, bytes);
                    _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(windows))
                }
                _ => self.load_spread_windows(from, STRIDE, 1),
            }
        }
    }

    #[inline(always)]
    unsafe fn load_integers(self, from: *const i32) -> __m512i {
        // SAFETY: the processor has the instructions; the caller has a vector's numbers there.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_integers(self, to: *mut i32, vector: __m512i) {
        // SAFETY: the processor has the instructions; the caller has a vector's numbers there.
        unsafe { _mm512_storeu_si512(to.cast(), vector) }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> __m512i {
        // SAFETY: the processor has the instructions; the caller has sixteen bytes there.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_even_bytes(self, from: *const u8) -> __m512i {
        // SAFETY: the processor has the instructions; the caller has 32 bytes there.
        unsafe {
            let pairs = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_and_si512(pairs, _mm512_set1_epi32(0xff))
        }
    }

    #[inline(always)]
    fn group(self, bytes: [__m512i; K_GROUP]) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe {
            let low = _mm512_or_si512(bytes[0], _mm512_slli_epi32::<8>(bytes[1]));
            let high = _mm512_or_si512(bytes[2], _mm512_slli_epi32::<8>(bytes[3]));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        }
    }

    #[inline(always)]
    unsafe fn store_groups(self, to: *mut u8, vector: __m512i) {
        // SAFETY: the processor has the instructions; the caller has a vector's bytes there.
        unsafe { _mm512_storeu_si512(to.cast(), vector) }
    }

    #[inline(always)]
    fn and(self, left: __m512i, right: __m512i) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_and_si512(left, right) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, vector: __m512i) {
        // SAFETY: the processor has the instructions; the caller has sixteen bytes there.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(vector)) }
    }

    #[inline(always)]
    unsafe fn store_first_bytes(self, to: *mut u8, count: usize, vector: __m512i) {
        let first_bytes = hidden((1 << count) - 1);
        // SAFETY: the processor has the instructions; bytes from `count` on are not written, and
        // the caller has the others.
        unsafe { _mm_mask_storeu_epi8(to.cast(), first_bytes, _mm512_cvtepi32_epi8(vector)) }
    }

    #[inline(always)]
    fn splat_integer(self, value: i32) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn add_integers(self, left: __m512i, right: __m512i) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_add_epi32(left, right) }
    }

    #[inline(always)]
    fn to_numbers(self, vector: __m512i) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_cvtepi32_ps(vector) }
    }

    #[inline(always)]
    fn round(self, vector: __m512) -> __m512i {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_cvtps_epi32(vector) }
    }
}
