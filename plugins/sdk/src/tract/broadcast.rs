//! Element-wise operations with two operands that are broadcast to a common shape.

use guesthouse_arithmetic::{Binary, BinaryFunction};
use tract_onnx::tract_core::internal::*;

use super::node::size;

/// The dimensions that an operation takes.
pub(super) const DIMENSIONS: usize = 4;

/// A run of neighbouring dimensions that are one in memory.
struct Run<D> {
    size: D,
    /// Whether the operands have these dimensions, or are repeated along them.
    is_in: [bool; 2],
}

/// Join neighbouring dimensions along which the same operands are repeated. Fails if sizes differ
/// and none of them is 1.
fn runs<D: DimLike>(shapes: [&[D]; 2]) -> Option<TVec<Run<D>>> {
    let mut runs: TVec<Run<D>> = tvec!();
    for (left, right) in shapes[0].iter().zip(shapes[1]) {
        let is_in = [!left.is_one(), !right.is_one()];
        let size = match is_in {
            [false, false] => continue,
            [true, true] if left != right => return None,
            [true, _] => left.clone(),
            [false, true] => right.clone(),
        };
        match runs.last_mut() {
            Some(last) if last.is_in == is_in => last.size = last.size.clone() * size,
            _ => runs.push(Run { size, is_in }),
        }
    }
    Some(runs)
}

/// Whether operands of these shapes can be combined, whatever the values of their symbols are.
pub(super) fn is_possible(left: &ShapeFact, right: &ShapeFact) -> bool {
    left.rank() == right.rank()
        && runs([left.dims(), right.dims()]).is_some_and(|runs| runs.len() <= DIMENSIONS)
}

/// Describe the combination of operands of these shapes, and the shape of the result.
pub(super) fn resolve(
    function: BinaryFunction,
    left: &[usize],
    right: &[usize],
) -> TractResult<(Binary, TVec<usize>)> {
    ensure!(left.len() == right.len(), "the operands have different ranks");
    let runs = runs([left, right]).context("the operands have different sizes")?;
    ensure!(runs.len() <= DIMENSIONS, "the operands are interleaved more often than supported");
    let mut shape = [1; DIMENSIONS];
    let mut strides = [[0; DIMENSIONS]; 2];
    let mut next = [1, 1];
    for (dimension, run) in (0..DIMENSIONS).rev().zip(runs.iter().rev()) {
        shape[dimension] = size(run.size)?;
        for operand in 0..2 {
            if run.is_in[operand] {
                strides[operand][dimension] = size(next[operand])?;
                next[operand] *= run.size;
            }
        }
    }
    let [left_strides, right_strides] = strides;
    let output =
        left.iter().zip(right).map(|(left, right)| if *left == 1 { *right } else { *left });
    let binary = Binary { function, shape, left: left_strides, right: right_strides };
    Ok((binary, output.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(left: &[usize], right: &[usize]) -> (Binary, TVec<usize>) {
        resolve(BinaryFunction::Add, left, right).unwrap()
    }

    #[test]
    fn equal_shapes_are_one_run() {
        let (binary, shape) = resolved(&[2, 3, 4, 5, 6], &[2, 3, 4, 5, 6]);
        assert_eq!(binary.shape, [1, 1, 1, 720]);
        assert_eq!((binary.left, binary.right), ([0, 0, 0, 1], [0, 0, 0, 1]));
        assert_eq!(&*shape, &[2, 3, 4, 5, 6]);
    }

    #[test]
    fn an_operand_by_channel_is_repeated_along_the_others() {
        let (binary, shape) = resolved(&[2, 3, 4, 5], &[1, 3, 1, 1]);
        assert_eq!(binary.shape, [1, 2, 3, 20]);
        assert_eq!((binary.left, binary.right), ([0, 60, 20, 1], [0, 0, 1, 0]));
        assert_eq!(&*shape, &[2, 3, 4, 5]);
    }

    #[test]
    fn both_operands_can_be_repeated() {
        let (binary, shape) = resolved(&[4, 1], &[1, 3]);
        assert_eq!(binary.shape, [1, 1, 4, 3]);
        assert_eq!((binary.left, binary.right), ([0, 0, 1, 0], [0, 0, 0, 1]));
        assert_eq!(&*shape, &[4, 3]);
    }

    #[test]
    fn sizes_that_differ_are_refused() {
        assert!(resolve(BinaryFunction::Add, &[2, 3], &[2, 4]).is_err());
        let symbols = SymbolScope::default();
        let shape = |dims: [TDim; 2]| ShapeFact::from_dims(dims);
        let (rows, columns) = (symbols.sym("rows"), symbols.sym("columns"));
        let left = shape([rows.into(), 3.into()]);
        assert!(is_possible(&left, &left));
        assert!(!is_possible(&left, &shape([columns.into(), 3.into()])));
    }
}
