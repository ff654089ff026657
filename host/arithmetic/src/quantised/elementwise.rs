//! Sums of two u8 tensors, and conversions between u8 and f32.

use super::simd::{IntegerKernel, IntegerSimd, MAX_LANES, Numbers};
use super::target::ToU8;
use super::{Quantisation, QuantisedSum};
use crate::Stopped;
use crate::progress::Progress;
use crate::simd::Simd;

/// The elements between two questions whether to stop.
const CHUNK: usize = 4096;

/// A function of elements to u8.
pub(crate) struct ToU8Kernel<'a, 'b, F> {
    pub(crate) function: F,
    pub(crate) target: ToU8,
    pub(crate) output: &'a mut [u8],
    pub(crate) progress: &'a mut Progress<'b>,
}

/// What is rounded to u8.
pub(crate) trait Function: Copy {
    /// The numbers of the elements from `start` on, of which `count` exist.
    fn numbers<I: IntegerSimd>(self, simd: I, start: usize, count: usize) -> Numbers<I>;
}

/// A sum of two tensors of equal length.
#[derive(Clone, Copy)]
pub(crate) struct Sum<'a> {
    factors: [f32; 2],
    constant: f32,
    operands: [&'a [u8]; 2],
}

impl<'a> Sum<'a> {
    pub(crate) fn new(sum: &QuantisedSum, operands: [&'a [u8]; 2]) -> Self {
        let factors = [sum.left.scale / sum.scale, sum.right.scale / sum.scale];
        let [left, right] = [sum.left, sum.right].map(|operand| f32::from(operand.zero_point));
        let zero_points = factors[0].mul_add(left, factors[1] * right);
        Self { factors, constant: f32::from(sum.output.zero_point) - zero_points, operands }
    }
}

impl Function for Sum<'_> {
    #[inline(always)]
    fn numbers<I: IntegerSimd>(self, simd: I, start: usize, count: usize) -> Numbers<I> {
        let floats = simd.floats();
        let left = load(simd, &self.operands[0][start..][..count]);
        let right = load(simd, &self.operands[1][start..][..count]);
        let [left_factor, right_factor] = floats.splat_pair(self.factors);
        let right = floats.multiply_add(right_factor, right, floats.splat(self.constant));
        floats.multiply_add(left_factor, left, right)
    }
}

/// Quotients of numbers and a scale.
#[derive(Clone, Copy)]
pub(crate) struct Quotient<'a> {
    pub(crate) scale: f32,
    pub(crate) numbers: &'a [f32],
}

impl Function for Quotient<'_> {
    #[inline(always)]
    fn numbers<I: IntegerSimd>(self, simd: I, start: usize, count: usize) -> Numbers<I> {
        let floats = simd.floats();
        let numbers = &self.numbers[start..][..count];
        let numbers = if count == I::Floats::LANES {
            floats.load_slice(numbers)
        } else {
            floats.load_short(numbers)
        };
        floats.divide(numbers, floats.splat(self.scale))
    }
}

impl<F: Function> IntegerKernel for ToU8Kernel<'_, '_, F> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<I: IntegerSimd>(self, simd: I) -> Result<(), Stopped> {
        for (chunk, output) in self.output.chunks_mut(CHUNK).enumerate() {
            self.progress.spend(2 * output.len())?;
            for (vector, output) in output.chunks_mut(I::Floats::LANES).enumerate() {
                let start = chunk * CHUNK + vector * I::Floats::LANES;
                let numbers = self.function.numbers(simd, start, output.len());
                let values = self.target.values(simd, numbers);
                // SAFETY: the chunk has a byte for each lane, or fewer and as many as it says.
                #[expect(unsafe_code, reason = "it writes to a pointer")]
                unsafe {
                    if output.len() == I::Floats::LANES {
                        simd.store_bytes(output.as_mut_ptr(), values);
                    } else {
                        simd.store_first_bytes(output.as_mut_ptr(), output.len(), values);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The numbers of u8 values.
pub(crate) struct DequantiseKernel<'a, 'b> {
    pub(crate) quantisation: Quantisation,
    pub(crate) values: &'a [u8],
    pub(crate) output: &'a mut [f32],
    pub(crate) progress: &'a mut Progress<'b>,
}

impl IntegerKernel for DequantiseKernel<'_, '_> {
    type Output = Result<(), Stopped>;

    #[inline(always)]
    fn run<I: IntegerSimd>(self, simd: I) -> Result<(), Stopped> {
        let floats = simd.floats();
        let zero_point = floats.splat(self.quantisation.zero_point.into());
        let scale = floats.splat(self.quantisation.scale);
        for (values, output) in self.values.chunks(CHUNK).zip(self.output.chunks_mut(CHUNK)) {
            self.progress.spend(2 * output.len())?;
            let lanes = I::Floats::LANES;
            for (values, output) in values.chunks(lanes).zip(output.chunks_mut(lanes)) {
                let numbers = floats.subtract(load(simd, values), zero_point);
                let numbers = floats.multiply(numbers, scale);
                if output.len() == lanes {
                    floats.store_slice(output, numbers);
                } else {
                    floats.store_short(output, numbers);
                }
            }
        }
        Ok(())
    }
}

/// The numbers of at most a vector's u8.
#[inline(always)]
fn load<I: IntegerSimd>(simd: I, values: &[u8]) -> Numbers<I> {
    let mut bytes = [0; MAX_LANES];
    let from = if values.len() == I::Floats::LANES {
        values.as_ptr()
    } else {
        bytes[..values.len()].copy_from_slice(values);
        bytes.as_ptr()
    };
    // SAFETY: the slice has a byte for each lane, or the array has.
    #[expect(unsafe_code, reason = "it reads from a pointer")]
    simd.to_numbers(unsafe { simd.load_bytes(from) })
}
