//! AVX-512F: vectors of sixteen numbers.

use std::arch::x86_64::*;

use super::scalar::Scalar;
use super::{Kernel, Simd};
use crate::Backend;

/// Proof that the processor has AVX-512F.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The backend, if the processor has its instructions.
    pub(crate) fn new() -> Option<Self> {
        Backend::Avx512.is_available().then_some(Self(()))
    }
}

/// Run a kernel with the instructions.
#[target_feature(enable = "avx512f,avx2,fma")]
fn with_instructions<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// A function of each lane, instead of instructions that Miri does not know.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
#[expect(unsafe_code, reason = "vectors are read and written as arrays")]
fn by_lanes<const N: usize>(vectors: [__m512; N], function: impl Fn([f32; N]) -> f32) -> __m512 {
    let mut lanes = [[0.0; 16]; N];
    // SAFETY: the arrays have sixteen numbers.
    unsafe {
        for (lanes, vector) in lanes.iter_mut().zip(vectors) {
            _mm512_storeu_ps(lanes.as_mut_ptr(), vector);
        }
        let results: [f32; 16] =
            std::array::from_fn(|lane| function(lanes.map(|lanes| lanes[lane])));
        _mm512_loadu_ps(results.as_ptr())
    }
}

/// The mask of the first `count` lanes.
#[inline(always)]
fn first_lanes(count: usize) -> __mmask16 {
    (1 << count) - 1
}

/// The mask of the first `count` lanes, or of all if there are not as many.
#[inline(always)]
fn lanes_before(count: usize) -> __mmask16 {
    if count < 16 { first_lanes(count) } else { __mmask16::MAX }
}

// In each function a value of Avx512 proves that the processor has the instructions.
#[expect(unsafe_code, reason = "instructions that not all processors have, and pointers")]
impl Simd for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;
    const TILE_VECTORS: usize = 3;
    const TILE_ROWS: [usize; 3] = [8, 8, 8];

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the processor has the instructions.
        unsafe { with_instructions(self, kernel) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: the processor has the instructions; the caller has a vector's numbers there.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> __m512 {
        // SAFETY: the processor has the instructions; lanes from `count` on are not read, and the
        // caller has the others.
        unsafe { _mm512_maskz_loadu_ps(first_lanes(count), from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: __m512) {
        // SAFETY: the processor has the instructions; the caller has a vector's numbers there.
        unsafe { _mm512_storeu_ps(to, vector) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, vector: __m512) {
        // SAFETY: the processor has the instructions; lanes from `count` on are not written, and
        // the caller has the others.
        unsafe { _mm512_mask_storeu_ps(to, first_lanes(count), vector) }
    }

    #[inline(always)]
    unsafe fn load_even(self, from: *const f32) -> __m512 {
        // SAFETY: the processor has the instructions; the caller has two vectors' numbers there.
        unsafe {
            if cfg!(miri) {
                return _mm512_loadu_ps(Scalar::<16>.load_even(from).as_ptr());
            }
            let (low, high) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            _mm512_permutex2var_ps(low, even, high)
        }
    }

    #[inline(always)]
    unsafe fn load_first_even(self, from: *const f32, count: usize) -> __m512 {
        // SAFETY: the processor has the instructions; numbers from `count` on are not read, and the
        // caller has the others.
        unsafe {
            if cfg!(miri) {
                return _mm512_loadu_ps(Scalar::<16>.load_first_even(from, count).as_ptr());
            }
            let low = _mm512_maskz_loadu_ps(lanes_before(count), from);
            let high = lanes_before(count.saturating_sub(16));
            let high = _mm512_maskz_loadu_ps(high, from.wrapping_add(16));
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            _mm512_permutex2var_ps(low, even, high)
        }
    }

    #[inline(always)]
    unsafe fn transpose(self, from: (*const f32, usize), to: (*mut f32, usize)) {
        // SAFETY: the processor has the instructions, and the caller the rows.
        unsafe { super::avx2::transpose(from, to) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn add(self, left: __m512, right: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_add_ps(left, right) }
    }

    #[inline(always)]
    fn subtract(self, left: __m512, right: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_sub_ps(left, right) }
    }

    #[inline(always)]
    fn multiply(self, left: __m512, right: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_mul_ps(left, right) }
    }

    #[inline(always)]
    fn divide(self, left: __m512, right: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_div_ps(left, right) }
    }

    #[inline(always)]
    fn multiply_add(self, left: __m512, right: __m512, summand: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_fmadd_ps(left, right, summand) }
    }

    #[inline(always)]
    fn square_root(self, vector: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_sqrt_ps(vector) }
    }

    #[inline(always)]
    fn maximum(self, left: __m512, right: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe {
            if cfg!(miri) {
                by_lanes(
                    [left, right],
                    |[left, right]: [f32; 2]| if left > right { left } else { right },
                )
            } else {
                _mm512_max_ps(left, right)
            }
        }
    }

    #[inline(always)]
    fn minimum(self, left: __m512, right: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe {
            if cfg!(miri) {
                by_lanes(
                    [left, right],
                    |[left, right]: [f32; 2]| if left < right { left } else { right },
                )
            } else {
                _mm512_min_ps(left, right)
            }
        }
    }

    #[inline(always)]
    fn select_negative(self, vector: __m512, lesser: __m512, other: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe {
            if cfg!(miri) {
                let select = |[x, lesser, other]: [f32; 3]| if x < 0.0 { lesser } else { other };
                return by_lanes([vector, lesser, other], select);
            }
            let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(vector, _mm512_setzero_ps());
            _mm512_mask_blend_ps(negative, other, lesser)
        }
    }

    #[inline(always)]
    fn absolute(self, vector: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm512_abs_ps(vector) }
    }

    #[inline(always)]
    fn scale_by_power(self, vector: __m512, power: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe {
            let power = _mm512_castps_si512(power);
            let half = _mm512_srai_epi32::<1>(power);
            let rest = _mm512_sub_epi32(power, half);
            let bias = _mm512_set1_epi32(127);
            let first = _mm512_slli_epi32::<23>(_mm512_add_epi32(half, bias));
            let second = _mm512_slli_epi32::<23>(_mm512_add_epi32(rest, bias));
            let vector = _mm512_mul_ps(vector, _mm512_castsi512_ps(first));
            _mm512_mul_ps(vector, _mm512_castsi512_ps(second))
        }
    }

    #[inline(always)]
    fn subtract_bits(self, left: __m512, right: __m512) -> __m512 {
        // SAFETY: the processor has the instructions.
        unsafe {
            _mm512_castsi512_ps(_mm512_sub_epi32(
                _mm512_castps_si512(left),
                _mm512_castps_si512(right),
            ))
        }
    }
}
