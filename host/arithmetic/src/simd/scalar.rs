//! Vectors as arrays, on any processor and under Miri.

use super::{Kernel, Simd};

/// Vectors of `N` numbers in an array.
#[derive(Clone, Copy)]
pub(crate) struct Scalar<const N: usize>;

#[expect(unsafe_code, reason = "the trait reads and writes through pointers")]
impl<const N: usize> Simd for Scalar<N> {
    type Vector = [f32; N];
    const LANES: usize = N;
    const TILE_VECTORS: usize = 2;
    const TILE_ROWS: [usize; 3] = [4, 4, 4];
    const UNROLLED: bool = false;

    // A function of its own, as on other backends: compilers need minutes for all kernels in one.
    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> [f32; N] {
        // SAFETY: the caller has N numbers there; an array of f32 is aligned as they are.
        unsafe { from.cast::<[f32; N]>().read() }
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> [f32; N] {
        let mut vector = [0.0; N];
        for (lane, value) in vector.iter_mut().enumerate().take(count) {
            // SAFETY: the caller has `count` numbers there, and `lane` is less.
            *value = unsafe { from.add(lane).read() };
        }
        vector
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, vector: [f32; N]) {
        // SAFETY: the caller has N numbers there; an array of f32 is aligned as they are.
        unsafe { to.cast::<[f32; N]>().write(vector) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, vector: [f32; N]) {
        for (lane, value) in vector.into_iter().enumerate().take(count) {
            // SAFETY: the caller has `count` numbers there, and `lane` is less.
            unsafe { to.add(lane).write(value) };
        }
    }

    #[inline(always)]
    unsafe fn load_even(self, from: *const f32) -> [f32; N] {
        let mut vector = [0.0; N];
        for (lane, value) in vector.iter_mut().enumerate() {
            // SAFETY: the caller has 2 N numbers there, and `lane` is less than N.
            *value = unsafe { from.add(2 * lane).read() };
        }
        vector
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; N] {
        [value; N]
    }

    #[inline(always)]
    fn add(self, left: [f32; N], right: [f32; N]) -> [f32; N] {
        lanes(|lane| left[lane] + right[lane])
    }

    #[inline(always)]
    fn subtract(self, left: [f32; N], right: [f32; N]) -> [f32; N] {
        lanes(|lane| left[lane] - right[lane])
    }

    #[inline(always)]
    fn multiply(self, left: [f32; N], right: [f32; N]) -> [f32; N] {
        lanes(|lane| left[lane] * right[lane])
    }

    #[inline(always)]
    fn divide(self, left: [f32; N], right: [f32; N]) -> [f32; N] {
        lanes(|lane| left[lane] / right[lane])
    }

    #[inline(always)]
    fn multiply_add(self, left: [f32; N], right: [f32; N], summand: [f32; N]) -> [f32; N] {
        lanes(|lane| left[lane].mul_add(right[lane], summand[lane]))
    }

    #[inline(always)]
    fn square_root(self, vector: [f32; N]) -> [f32; N] {
        lanes(|lane| vector[lane].sqrt())
    }

    #[inline(always)]
    fn maximum(self, left: [f32; N], right: [f32; N]) -> [f32; N] {
        let greater = |lane| if left[lane] > right[lane] { left[lane] } else { right[lane] };
        lanes(greater)
    }

    #[inline(always)]
    fn minimum(self, left: [f32; N], right: [f32; N]) -> [f32; N] {
        let lesser = |lane| if left[lane] < right[lane] { left[lane] } else { right[lane] };
        lanes(lesser)
    }

    #[inline(always)]
    fn select_negative(self, vector: [f32; N], lesser: [f32; N], other: [f32; N]) -> [f32; N] {
        lanes(|lane| if vector[lane] < 0.0 { lesser[lane] } else { other[lane] })
    }

    #[inline(always)]
    fn absolute(self, vector: [f32; N]) -> [f32; N] {
        lanes(|lane| vector[lane].abs())
    }

    #[inline(always)]
    fn scale_by_power(self, vector: [f32; N], power: [f32; N]) -> [f32; N] {
        lanes(|lane| {
            let power = power[lane].to_bits().cast_signed();
            let half = power >> 1;
            vector[lane] * power_of_two(half) * power_of_two(power.wrapping_sub(half))
        })
    }

    #[inline(always)]
    fn subtract_bits(self, left: [f32; N], right: [f32; N]) -> [f32; N] {
        lanes(|lane| f32::from_bits(left[lane].to_bits().wrapping_sub(right[lane].to_bits())))
    }
}

#[inline(always)]
fn power_of_two(power: i32) -> f32 {
    f32::from_bits(power.wrapping_add(127).cast_unsigned() << 23)
}

/// A vector from its lanes; compilers need less time for it than for `std::array::from_fn`.
#[inline(always)]
fn lanes<const N: usize>(value: impl Fn(usize) -> f32) -> [f32; N] {
    let mut vector = [0.0; N];
    for (lane, place) in vector.iter_mut().enumerate() {
        *place = value(lane);
    }
    vector
}
