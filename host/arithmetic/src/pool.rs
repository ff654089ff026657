//! Pools: windows without weights, and what an average is divided by.

use crate::planes::{Greatest, PlaneKernel, Sum};
use crate::progress::Progress;
use crate::simd::{Kernel, Simd};
use crate::windows::Windows;
use crate::{Operands, Pool, PoolFunction, Stopped, Tail};

/// Pool the windows of each channel.
pub(crate) fn pool<S: Simd>(
    simd: S,
    description: &Pool,
    operands: Operands<'_>,
    output: &mut [f32],
    progress: &mut Progress<'_>,
) -> Result<(), Stopped> {
    let windows = Windows::new(&description.geometry);
    let tail = &Tail::NONE;
    match description.function {
        PoolFunction::Maximum => {
            let window = Greatest;
            simd.call(PlaneKernel { windows, window, tail, operands, output, progress })
        }
        PoolFunction::Average | PoolFunction::AverageWithPadding => {
            let window = Sum;
            let sums = PlaneKernel { windows, window, tail, operands, output, progress };
            simd.call(sums)?;
            let inside = description.function == PoolFunction::Average;
            simd.call(DivideKernel { windows, inside, output, progress })
        }
    }
}

/// The sums whose divisors are computed together.
const CHUNK: usize = 256;

/// Divides the sums of windows by the number of their elements.
struct DivideKernel<'a, 'b> {
    windows: Windows,
    /// Whether only elements inside of the input are counted.
    inside: bool,
    output: &'a mut [f32],
    progress: &'a mut Progress<'b>,
}

impl Kernel for DivideKernel<'_, '_> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Result<(), Stopped> {
        let windows = &self.windows;
        let [rows, columns] = windows.output;
        let size = windows.kernel[0] * windows.kernel[1];
        let mut counts = [0.0; CHUNK];
        let mut known = None;
        for (index, row) in self.output.chunks_exact_mut(columns).enumerate() {
            let height = windows.values_inside(0, index % rows);
            for (chunk, sums) in row.chunks_mut(CHUNK).enumerate() {
                self.progress.spend(4 * sums.len())?;
                let counts = &mut counts[..sums.len()];
                // The windows of most rows have the same sizes as those of the row before.
                if known != Some((chunk, height)) {
                    known = Some((chunk, height));
                    for (column, count) in counts.iter_mut().enumerate() {
                        let width = windows.values_inside(1, chunk * CHUNK + column);
                        *count = if self.inside { (height * width).max(1) } else { size } as f32;
                    }
                }
                divide(simd, sums, counts);
            }
        }
        Ok(())
    }
}

/// Divide each number by another one.
#[inline(always)]
fn divide<S: Simd>(simd: S, numbers: &mut [f32], divisors: &[f32]) {
    let mut vectors = numbers.chunks_exact_mut(S::LANES);
    let mut divisors = divisors.chunks_exact(S::LANES);
    for (numbers, divisors) in (&mut vectors).zip(&mut divisors) {
        let quotient = simd.divide(simd.load_slice(numbers), simd.load_slice(divisors));
        simd.store_slice(numbers, quotient);
    }
    let numbers = vectors.into_remainder();
    if !numbers.is_empty() {
        let divisors = simd.load_short(divisors.remainder());
        let quotient = simd.divide(simd.load_short(numbers), divisors);
        simd.store_short(numbers, quotient);
    }
}
