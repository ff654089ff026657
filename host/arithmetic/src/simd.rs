//! Vectors of whatever width the processor has. A backend is a type without a size whose value
//! proves that its instructions may be used; all functions on vectors compute, lane by lane, the
//! same bits on every backend.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) mod simd128;

/// The instructions of a backend on vectors of [`Simd::LANES`] numbers.
///
/// Results that are no number have unspecified bits; all others are specified by IEEE 754.
pub(crate) trait Simd: Copy {
    /// A vector.
    type Vector: Copy;
    /// The numbers in a vector: 4, 8 or 16.
    const LANES: usize;
    /// The most vectors in a row of a tile of sums: two or three.
    const TILE_VECTORS: usize;
    /// The rows of a tile whose rows have one, two or three vectors: 4 or 8. Its sums and a few
    /// operands fit into the registers.
    const TILE_ROWS: [usize; 3];
    /// Whether loops of known length are worth more code.
    const UNROLLED: bool = true;

    /// Run a kernel as a function of its own that may use the backend's instructions.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    /// The vector itself, but the compiler computes it before it loads anything else: a tile needs
    /// all registers, and a number that is loaded too early takes one that a sum has.
    #[inline(always)]
    fn before_loads(self, vector: Self::Vector) -> Self::Vector {
        vector
    }

    /// Load a vector.
    ///
    /// # Safety
    /// [`Simd::LANES`] numbers can be read from the address.
    #[expect(unsafe_code, reason = "it reads from a pointer")]
    unsafe fn load(self, from: *const f32) -> Self::Vector;
    /// Load the first lanes of a vector; the others are zeros.
    ///
    /// # Safety
    /// `count` numbers can be read from the address, and `count` is less than [`Simd::LANES`].
    #[expect(unsafe_code, reason = "it reads from a pointer")]
    unsafe fn load_first(self, from: *const f32, count: usize) -> Self::Vector;
    /// Store a vector.
    ///
    /// # Safety
    /// [`Simd::LANES`] numbers can be written to the address.
    #[expect(unsafe_code, reason = "it writes to a pointer")]
    unsafe fn store(self, to: *mut f32, vector: Self::Vector);
    /// Store the first lanes of a vector.
    ///
    /// # Safety
    /// `count` numbers can be written to the address, and `count` is less than [`Simd::LANES`].
    #[expect(unsafe_code, reason = "it writes to a pointer")]
    unsafe fn store_first(self, to: *mut f32, count: usize, vector: Self::Vector);
    /// Load the elements 0, 2, 4 and so on.
    ///
    /// # Safety
    /// Twice [`Simd::LANES`] numbers can be read from the address.
    #[expect(unsafe_code, reason = "it reads from a pointer")]
    unsafe fn load_even(self, from: *const f32) -> Self::Vector;

    /// Load the elements 0, 2, 4 and so on of the first ones; the others are zeros.
    ///
    /// # Safety
    /// `count` numbers can be read from the address, and `count` is at most twice
    /// [`Simd::LANES`].
    #[inline(always)]
    #[expect(unsafe_code, reason = "it reads from a pointer")]
    unsafe fn load_first_even(self, from: *const f32, count: usize) -> Self::Vector {
        let mut numbers = [0.0; 32];
        for (index, number) in numbers.iter_mut().enumerate().take(count).step_by(2) {
            // SAFETY: the caller has `count` numbers there, and the index is less.
            *number = unsafe { from.add(index).read() };
        }
        // SAFETY: the array has the numbers of two vectors of any width.
        unsafe { self.load_even(numbers.as_ptr()) }
    }

    /// Transpose eight rows of eight numbers; both rows and transposed rows have a distance.
    ///
    /// # Safety
    /// Eight rows of eight numbers, the given distance apart, can be read from the first address,
    /// and written to the second one.
    #[inline(always)]
    #[expect(unsafe_code, reason = "it reads from and writes to pointers")]
    unsafe fn transpose(self, (from, stride): (*const f32, usize), to: (*mut f32, usize)) {
        for row in 0..8 {
            for column in 0..8 {
                // SAFETY: the caller has eight rows and columns of both.
                unsafe {
                    let value = from.add(row * stride + column).read();
                    to.0.add(column * to.1 + row).write(value);
                }
            }
        }
    }

    /// Load a vector from the beginning of a slice.
    ///
    /// # Panics
    /// The slice is shorter than a vector; where it is cut to the length, there is no check left.
    #[inline(always)]
    fn load_slice(self, from: &[f32]) -> Self::Vector {
        assert!(from.len() >= Self::LANES, "a slice has a vector");
        // SAFETY: the slice has the numbers, as asserted.
        #[expect(unsafe_code, reason = "the length is asserted")]
        unsafe {
            self.load(from.as_ptr())
        }
    }
    /// Load a slice that is shorter than a vector; the other lanes are zeros.
    ///
    /// # Panics
    /// The slice is not shorter than a vector.
    #[inline(always)]
    fn load_short(self, from: &[f32]) -> Self::Vector {
        assert!(from.len() < Self::LANES, "a slice is shorter than a vector");
        // SAFETY: the count is the slice's length and less than a vector's, as asserted.
        #[expect(unsafe_code, reason = "the length is asserted")]
        unsafe {
            self.load_first(from.as_ptr(), from.len())
        }
    }
    /// Store a vector to the beginning of a slice.
    ///
    /// # Panics
    /// The slice is shorter than a vector; where it is cut to the length, there is no check left.
    #[inline(always)]
    fn store_slice(self, to: &mut [f32], vector: Self::Vector) {
        assert!(to.len() >= Self::LANES, "a slice has room for a vector");
        // SAFETY: the slice has the numbers, as asserted.
        #[expect(unsafe_code, reason = "the length is asserted")]
        unsafe {
            self.store(to.as_mut_ptr(), vector);
        }
    }
    /// Store the first lanes to a slice that is shorter than a vector.
    ///
    /// # Panics
    /// The slice is not shorter than a vector.
    #[inline(always)]
    fn store_short(self, to: &mut [f32], vector: Self::Vector) {
        assert!(to.len() < Self::LANES, "a slice is shorter than a vector");
        // SAFETY: the count is the slice's length and less than a vector's, as asserted.
        #[expect(unsafe_code, reason = "the length is asserted")]
        unsafe {
            self.store_first(to.as_mut_ptr(), to.len(), vector);
        }
    }

    /// A vector of equal numbers.
    fn splat(self, value: f32) -> Self::Vector;
    /// Two vectors of equal numbers. A closure for `map` would be a function of its own, without
    /// the backend's instructions.
    #[inline(always)]
    fn splat_pair(self, [first, second]: [f32; 2]) -> [Self::Vector; 2] {
        [self.splat(first), self.splat(second)]
    }
    /// `left + right`
    fn add(self, left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// `left - right`
    fn subtract(self, left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// `left * right`
    fn multiply(self, left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// `left / right`
    fn divide(self, left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// `left * right + summand`, rounded once.
    fn multiply_add(
        self,
        left: Self::Vector,
        right: Self::Vector,
        summand: Self::Vector,
    ) -> Self::Vector;
    /// The square root.
    fn square_root(self, vector: Self::Vector) -> Self::Vector;
    /// `left` if it is greater than `right`, else `right`, also if one of them is no number.
    fn maximum(self, left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// `left` if it is less than `right`, else `right`, also if one of them is no number.
    fn minimum(self, left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// `lesser` where the vector is less than zero, else `other`.
    fn select_negative(
        self,
        vector: Self::Vector,
        lesser: Self::Vector,
        other: Self::Vector,
    ) -> Self::Vector;
    /// The absolute value.
    fn absolute(self, vector: Self::Vector) -> Self::Vector;
    /// `power` holds integers as bits: the vector times two to the power of each, which lies
    /// between -252 and 254, in two products.
    fn scale_by_power(self, vector: Self::Vector, power: Self::Vector) -> Self::Vector;
    /// The difference of the bits as integers.
    fn subtract_bits(self, left: Self::Vector, right: Self::Vector) -> Self::Vector;
}

/// Transpose eight rows of eight numbers at the beginning of a slice to that of another one.
///
/// # Panics
/// A slice ends before.
#[inline(always)]
pub(crate) fn transpose<S: Simd>(simd: S, from: (&[f32], usize), to: (&mut [f32], usize)) {
    let end = |stride: usize| stride.checked_mul(7).and_then(|last| last.checked_add(8));
    let lies_in = |length: usize, stride| end(stride).is_some_and(|end| end <= length);
    assert!(lies_in(from.0.len(), from.1), "a block has eight rows");
    assert!(lies_in(to.0.len(), to.1), "a transposed block has eight rows");
    // SAFETY: eight rows of both lie in the slices, as asserted.
    #[expect(unsafe_code, reason = "the bounds are asserted for the whole block")]
    unsafe {
        simd.transpose((from.0.as_ptr(), from.1), (to.0.as_mut_ptr(), to.1));
    }
}

/// A function over vectors of any width.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Runs it. Implementations are `#[inline(always)]`: they must become part of a function that
    /// has the backend's instructions.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}
