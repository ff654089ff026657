//! Reductions of neighbouring axes.
//!
//! There is an operation for rows. Along other axes, a sum is a matrix product with a row of ones,
//! and a maximum is one of windows that have one column.

use std::ops::Range;

use guesthouse_arithmetic::{
    Convolution, MatrixProduct, Operands, Operation, Pool, PoolFunction, Reduction,
    ReductionFunction, RightOperand, Tail,
};
use tract_onnx::tract_core::internal::*;

use super::node::{Resolved, size};

/// Whether there is an operation for it.
pub(super) fn is_possible(function: ReductionFunction, axes: &Range<usize>, rank: usize) -> bool {
    axes.end == rank || matches!(function, ReductionFunction::Sum | ReductionFunction::Maximum)
}

/// Describe the reduction of these axes, which stay with size 1.
pub(super) fn resolve(
    function: ReductionFunction,
    axes: Range<usize>,
    scale: f32,
    input: &[usize],
) -> TractResult<Resolved> {
    ensure!(axes.end <= input.len(), "more axes than there are");
    let count = |axes: &[usize]| size(axes.iter().product());
    let [outer, reduced, inner] =
        [count(&input[..axes.start])?, count(&input[axes.clone()])?, count(&input[axes.end..])?];
    let step = count(&input[axes.start..])?;
    let mut shape: TVec<usize> = input.into();
    shape[axes].fill(1);
    let operation = match function {
        _ if inner == 1 => Operation::Reduction(Reduction { function, columns: reduced, scale }),
        ReductionFunction::Sum => {
            let product = MatrixProduct {
                batch: [1, outer],
                size: [1, inner, reduced],
                left: [0; 4],
                right: RightOperand::Strided([0, step, inner, 1]),
                output: [0, inner, 0],
                scale,
            };
            Operation::MatrixProduct(product, Tail::NONE)
        }
        ReductionFunction::Maximum => {
            ensure!(scale == 1.0, "a maximum is not scaled");
            let geometry = Convolution {
                batch: outer,
                input_channels: 1,
                output_channels: 1,
                input: [reduced, inner],
                output: [1, inner],
                kernel: [reduced, 1],
                stride: [1; 2],
                padding: [0; 2],
                dilation: [1; 2],
            };
            Operation::Pool(Pool { function: PoolFunction::Maximum, geometry })
        }
        ReductionFunction::SumOfSquares | ReductionFunction::Minimum => {
            bail!("there is no such reduction of outer axes")
        }
    };
    Ok(Resolved::new(operation, shape))
}

/// The operands of a reduction of this input.
pub(super) fn operands<'a>(operation: &Operation, input: &'a [f32]) -> Operands<'a> {
    match operation {
        Operation::MatrixProduct(..) => {
            Operands { first: &[1.0], second: input, ..Operands::default() }
        }
        _ => Operands { first: input, ..Operands::default() },
    }
}
