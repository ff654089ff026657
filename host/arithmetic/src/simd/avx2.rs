//! AVX2 and FMA: vectors of eight numbers.

use std::arch::x86_64::*;

use super::{Kernel, Simd};
use crate::Backend;

/// Proof that the processor has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The backend, if the processor has its instructions.
    pub(crate) fn new() -> Option<Self> {
        Backend::Avx2.is_available().then_some(Self(()))
    }
}

/// Run a kernel with the instructions.
#[target_feature(enable = "avx2,fma")]
fn with_instructions<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// The vector itself; see [`Simd::before_loads`].
#[inline]
#[target_feature(enable = "avx2,fma")]
fn before_loads(vector: __m256) -> __m256 {
    #[cfg(miri)]
    return vector;
    #[cfg(not(miri))]
    {
        let mut vector = vector;
        // SAFETY: there are no instructions.
        #[expect(unsafe_code, reason = "only assembly keeps the compiler from moving loads")]
        unsafe {
            std::arch::asm!("/* {} */", inout(ymm_reg) vector, options(nostack, preserves_flags));
        }
        vector
    }
}

/// All bits in the first `count` lanes.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn first_lanes(count: usize) -> __m256i {
    let count = i32::try_from(count).expect("a count of lanes is small");
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes)
}

/// Store the first `count` numbers in parts, because a masked store is slow on many processors.
///
/// # Safety
/// `count` numbers can be written to the address, and `count` is less than eight.
#[inline]
#[target_feature(enable = "avx2,fma")]
#[expect(unsafe_code, reason = "it writes to a pointer")]
unsafe fn store_first_lanes(to: *mut f32, count: usize, vector: __m256) {
    let (mut to, mut part) = (to, _mm256_castps256_ps128(vector));
    // SAFETY: the parts are of four, two and one numbers as in the binary form of `count`, one
    // behind the other: together `count` numbers.
    unsafe {
        if count & 4 != 0 {
            _mm_storeu_ps(to, part);
            part = _mm256_extractf128_ps::<1>(vector);
            to = to.add(4);
        }
        if count & 2 != 0 {
            _mm_storel_epi64(to.cast(), _mm_castps_si128(part));
            part = _mm_movehl_ps(part, part);
            to = to.add(2);
        }
        if count & 1 != 0 {
            _mm_store_ss(to, part);
        }
    }
}

/// Transpose eight rows of eight numbers.
///
/// # Safety
/// As for [`Simd::transpose`].
#[inline]
#[target_feature(enable = "avx2,fma")]
#[expect(unsafe_code, reason = "it reads from and writes to pointers")]
pub(super) unsafe fn transpose((from, stride): (*const f32, usize), to: (*mut f32, usize)) {
    // SAFETY: the caller has eight rows.
    let row = |index: usize| unsafe { _mm256_loadu_ps(from.add(index * stride)) };
    let pair = |low, high| [_mm256_unpacklo_ps(low, high), _mm256_unpackhi_ps(low, high)];
    let pairs =
        [pair(row(0), row(1)), pair(row(2), row(3)), pair(row(4), row(5)), pair(row(6), row(7))];
    let quad = |low: [__m256; 2], high: [__m256; 2]| {
        [
            _mm256_shuffle_ps::<0x44>(low[0], high[0]),
            _mm256_shuffle_ps::<0xee>(low[0], high[0]),
            _mm256_shuffle_ps::<0x44>(low[1], high[1]),
            _mm256_shuffle_ps::<0xee>(low[1], high[1]),
        ]
    };
    let (upper, lower) = (quad(pairs[0], pairs[1]), quad(pairs[2], pairs[3]));
    for index in 0..4 {
        let first = _mm256_permute2f128_ps::<0x20>(upper[index], lower[index]);
        let second = _mm256_permute2f128_ps::<0x31>(upper[index], lower[index]);
        // SAFETY: the caller has eight rows.
        unsafe {
            _mm256_storeu_ps(to.0.add(index * to.1), first);
            _mm256_storeu_ps(to.0.add((index + 4) * to.1), second);
        }
    }
}

// In each function a value of Avx2 proves that the processor has the instructions.
#[expect(unsafe_code, reason = "instructions that not all processors have, and pointers")]
impl Simd for Avx2 {
    type Vector = __m256;
    const LANES: usize = 8;
    const TILE_VECTORS: usize = 3;
    const TILE_ROWS: [usize; 3] = [8, 4, 4];

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the processor has the instructions.
        unsafe { with_instructions(self, kernel) }
    }

    #[inline(always)]
    fn before_loads(self, vector: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { before_loads(vector) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: the processor has the instructions; the caller has a vector's numbers there.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> __m256 {
        // SAFETY: the processor has the instructions; lanes from `count` on are not read, and the
        // caller has the others.
        unsafe { _mm256_maskload_ps(from, first_lanes(count)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: __m256) {
        // SAFETY: the processor has the instructions; the caller has a vector's numbers there.
        unsafe { _mm256_storeu_ps(to, vector) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, vector: __m256) {
        // SAFETY: the processor has the instructions; lanes from `count` on are not written, and
        // the caller has the others.
        unsafe { store_first_lanes(to, count, vector) }
    }

    #[inline(always)]
    unsafe fn load_even(self, from: *const f32) -> __m256 {
        // SAFETY: the processor has the instructions; the caller has two vectors' numbers there.
        unsafe {
            let (low, high) = (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)));
            let mixed = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(low, high));
            _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(mixed))
        }
    }

    #[inline(always)]
    unsafe fn transpose(self, from: (*const f32, usize), to: (*mut f32, usize)) {
        // SAFETY: the processor has the instructions, and the caller the rows.
        unsafe { transpose(from, to) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn add(self, left: __m256, right: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_add_ps(left, right) }
    }

    #[inline(always)]
    fn subtract(self, left: __m256, right: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_sub_ps(left, right) }
    }

    #[inline(always)]
    fn multiply(self, left: __m256, right: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_mul_ps(left, right) }
    }

    #[inline(always)]
    fn divide(self, left: __m256, right: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_div_ps(left, right) }
    }

    #[inline(always)]
    fn multiply_add(self, left: __m256, right: __m256, summand: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_fmadd_ps(left, right, summand) }
    }

    #[inline(always)]
    fn square_root(self, vector: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_sqrt_ps(vector) }
    }

    #[inline(always)]
    fn maximum(self, left: __m256, right: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_max_ps(left, right) }
    }

    #[inline(always)]
    fn minimum(self, left: __m256, right: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_min_ps(left, right) }
    }

    #[inline(always)]
    fn select_negative(self, vector: __m256, lesser: __m256, other: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe {
            let negative = _mm256_cmp_ps::<_CMP_LT_OQ>(vector, _mm256_setzero_ps());
            _mm256_blendv_ps(other, lesser, negative)
        }
    }

    #[inline(always)]
    fn absolute(self, vector: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), vector) }
    }

    #[inline(always)]
    fn scale_by_power(self, vector: __m256, power: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe {
            let power = _mm256_castps_si256(power);
            let half = _mm256_srai_epi32::<1>(power);
            let rest = _mm256_sub_epi32(power, half);
            let bias = _mm256_set1_epi32(127);
            let first = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
            let second = _mm256_slli_epi32::<23>(_mm256_add_epi32(rest, bias));
            let vector = _mm256_mul_ps(vector, _mm256_castsi256_ps(first));
            _mm256_mul_ps(vector, _mm256_castsi256_ps(second))
        }
    }

    #[inline(always)]
    fn subtract_bits(self, left: __m256, right: __m256) -> __m256 {
        // SAFETY: the processor has the instructions.
        unsafe {
            _mm256_castsi256_ps(_mm256_sub_epi32(
                _mm256_castps_si256(left),
                _mm256_castps_si256(right),
            ))
        }
    }
}
