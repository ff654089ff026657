//! Vectors of integers: sums of products of u8 with i8, and their conversions. All functions
//! compute the same on every backend.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) mod simd128;
#[cfg(target_arch = "x86_64")]
pub(crate) mod vnni;

use crate::K_GROUP;
use crate::simd::Simd;

/// The most lanes of a vector.
pub(crate) const MAX_LANES: usize = 16;

/// The bytes that [`IntegerSimd::load_windows`] may read.
pub(crate) const MAX_WINDOWS: usize = 64;

/// The vector of numbers of a backend.
pub(crate) type Numbers<I> = <<I as IntegerSimd>::Floats as Simd>::Vector;

/// The instructions of a backend on vectors with as many lanes as its vectors of numbers have. A
/// lane is an i32, or a group of [`K_GROUP`] bytes.
#[expect(unsafe_code, reason = "methods read from and write to pointers")]
pub(crate) trait IntegerSimd: Copy {
    /// The backend for numbers.
    type Floats: Simd;
    /// A vector of i32.
    type Integers: Copy;
    /// Running sums of products, as suits the instructions.
    type Sums: Copy;
    /// A vector of groups of u8, or of i8, as suits the instructions.
    type Factors: Copy;
    /// The most vectors in a row of a tile of sums.
    const TILE_VECTORS: usize;
    /// The rows of a tile whose rows have one, two or three vectors: 4 or 8.
    const TILE_ROWS: [usize; 3];

    /// The backend for numbers.
    fn floats(self) -> Self::Floats;

    /// Run a kernel as a function of its own that may use the backend's instructions.
    fn call<K: IntegerKernel>(self, kernel: K) -> K::Output;

    /// Sums without products.
    fn no_sums(self) -> Self::Sums;
    /// Add the products of the four u8 of each group with the four i8 of the other one to the sum
    /// of the lane.
    fn add_products(
        self,
        unsigned: Self::Factors,
        signed: Self::Factors,
        sums: Self::Sums,
    ) -> Self::Sums;
    /// The sums.
    fn total(self, sums: Self::Sums) -> Self::Integers;

    /// Load a vector of groups of u8.
    ///
    /// # Safety
    /// So many groups can be read from the address.
    unsafe fn load_unsigned(self, from: *const u8) -> Self::Factors;
    /// Load a vector of groups of i8.
    ///
    /// # Safety
    /// So many groups can be read from the address.
    unsafe fn load_signed(self, from: *const u8) -> Self::Factors;
    /// Load a vector of groups of i8, of which each half lies elsewhere.
    ///
    /// # Safety
    /// Half a vector's groups can be read from each address.
    #[inline(always)]
    unsafe fn load_signed_halves(self, low: *const u8, high: *const u8) -> Self::Factors {
        let mut groups = [[0; K_GROUP]; MAX_LANES];
        let half = Self::Floats::LANES / 2;
        // SAFETY: the caller has the groups, which have no alignment.
        unsafe {
            for lane in 0..half {
                groups[lane] = low.cast::<[u8; K_GROUP]>().add(lane).read();
                groups[half + lane] = high.cast::<[u8; K_GROUP]>().add(lane).read();
            }
            self.load_signed(groups.as_ptr().cast())
        }
    }
    /// The same group of u8 in each lane.
    fn splat_unsigned(self, group: [u8; K_GROUP]) -> Self::Factors;
    /// The same group of i8 in each lane.
    fn splat_signed(self, group: [u8; K_GROUP]) -> Self::Factors;
    /// Groups of neighbouring u8, one or two elements apart as `STRIDE` says.
    ///
    /// # Safety
    /// [`MAX_WINDOWS`] bytes can be read from the address.
    #[inline(always)]
    unsafe fn load_windows<const STRIDE: usize>(self, from: *const u8) -> Self::Factors {
        // SAFETY: the last group ends before twice the lanes and two bytes, which are less.
        unsafe { self.load_spread_windows(from, STRIDE, 1) }
    }
    /// Groups of u8, of which the next one begins `stride` bytes later and the elements have the
    /// given distance.
    ///
    /// # Safety
    /// All of their bytes can be read from the address.
    #[inline(always)]
    unsafe fn load_spread_windows(
        self,
        from: *const u8,
        stride: usize,
        distance: usize,
    ) -> Self::Factors {
        let mut groups = [[0; K_GROUP]; MAX_LANES];
        for (lane, group) in groups.iter_mut().enumerate().take(Self::Floats::LANES) {
            for (element, value) in group.iter_mut().enumerate() {
                // SAFETY: the caller has the lane's group.
                *value = unsafe { from.add(lane * stride + element * distance).read() };
            }
        }
        // SAFETY: the array has a group for each lane.
        unsafe { self.load_unsigned(groups.as_ptr().cast()) }
    }

    /// Load a vector of i32.
    ///
    /// # Safety
    /// A vector's numbers can be read from the address.
    unsafe fn load_integers(self, from: *const i32) -> Self::Integers;
    /// Store a vector of i32.
    ///
    /// # Safety
    /// A vector's numbers can be written to the address.
    unsafe fn store_integers(self, to: *mut i32, vector: Self::Integers);
    /// Load a u8 into each lane.
    ///
    /// # Safety
    /// A byte for each lane can be read from the address.
    unsafe fn load_bytes(self, from: *const u8) -> Self::Integers;
    /// Load every second u8 into a lane.
    ///
    /// # Safety
    /// Twice as many bytes as there are lanes can be read from the address.
    #[inline(always)]
    unsafe fn load_even_bytes(self, from: *const u8) -> Self::Integers {
        let mut bytes = [0; MAX_LANES];
        for (lane, value) in bytes.iter_mut().enumerate().take(Self::Floats::LANES) {
            // SAFETY: the lane is less than the number of lanes.
            *value = unsafe { from.add(2 * lane).read() };
        }
        // SAFETY: the array has a byte for each lane.
        unsafe { self.load_bytes(bytes.as_ptr()) }
    }
    /// The least significant byte of each of four vectors, which have no others, as groups.
    fn group(self, bytes: [Self::Integers; K_GROUP]) -> Self::Integers;
    /// Store groups.
    ///
    /// # Safety
    /// So many groups can be written to the address.
    unsafe fn store_groups(self, to: *mut u8, vector: Self::Integers);
    /// Store the lanes, which are at least 0 and at most 255, as u8.
    ///
    /// # Safety
    /// A byte for each lane can be written to the address.
    unsafe fn store_bytes(self, to: *mut u8, vector: Self::Integers);
    /// Store the first lanes, which are at least 0 and at most 255, as u8.
    ///
    /// # Safety
    /// `count` bytes can be written to the address, and `count` is less than the lanes.
    #[inline(always)]
    unsafe fn store_first_bytes(self, to: *mut u8, count: usize, vector: Self::Integers) {
        let mut bytes = [0; MAX_LANES];
        // SAFETY: the array has a byte for each lane.
        unsafe { self.store_bytes(bytes.as_mut_ptr(), vector) };
        for (lane, value) in bytes.into_iter().enumerate().take(count) {
            // SAFETY: the caller has `count` bytes there, and `lane` is less.
            unsafe { to.add(lane).write(value) };
        }
    }
    /// The bits that both have.
    fn and(self, left: Self::Integers, right: Self::Integers) -> Self::Integers;
    /// A vector of equal i32.
    fn splat_integer(self, value: i32) -> Self::Integers;
    /// The sum, which wraps around.
    fn add_integers(self, left: Self::Integers, right: Self::Integers) -> Self::Integers;
    /// The nearest numbers, of two the even ones.
    fn to_numbers(self, vector: Self::Integers) -> Numbers<Self>;
    /// The nearest integers, of two the even ones, of numbers between -255 and 255.
    fn round(self, vector: Numbers<Self>) -> Self::Integers;
}

/// A function over vectors of any width.
pub(crate) trait IntegerKernel {
    /// What it returns.
    type Output;
    /// Runs it. Implementations are `#[inline(always)]`: they must become part of a function that
    /// has the backend's instructions.
    fn run<I: IntegerSimd>(self, simd: I) -> Self::Output;
}
