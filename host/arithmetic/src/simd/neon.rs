//! NEON: vectors of four numbers.

use std::arch::aarch64::*;

use super::{Kernel, Simd};
use crate::Backend;

/// Proof that the processor has NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// The backend, if its instructions are there.
    pub(crate) fn new() -> Option<Self> {
        Backend::Neon.is_available().then_some(Self(()))
    }
}

/// Run a kernel with the instructions.
#[target_feature(enable = "neon")]
fn with_instructions<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
    kernel.run(simd)
}

// In each function a value of Neon proves that the instructions are there.
#[expect(unsafe_code, reason = "instructions that not all processors have, and pointers")]
impl Simd for Neon {
    type Vector = float32x4_t;
    const LANES: usize = 4;
    const TILE_VECTORS: usize = 2;
    const TILE_ROWS: [usize; 3] = [8, 8, 8];

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the instructions are there.
        unsafe { with_instructions(self, kernel) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> float32x4_t {
        // SAFETY: the caller has four numbers there.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> float32x4_t {
        let mut lanes = [0.0; 4];
        for (lane, value) in lanes.iter_mut().enumerate().take(count) {
            // SAFETY: the caller has `count` numbers there, and `lane` is less.
            *value = unsafe { from.add(lane).read() };
        }
        // SAFETY: the array has four numbers.
        unsafe { self.load(lanes.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: float32x4_t) {
        // SAFETY: the caller has four numbers there.
        unsafe { vst1q_f32(to, vector) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, vector: float32x4_t) {
        let mut lanes = [0.0; 4];
        // SAFETY: the array has four numbers.
        unsafe { self.store(lanes.as_mut_ptr(), vector) };
        for (lane, value) in lanes.into_iter().enumerate().take(count) {
            // SAFETY: the caller has `count` numbers there, and `lane` is less.
            unsafe { to.add(lane).write(value) };
        }
    }

    #[inline(always)]
    unsafe fn load_even(self, from: *const f32) -> float32x4_t {
        // SAFETY: the caller has eight numbers there.
        unsafe { vuzp1q_f32(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    fn add(self, left: float32x4_t, right: float32x4_t) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vaddq_f32(left, right) }
    }

    #[inline(always)]
    fn subtract(self, left: float32x4_t, right: float32x4_t) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vsubq_f32(left, right) }
    }

    #[inline(always)]
    fn multiply(self, left: float32x4_t, right: float32x4_t) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vmulq_f32(left, right) }
    }

    #[inline(always)]
    fn divide(self, left: float32x4_t, right: float32x4_t) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vdivq_f32(left, right) }
    }

    #[inline(always)]
    fn multiply_add(
        self,
        left: float32x4_t,
        right: float32x4_t,
        summand: float32x4_t,
    ) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vfmaq_f32(summand, left, right) }
    }

    #[inline(always)]
    fn square_root(self, vector: float32x4_t) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vsqrtq_f32(vector) }
    }

    #[inline(always)]
    fn maximum(self, left: float32x4_t, right: float32x4_t) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vbslq_f32(vcgtq_f32(left, right), left, right) }
    }

    #[inline(always)]
    fn minimum(self, left: float32x4_t, right: float32x4_t) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vbslq_f32(vcltq_f32(left, right), left, right) }
    }

    #[inline(always)]
    fn select_negative(
        self,
        vector: float32x4_t,
        lesser: float32x4_t,
        other: float32x4_t,
    ) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vbslq_f32(vcltzq_f32(vector), lesser, other) }
    }

    #[inline(always)]
    fn absolute(self, vector: float32x4_t) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe { vabsq_f32(vector) }
    }

    #[inline(always)]
    fn scale_by_power(self, vector: float32x4_t, power: float32x4_t) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe {
            let power = vreinterpretq_s32_f32(power);
            let half = vshrq_n_s32::<1>(power);
            let rest = vsubq_s32(power, half);
            let first = vshlq_n_s32::<23>(vaddq_s32(half, vdupq_n_s32(127)));
            let second = vshlq_n_s32::<23>(vaddq_s32(rest, vdupq_n_s32(127)));
            let vector = vmulq_f32(vector, vreinterpretq_f32_s32(first));
            vmulq_f32(vector, vreinterpretq_f32_s32(second))
        }
    }

    #[inline(always)]
    fn subtract_bits(self, left: float32x4_t, right: float32x4_t) -> float32x4_t {
        // SAFETY: the instructions are there.
        unsafe {
            vreinterpretq_f32_s32(vsubq_s32(
                vreinterpretq_s32_f32(left),
                vreinterpretq_s32_f32(right),
            ))
        }
    }
}
