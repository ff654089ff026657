//! Tiles of sums of products, which stay in registers while `k` passes: the kernel of convolutions
//! and matrix products. What follows the sums is done before they leave the registers.

use crate::WEIGHT_BLOCK;
use crate::functions::ShortTail;
use crate::simd::{Kernel, Simd};

/// The longest sums in one go: the factors of a tile stay in the first cache.
pub(crate) const K_BLOCK: usize = 192;

/// Where the rows of right factors begin in a slice.
///
/// # Safety
/// No row of the first `k` ones begins behind [`Rows::greatest`].
#[expect(unsafe_code, reason = "tiles rely on it")]
pub(crate) unsafe trait Rows: Copy {
    /// The greatest of the first `k` beginnings, or more; `k` is at least 1.
    fn greatest(self, k: usize) -> usize;

    /// The beginning of a row, relative to the first element.
    ///
    /// # Safety
    /// The row is one of those for which [`Rows::greatest`] was asked.
    #[expect(unsafe_code, reason = "an index is not checked once more")]
    unsafe fn start(self, row: usize) -> usize;
}

/// Rows that are a distance apart.
#[derive(Clone, Copy)]
pub(crate) struct Stride(pub(crate) usize);

// SAFETY: the last one of rows that are a distance apart begins behind the others.
#[expect(unsafe_code, reason = "an index is not checked once more")]
unsafe impl Rows for Stride {
    #[inline(always)]
    fn greatest(self, k: usize) -> usize {
        (k - 1).checked_mul(self.0).expect("rows lie in memory")
    }

    #[inline(always)]
    unsafe fn start(self, row: usize) -> usize {
        row.wrapping_mul(self.0)
    }
}

/// Rows that begin anywhere.
#[derive(Clone, Copy)]
pub(crate) struct Starts<'a>(pub(crate) &'a [u32]);

// SAFETY: it is the greatest one of the first k.
#[expect(unsafe_code, reason = "an index is not checked once more")]
unsafe impl Rows for Starts<'_> {
    #[inline(always)]
    fn greatest(self, k: usize) -> usize {
        self.0[..k].iter().fold(0, |greatest, start| greatest.max(*start)) as usize
    }

    #[inline(always)]
    unsafe fn start(self, row: usize) -> usize {
        // SAFETY: the caller has asked for it, and so the slice has it.
        unsafe { *self.0.get_unchecked(row) as usize }
    }
}

/// The operands of a tile, or of all tiles of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a, R> {
    /// The length of the sums, at least 1.
    pub(crate) k: usize,
    /// The left factors, blocks of `[k][WEIGHT_BLOCK]`, from the first row on.
    pub(crate) left: &'a [f32],
    /// The distance between the blocks of left factors.
    pub(crate) left_block: usize,
    /// The right factors, rows of whole vectors.
    pub(crate) right: &'a [f32],
    /// Where the rows of the right factors begin.
    pub(crate) rows: R,
}

/// What follows a sum of products: `tail(sum * scale + bias + residual)`.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    pub(crate) scale: f32,
    pub(crate) bias: Bias<'a>,
    /// As the output, from the tile's first element on.
    pub(crate) residual: Option<&'a [f32]>,
    /// What follows last, or nothing if that is applied to the output.
    pub(crate) tail: ShortTail,
}

/// The bias of a tile.
#[derive(Clone, Copy)]
pub(crate) enum Bias<'a> {
    None,
    /// By row.
    Rows(&'a [f32]),
    /// By column.
    Columns(&'a [f32]),
}

/// A column of tiles, of which each has at most `ROWS` rows of at most `VECTORS` vectors.
pub(crate) struct Tiles<'a, R, const ROWS: usize, const VECTORS: usize> {
    pub(crate) factors: Factors<'a, R>,
    /// From the first element on.
    pub(crate) output: &'a mut [f32],
    /// The distance between the rows of the output.
    pub(crate) output_stride: usize,
    /// The rows, and the columns, which begin in the last vector.
    pub(crate) size: [usize; 2],
    /// Whether the output already has the sums of a smaller `k`.
    pub(crate) resume: bool,
    /// What follows the last sum.
    pub(crate) finish: Option<Finish<'a>>,
}

impl<R: Rows, const ROWS: usize, const VECTORS: usize> Kernel for Tiles<'_, R, ROWS, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.check_bounds::<S>();
        let [rows, columns] = self.size;
        let stride = self.output_stride;
        let last = columns - (VECTORS - 1) * S::LANES;
        let Factors { k, left, left_block, right, rows: right_rows } = self.factors;
        for row in (0..rows).step_by(ROWS) {
            let grid = Grid { rows: (rows - row).min(ROWS), last, stride };
            let mut sums = [[simd.splat(0.0); VECTORS]; ROWS];
            let block = row / WEIGHT_BLOCK * left_block + row % WEIGHT_BLOCK;
            // SAFETY: the rows and columns of the tile lie in the output and the residual, its
            // biases in the bias, and the k rows of its factors in theirs, as checked.
            #[expect(unsafe_code, reason = "the bounds are checked for all tiles")]
            unsafe {
                let output = self.output.as_mut_ptr().add(row * stride);
                if self.resume {
                    grid.load(simd, output, &mut sums);
                }
                let factors = (left.as_ptr().add(block), right.as_ptr(), right_rows);
                accumulate(simd, k, factors, &mut sums);
                if let Some(finish) = &self.finish {
                    grid.finish(simd, finish, row, &mut sums);
                }
                grid.store(simd, output, &sums);
            }
        }
    }
}

impl<R: Rows, const ROWS: usize, const VECTORS: usize> Tiles<'_, R, ROWS, VECTORS> {
    /// Prove that all tiles lie within their operands.
    ///
    /// # Panics
    /// They do not.
    #[inline(always)]
    fn check_bounds<S: Simd>(&self) {
        let [rows, columns] = self.size;
        let whole = (VECTORS - 1) * S::LANES;
        assert!(WEIGHT_BLOCK.is_multiple_of(ROWS) && rows > 0, "rows of tiles");
        assert!(whole < columns && columns <= whole + S::LANES, "columns of tiles");
        let output = end(rows, self.output_stride, columns);
        assert!(self.output.len() >= output, "tiles lie in their output");
        let Factors { k, left, left_block, right, rows: right_rows } = self.factors;
        // Whole blocks end before the last one does, of which some rows may be missing.
        assert!(left_block >= WEIGHT_BLOCK || rows <= WEIGHT_BLOCK, "blocks of left factors");
        let blocks =
            end(rows.div_ceil(WEIGHT_BLOCK), left_block, end(k, WEIGHT_BLOCK, WEIGHT_BLOCK));
        let first = (rows - 1) % WEIGHT_BLOCK / ROWS * ROWS + ROWS;
        let unused = WEIGHT_BLOCK - first;
        assert!(left.len() >= blocks - unused, "left factors of tiles");
        let right_end = right_rows.greatest(k).checked_add(whole + S::LANES);
        assert!(right_end.is_some_and(|end| end <= right.len()), "right factors of tiles");
        let Some(finish) = &self.finish else { return };
        if let Some(residual) = finish.residual {
            assert!(residual.len() >= output, "tiles lie in their residual");
        }
        match finish.bias {
            Bias::None => {}
            Bias::Rows(bias) => assert!(bias.len() >= rows, "biases of tiles"),
            Bias::Columns(bias) => assert!(bias.len() >= columns, "biases of tiles"),
        }
    }
}

/// The elements from the first one of the first row to the last one of the last row.
fn end(rows: usize, stride: usize, columns: usize) -> usize {
    let last = (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(columns));
    last.expect("a tile lies in memory")
}

/// Add `k` products to each sum.
///
/// # Safety
/// `k` rows of `ROWS` numbers, [`WEIGHT_BLOCK`] apart, can be read from the first address, and
/// `VECTORS` vectors from each of the first `k` rows after the second one.
#[inline(always)]
#[expect(unsafe_code, reason = "the bounds are checked for all tiles")]
unsafe fn accumulate<S: Simd, R: Rows, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    k: usize,
    (left, right, rows): (*const f32, *const f32, R),
    sums: &mut [[S::Vector; VECTORS]; ROWS],
) {
    let mut rest = *sums;
    let fours = if S::UNROLLED { k / 4 * 4 } else { 0 };
    for index in (0..fours).step_by(4) {
        // SAFETY: four rows from `index` on are among the first k ones.
        unsafe {
            let left = left.add(index * WEIGHT_BLOCK);
            multiply_add(simd, left, right.add(rows.start(index)), &mut rest);
            let left = left.add(WEIGHT_BLOCK);
            multiply_add(simd, left, right.add(rows.start(index + 1)), &mut rest);
            let left = left.add(WEIGHT_BLOCK);
            multiply_add(simd, left, right.add(rows.start(index + 2)), &mut rest);
            let left = left.add(WEIGHT_BLOCK);
            multiply_add(simd, left, right.add(rows.start(index + 3)), &mut rest);
        }
    }
    for index in fours..k {
        // SAFETY: the row is one of the first k ones.
        unsafe {
            let left = left.add(index * WEIGHT_BLOCK);
            multiply_add(simd, left, right.add(rows.start(index)), &mut rest);
        }
    }
    *sums = rest;
}

/// Add the products of a number of each row with each vector.
///
/// # Safety
/// `ROWS` numbers can be read from the first address, and `VECTORS` vectors from the second one.
#[inline(always)]
#[expect(unsafe_code, reason = "the bounds are checked for all tiles")]
unsafe fn multiply_add<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    left: *const f32,
    right: *const f32,
    sums: &mut [[S::Vector; VECTORS]; ROWS],
) {
    let mut vectors = [simd.splat(0.0); VECTORS];
    for (column, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: the caller has the vectors.
        *vector = unsafe { simd.load(right.add(column * S::LANES)) };
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller has a number for each row.
        let factor = simd.splat(unsafe { left.add(row).read() });
        for (sum, vector) in sums.iter_mut().zip(vectors) {
            *sum = simd.before_loads(simd.multiply_add(factor, vector, *sum));
        }
    }
}

/// Where the vectors of a tile lie in memory.
#[derive(Clone, Copy)]
struct Grid {
    /// The rows that exist.
    rows: usize,
    /// The columns of the last vector.
    last: usize,
    /// The distance between rows.
    stride: usize,
}

#[expect(unsafe_code, reason = "the bounds are checked for all tiles")]
impl Grid {
    /// Load a row of vectors.
    ///
    /// # Safety
    /// All whole vectors, and the columns of the last one, can be read from the address.
    #[inline(always)]
    unsafe fn load_row<S: Simd, const VECTORS: usize>(
        self,
        simd: S,
        from: *const f32,
    ) -> [S::Vector; VECTORS] {
        let mut vectors = [simd.splat(0.0); VECTORS];
        for (column, vector) in vectors.iter_mut().enumerate() {
            // SAFETY: the caller has all vectors; of the last one, its columns.
            *vector = unsafe {
                let from = from.add(column * S::LANES);
                if column + 1 < VECTORS || self.last == S::LANES {
                    simd.load(from)
                } else {
                    simd.load_first(from, self.last)
                }
            };
        }
        vectors
    }

    /// Load the rows that exist.
    ///
    /// # Safety
    /// The rows and columns of the tile can be read from the address.
    #[inline(always)]
    unsafe fn load<S: Simd, const ROWS: usize, const VECTORS: usize>(
        self,
        simd: S,
        from: *const f32,
        sums: &mut [[S::Vector; VECTORS]; ROWS],
    ) {
        for (row, sums) in sums.iter_mut().enumerate() {
            if row < self.rows {
                // SAFETY: the row exists.
                *sums = unsafe { self.load_row(simd, from.add(row * self.stride)) };
            }
        }
    }

    /// Store the rows that exist.
    ///
    /// # Safety
    /// The rows and columns of the tile can be written to the address.
    #[inline(always)]
    unsafe fn store<S: Simd, const ROWS: usize, const VECTORS: usize>(
        self,
        simd: S,
        to: *mut f32,
        sums: &[[S::Vector; VECTORS]; ROWS],
    ) {
        for (row, sums) in sums.iter().enumerate() {
            if row >= self.rows {
                continue;
            }
            for (column, sum) in sums.iter().enumerate() {
                // SAFETY: the row and the vector exist; of the last one, its columns.
                unsafe {
                    let to = to.add(row * self.stride + column * S::LANES);
                    if column + 1 < VECTORS || self.last == S::LANES {
                        simd.store(to, *sum);
                    } else {
                        simd.store_first(to, self.last, *sum);
                    }
                }
            }
        }
    }

    /// Do what follows the sums of the tile whose first row is `first`.
    ///
    /// # Safety
    /// The bias has the rows or columns of the tile, and the residual both.
    #[inline(always)]
    unsafe fn finish<S: Simd, const ROWS: usize, const VECTORS: usize>(
        self,
        simd: S,
        finish: &Finish<'_>,
        first: usize,
        sums: &mut [[S::Vector; VECTORS]; ROWS],
    ) {
        let scale = simd.splat(finish.scale);
        let mut columns = [simd.splat(0.0); VECTORS];
        if let Bias::Columns(bias) = finish.bias {
            // SAFETY: the caller has the columns.
            columns = unsafe { self.load_row(simd, bias.as_ptr()) };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            if row >= self.rows {
                continue;
            }
            let mut biases = columns;
            if let Bias::Rows(bias) = finish.bias {
                // SAFETY: the caller has the row.
                biases = [simd.splat(unsafe { *bias.get_unchecked(first + row) }); VECTORS];
            }
            for (sum, bias) in sums.iter_mut().zip(biases) {
                *sum = simd.multiply_add(*sum, scale, bias);
            }
            if let Some(residual) = finish.residual {
                // SAFETY: the caller has the row.
                let residual: [S::Vector; VECTORS] = unsafe {
                    self.load_row(simd, residual.as_ptr().add((first + row) * self.stride))
                };
                for (sum, residual) in sums.iter_mut().zip(residual) {
                    *sum = simd.add(*sum, residual);
                }
            }
        }
        finish.tail.apply(simd, sums);
    }
}
