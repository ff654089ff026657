//! WebAssembly's vectors of four numbers, with the fused multiply-add of relaxed SIMD. The host's engine
//! computes it in the deterministic way, with one rounding.

use std::arch::wasm32::*;

use super::{Kernel, Simd};
use crate::Backend;

/// Proof that the module is compiled for vectors, and so runs only in engines that have them.
#[derive(Clone, Copy)]
pub(crate) struct Simd128(());

impl Simd128 {
    /// The backend, if its instructions are there.
    pub(crate) fn new() -> Option<Self> {
        Backend::Simd128.is_available().then_some(Self(()))
    }
}

/// Run a kernel with the instructions.
#[target_feature(enable = "relaxed-simd")]
fn with_instructions<K: Kernel>(simd: Simd128, kernel: K) -> K::Output {
    kernel.run(simd)
}

// In each function a value of Simd128 proves that the instructions are there.
#[expect(unsafe_code, reason = "instructions that not all processors have, and pointers")]
impl Simd for Simd128 {
    type Vector = v128;
    const LANES: usize = 4;
    const TILE_VECTORS: usize = 2;
    const TILE_ROWS: [usize; 3] = [8, 4, 4];

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        with_instructions(self, kernel)
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> v128 {
        // SAFETY: the caller has four numbers there.
        unsafe { v128_load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> v128 {
        let mut lanes = [0.0; 4];
        for (lane, value) in lanes.iter_mut().enumerate().take(count) {
            // SAFETY: the caller has `count` numbers there, and `lane` is less.
            *value = unsafe { from.add(lane).read() };
        }
        // SAFETY: the array has four numbers.
        unsafe { self.load(lanes.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: v128) {
        // SAFETY: the caller has four numbers there.
        unsafe { v128_store(to.cast(), vector) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, vector: v128) {
        let mut lanes = [0.0; 4];
        // SAFETY: the array has four numbers.
        unsafe { self.store(lanes.as_mut_ptr(), vector) };
        for (lane, value) in lanes.into_iter().enumerate().take(count) {
            // SAFETY: the caller has `count` numbers there, and `lane` is less.
            unsafe { to.add(lane).write(value) };
        }
    }

    #[inline(always)]
    unsafe fn load_even(self, from: *const f32) -> v128 {
        // SAFETY: the caller has eight numbers there.
        unsafe {
            i32x4_shuffle::<0, 2, 4, 6>(v128_load(from.cast()), v128_load(from.add(4).cast()))
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> v128 {
        f32x4_splat(value)
    }

    #[inline(always)]
    fn add(self, left: v128, right: v128) -> v128 {
        f32x4_add(left, right)
    }

    #[inline(always)]
    fn subtract(self, left: v128, right: v128) -> v128 {
        f32x4_sub(left, right)
    }

    #[inline(always)]
    fn multiply(self, left: v128, right: v128) -> v128 {
        f32x4_mul(left, right)
    }

    #[inline(always)]
    fn divide(self, left: v128, right: v128) -> v128 {
        f32x4_div(left, right)
    }

    #[inline(always)]
    fn multiply_add(self, left: v128, right: v128, summand: v128) -> v128 {
        f32x4_relaxed_madd(left, right, summand)
    }

    #[inline(always)]
    fn square_root(self, vector: v128) -> v128 {
        f32x4_sqrt(vector)
    }

    #[inline(always)]
    fn maximum(self, left: v128, right: v128) -> v128 {
        f32x4_pmax(right, left)
    }

    #[inline(always)]
    fn minimum(self, left: v128, right: v128) -> v128 {
        f32x4_pmin(right, left)
    }

    #[inline(always)]
    fn select_negative(self, vector: v128, lesser: v128, other: v128) -> v128 {
        v128_bitselect(lesser, other, f32x4_lt(vector, f32x4_splat(0.0)))
    }

    #[inline(always)]
    fn absolute(self, vector: v128) -> v128 {
        f32x4_abs(vector)
    }

    #[inline(always)]
    fn scale_by_power(self, vector: v128, power: v128) -> v128 {
        let half = i32x4_shr(power, 1);
        let rest = i32x4_sub(power, half);
        let first = i32x4_shl(i32x4_add(half, i32x4_splat(127)), 23);
        let second = i32x4_shl(i32x4_add(rest, i32x4_splat(127)), 23);
        f32x4_mul(f32x4_mul(vector, first), second)
    }

    #[inline(always)]
    fn subtract_bits(self, left: v128, right: v128) -> v128 {
        i32x4_sub(left, right)
    }
}
