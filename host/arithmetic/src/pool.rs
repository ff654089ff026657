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
    fn run<S: Simd>(self, _simd: S) -> Result<(), Stopped> {
        let windows = &self.windows;
        let [rows, columns] = windows.output;
        for (index, row) in self.output.chunks_exact_mut(columns).enumerate() {
            let height = self.windows.values_inside(0, index % rows);
            self.progress.spend(8 * columns)?;
            for (column, sum) in row.iter_mut().enumerate() {
                let count = if self.inside {
                    (height * windows.values_inside(1, column)).max(1)
                } else {
                    windows.kernel[0] * windows.kernel[1]
                };
                *sum /= count as f32;
            }
        }
        Ok(())
    }
}
