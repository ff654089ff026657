//! Softmax, reductions and layer normalisation.

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, Softmax, SoftmaxKind};

use super::{Graph, unary};

pub(super) fn softmax(axis: usize) -> Softmax {
    Softmax { axes: tvec!(axis), quant_output_dt: None, kind: SoftmaxKind::Softmax }
}

#[test]
fn softmax_over_the_last_axis_is_ours() {
    let mut graph = Graph::new();
    let input = graph.rows(3, &[4, 21]);
    let output = graph.wire(softmax(2), &[input]);
    graph.check(&[output], &["ArithmeticSoftmax"]);
}

#[test]
fn softmax_over_another_axis_is_ours_between_transpositions() {
    for axis in [0, 1] {
        let mut graph = Graph::new();
        let input = graph.input(&[3, 4, 21]);
        let output = graph.wire(softmax(axis), &[input]);
        let operations = graph.compare(&[output]);
        assert!(operations.contains(&"ArithmeticSoftmax".to_owned()), "{operations:?}");
    }
}

#[test]
fn softmax_over_several_innermost_axes_is_ours() {
    let mut graph = Graph::new();
    let input = graph.rows(3, &[4, 21]);
    let softmax = Softmax { axes: tvec!(1, 2), quant_output_dt: None, kind: SoftmaxKind::Softmax };
    let output = graph.wire(softmax, &[input]);
    graph.check(&[output], &["ArithmeticSoftmax"]);
}

#[test]
fn the_logarithm_of_a_softmax_is_ours() {
    for axis in [1, 2] {
        let mut graph = Graph::new();
        let input = graph.rows(3, &[4, 21]);
        let softmax =
            Softmax { axes: tvec!(axis), quant_output_dt: None, kind: SoftmaxKind::LogSoftmax };
        let output = graph.wire(softmax, &[input]);
        let operations = graph.compare(&[output]);
        assert!(!operations.contains(&"Softmax".to_owned()), "{operations:?}");
        assert_eq!(operations.iter().filter(|name| *name == "Binary").count(), 2);
    }
}

#[test]
fn reductions_over_the_innermost_axes_are_ours() {
    for reducer in [Reducer::Sum, Reducer::Max, Reducer::Min, Reducer::MeanOfSquares] {
        let mut graph = Graph::new();
        let input = graph.rows(3, &[4, 5, 6]);
        let output = graph.wire(Reduce { axes: tvec!(2, 3), reducer }, &[input]);
        graph.check(&[output], &["Reduction"]);
    }
}

#[test]
fn reductions_over_other_axes_are_ours() {
    for reducer in [Reducer::Sum, Reducer::Max] {
        for axes in [&[0][..], &[1], &[2], &[0, 1], &[1, 2]] {
            let mut graph = Graph::new();
            let input = graph.rows(3, &[4, 5, 6]);
            let output = graph.wire(Reduce { axes: axes.into(), reducer }, &[input]);
            let operations = graph.compare(&[output]);
            assert!(operations.contains(&"Reduction".to_owned()), "{operations:?}");
        }
    }
}

#[test]
fn reductions_over_axes_with_gaps_stay_with_tract() {
    let mut graph = Graph::new();
    let input = graph.rows(3, &[4, 5, 6]);
    let output = graph.wire(Reduce { axes: tvec!(1, 3), reducer: Reducer::Sum }, &[input]);
    let operations = graph.compare(&[output]);
    assert!(!operations.contains(&"Reduction".to_owned()), "{operations:?}");
}

#[test]
fn a_mean_is_one_operation() {
    let mut graph = Graph::new();
    let input = graph.rows(3, &[4, 5]);
    let sum = graph.wire(Reduce { axes: tvec!(2), reducer: Reducer::Sum }, &[input]);
    let output = graph.with(math::mul(), sum, 0.2);
    graph.check(&[output], &["Reduction"]);
}

#[test]
fn layer_norm_is_put_together_from_its_pieces() {
    for (has_gain, has_bias) in [(true, true), (true, false), (false, false)] {
        let mut graph = Graph::new();
        let input = graph.rows(3, &[4, 40]);
        let mean = |graph: &mut Graph, input| {
            let sum = graph.wire(Reduce { axes: tvec!(2), reducer: Reducer::Sum }, &[input]);
            graph.with(math::mul(), sum, 40_f32.recip())
        };
        let centre = mean(&mut graph, input);
        let centred = graph.wire(math::sub(), &[input, centre]);
        let squares = unary(math::square(), &mut graph, centred);
        let variance = mean(&mut graph, squares);
        let variance = graph.with(math::add(), variance, 1e-5);
        let deviation = unary(math::sqrt(), &mut graph, variance);
        let mut output = graph.wire(math::div(), &[centred, deviation]);
        if has_gain {
            let gain = graph.constant(&[1, 1, 40]);
            output = graph.wire(math::mul(), &[output, gain]);
        }
        if has_bias {
            let bias = graph.constant(&[1, 1, 40]);
            output = graph.wire(math::add(), &[output, bias]);
        }
        graph.check(&[output], &["LayerNorm"]);
    }
}
