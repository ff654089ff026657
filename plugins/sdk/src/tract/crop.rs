//! Removes the rows and columns of a kernel that cover only padding, such as those of a large kernel
//! on an image of a few rows.

use std::ops::Range;

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::{PaddingSpec, PoolSpec};

/// The windows with a smaller kernel, without the rows and columns that cover only padding in an input
/// of this height and width, and the weights that stay, kernel by kernel.
pub(super) fn cropped(
    pool: &PoolSpec,
    input: &[usize],
    weights: &[f32],
) -> Option<(PoolSpec, Vec<f32>)> {
    let (strides, dilations) = (pool.strides(), pool.dilations());
    let sizes = pool.computed_padding(input);
    let used: TVec<Range<usize>> = (0..pool.rank())
        .map(|axis| {
            let (before, count) = (sizes[axis].pad_before, sizes[axis].convoluted);
            let covers_input = |tap: &usize| {
                let first = tap * dilations[axis];
                (0..count)
                    .map(|window| window * strides[axis] + first)
                    .any(|place| (before..before + input[axis]).contains(&place))
            };
            let taps = 0..pool.kernel_shape[axis];
            // A tap is only left out in front if it lies in the padding of the first window.
            let in_padding = |tap: &usize| (tap + 1) * dilations[axis] <= before;
            let start =
                taps.clone().take_while(|tap| !covers_input(tap) && in_padding(tap)).count();
            let end = taps.clone().rev().find(covers_input).map_or(taps.end, |tap| tap + 1);
            start..end.max(start + 1)
        })
        .collect();
    let kernel: TVec<usize> = used.iter().map(ExactSizeIterator::len).collect();
    if kernel == pool.kernel_shape {
        return None;
    }
    let (mut before, mut after) = (tvec!(), tvec!());
    for axis in 0..pool.rank() {
        before.push(sizes[axis].pad_before - used[axis].start * dilations[axis]);
        let extent =
            (sizes[axis].convoluted - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1;
        after.push(extent.saturating_sub(input[axis] + before[axis]));
    }
    let padding = PaddingSpec::Explicit(before, after);
    let smaller = PoolSpec { kernel_shape: kernel, padding, ..pool.clone() };
    let counts = |pool: &PoolSpec| -> TVec<usize> {
        pool.computed_padding(input).iter().map(|size| size.convoluted).collect()
    };
    (counts(&smaller) == counts(pool)).then(|| {
        let taps = pool.kernel_shape.iter().product::<usize>().max(1);
        let kernels = weights.chunks_exact(taps);
        let kept = kernels.flat_map(|weights| crop(weights, &pool.kernel_shape, &used));
        let kept = kept.collect();
        (smaller, kept)
    })
}

/// The weights of a kernel of one or two dimensions that are used.
fn crop(weights: &[f32], kernel: &[usize], used: &[Range<usize>]) -> Vec<f32> {
    match (kernel, used) {
        ([_], [columns]) => weights[columns.clone()].to_vec(),
        ([_, width], [rows, columns]) => {
            let rows = weights.chunks_exact(*width).skip(rows.start).take(rows.len());
            rows.flat_map(|row| &row[columns.clone()]).copied().collect()
        }
        _ => weights.to_vec(),
    }
}
