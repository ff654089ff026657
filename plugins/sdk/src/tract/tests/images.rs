//! Convolutions, pooling, and what they absorb.

use guesthouse_arithmetic::{Activation, Tail};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::{
    Conv, Deconv, KernelFormat, MaxPool, PaddingSpec, PoolSpec, SumPool,
};
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::DataFormat;

use super::{Graph, tails, unary};
use crate::tract::node::{Kind, Node};

/// A window and where it is applied.
#[derive(Clone)]
struct Window {
    kernel: TVec<usize>,
    stride: usize,
    dilation: usize,
    padding: PaddingSpec,
}

impl Window {
    fn square(size: usize) -> Self {
        Self { kernel: tvec!(size, size), stride: 1, dilation: 1, padding: PaddingSpec::Valid }
    }

    fn strided(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    fn padded(self, by: usize) -> Self {
        let by = tvec!(by; self.kernel.len());
        Self { padding: PaddingSpec::Explicit(by.clone(), by), ..self }
    }

    fn pool(&self, inputs: usize, outputs: usize) -> PoolSpec {
        PoolSpec {
            data_format: DataFormat::NCHW,
            kernel_shape: self.kernel.clone(),
            padding: self.padding.clone(),
            dilations: Some(tvec!(self.dilation; self.kernel.len())),
            strides: Some(tvec!(self.stride; self.kernel.len())),
            input_channels: inputs,
            output_channels: outputs,
        }
    }
}

fn convolution(
    graph: &mut Graph,
    input: OutletId,
    [inputs, outputs, group]: [usize; 3],
    window: &Window,
) -> OutletId {
    let mut shape = tvec!(outputs, inputs / group);
    shape.extend(window.kernel.iter().copied());
    let (weights, bias) = (graph.constant(&shape), graph.constant(&[outputs]));
    let pool_spec = window.pool(inputs, outputs);
    let conv = Conv { pool_spec, kernel_fmt: KernelFormat::OIHW, group, q_params: None };
    graph.wire(conv, &[input, weights, bias])
}

#[test]
fn convolutions_of_all_geometries_are_ours() {
    let windows = [
        Window::square(1),
        Window::square(1).strided(2),
        Window::square(3).padded(1),
        Window::square(3).strided(2),
        Window { dilation: 2, ..Window::square(3).padded(2) },
        Window { padding: PaddingSpec::SameUpper, ..Window::square(4).strided(2) },
        Window { padding: PaddingSpec::SameLower, ..Window::square(2) },
        Window { kernel: tvec!(1, 5), ..Window::square(1) },
    ];
    for window in windows {
        for (channels, name) in [([5, 11, 1], "Convolution"), ([6, 6, 6], "DepthwiseConvolution")] {
            for rows in [1, 3] {
                let mut graph = Graph::new();
                let input = graph.rows(rows, &[channels[0], 9, 10]);
                let output = convolution(&mut graph, input, channels, &window);
                graph.check(&[output], &[name]);
            }
        }
    }
}

#[test]
fn a_convolution_of_one_dimension_is_ours() {
    let mut graph = Graph::new();
    let input = graph.input(&[2, 3, 17]);
    let window = Window { kernel: tvec!(5), ..Window::square(5) };
    let output = convolution(&mut graph, input, [3, 4, 1], &window.padded(2));
    graph.check(&[output], &["Convolution"]);
}

#[test]
fn kernels_lose_what_only_meets_padding() {
    let windows = [
        (Window::square(5).padded(2), [2, 9], [3, 5]),
        (Window::square(5).padded(2), [1, 2], [1, 3]),
        (Window::square(5).padded(2).strided(2), [2, 9], [2, 5]),
        (Window { dilation: 2, ..Window::square(3).padded(2) }, [2, 1], [1, 1]),
        (Window { padding: PaddingSpec::SameUpper, ..Window::square(5) }, [1, 9], [1, 5]),
        (Window::square(3).padded(3), [4, 4], [3, 3]),
    ];
    for (window, [height, width], kernel) in windows {
        for (channels, name) in [([5, 11, 1], "Convolution"), ([6, 6, 6], "DepthwiseConvolution")] {
            let mut graph = Graph::new();
            let input = graph.input(&[2, channels[0], height, width]);
            let output = convolution(&mut graph, input, channels, &window);
            graph.model.select_output_outlets(&[output]).unwrap();
            let mut rewritten = graph.model.clone();
            super::rewrite(&mut rewritten).unwrap();
            let ours = rewritten.nodes().iter().find_map(|node| node.op_as::<Node>()).unwrap();
            let Kind::Convolution(convolution) = &ours.kind else { unreachable!() };
            assert_eq!(convolution.pool.kernel_shape[..], kernel, "{height}x{width}");
            graph.check(&[output], &[name]);
        }
    }
}

#[test]
fn grouped_convolutions_are_ours_with_what_they_absorb() {
    // Two and three channels in a group, and two kernels for each channel.
    for channels in [[4, 8, 2], [12, 12, 4], [5, 10, 5]] {
        for rows in [1, 3] {
            let mut graph = Graph::new();
            let input = graph.rows(rows, &[channels[0], 7, 6]);
            let window = Window::square(3).padded(1);
            let output = convolution(&mut graph, input, channels, &window);
            let factors = graph.constant(&[1, channels[1], 1, 1]);
            let output = graph.wire(math::mul(), &[output, factors]);
            let residual = graph.rows(rows, &[channels[1], 7, 6]);
            let output = graph.wire(math::add(), &[output, residual]);
            let output = graph.with(math::max(), output, 0.0);
            graph.check(&[output], &["Convolution"]);
        }
    }
}

#[test]
fn constants_by_channel_become_weights() {
    for (channels, name) in [([5, 11, 1], "Convolution"), ([6, 6, 6], "DepthwiseConvolution")] {
        let mut graph = Graph::new();
        let input = graph.rows(2, &[channels[0], 7, 7]);
        let output = convolution(&mut graph, input, channels, &Window::square(3));
        let factors = graph.constant(&[1, channels[1], 1, 1]);
        let output = graph.wire(math::mul(), &[factors, output]);
        let summands = graph.constant(&[1, channels[1], 1, 1]);
        let output = graph.wire(math::sub(), &[output, summands]);
        let output = graph.with(math::mul(), output, 0.5);
        let output = graph.with(math::add(), output, 0.1);
        graph.check(&[output], &[name]);
    }
}

#[test]
fn a_residual_and_an_activation_join_the_convolution() {
    let mut graph = Graph::new();
    let input = graph.rows(2, &[6, 7, 7]);
    let window = Window::square(3).padded(1);
    let first = convolution(&mut graph, input, [6, 6, 1], &window);
    let sum = graph.wire(math::add(), &[input, first]);
    let output = graph.with(math::max(), sum, 0.0);
    graph.check(&[output], &["Convolution"]);
}

#[test]
fn a_result_that_is_used_twice_is_kept() {
    let mut graph = Graph::new();
    let input = graph.input(&[1, 6, 7, 7]);
    let first = convolution(&mut graph, input, [6, 6, 1], &Window::square(3));
    let output = graph.with(math::max(), first, 0.0);
    graph.check(&[output, first], &["Convolution", "Unary"]);
}

#[test]
fn hard_swish_joins_the_convolution_in_both_forms() {
    for of_six in [true, false] {
        let mut graph = Graph::new();
        let input = graph.input(&[1, 6, 7, 7]);
        let x = convolution(&mut graph, input, [6, 8, 1], &Window::square(3));
        let output = if of_six {
            let bounded = graph.with(math::add(), x, 3.0);
            let bounded = graph.with(math::max(), bounded, 0.0);
            let bounded = graph.with(math::min(), bounded, 6.0);
            let product = graph.wire(math::mul(), &[x, bounded]);
            graph.with(math::div(), product, 6.0)
        } else {
            let bounded = graph.with(math::mul(), x, 6_f32.recip());
            let bounded = graph.with(math::add(), bounded, 0.5);
            let bounded = graph.with(math::min(), bounded, 1.0);
            let bounded = graph.with(math::max(), bounded, 0.0);
            graph.wire(math::mul(), &[bounded, x])
        };
        graph.check(&[output], &["Convolution"]);
    }
}

#[test]
fn bounds_join_to_one_activation() {
    let mut graph = Graph::new();
    let input = graph.input(&[1, 6, 7, 7]);
    let output = convolution(&mut graph, input, [6, 8, 1], &Window::square(3));
    let output = graph.with(math::max(), output, 0.0);
    let output = graph.with(math::min(), output, 6.0);
    let tail = Tail { activation: Activation::Clip(0.0, 6.0), ..Tail::NONE };
    assert_eq!(tails(graph, output), [tail]);
}

#[test]
fn a_squeeze_and_excitation_is_ours() {
    let mut graph = Graph::new();
    let input = graph.rows(2, &[16, 7, 7]);
    let reduce = tract_onnx::tract_core::ops::nn::Reduce {
        axes: tvec!(2, 3),
        reducer: tract_onnx::tract_core::ops::nn::Reducer::Sum,
    };
    let sum = graph.wire(reduce, &[input]);
    let mean = graph.with(math::mul(), sum, 49_f32.recip());
    let squeezed = convolution(&mut graph, mean, [16, 4, 1], &Window::square(1));
    let squeezed = graph.with(math::max(), squeezed, 0.0);
    let excited = convolution(&mut graph, squeezed, [4, 16, 1], &Window::square(1));
    let excited = unary(tract_onnx::tract_core::ops::nn::sigmoid(), &mut graph, excited);
    let output = graph.wire(math::mul(), &[input, excited]);
    graph.check(&[output], &["Reduction", "Convolution", "Convolution", "Binary"]);
}

#[test]
fn factors_of_channels_join_the_convolution_behind() {
    for kernel in [1, 3] {
        for rows in [1, 3] {
            let mut graph = Graph::new();
            let (input, squeezed) = (graph.rows(rows, &[16, 9, 9]), graph.rows(rows, &[16, 1, 1]));
            let excited = unary(math::tanh(), &mut graph, squeezed);
            let product = graph.wire(math::mul(), &[excited, input]);
            let window = Window::square(kernel).padded(kernel / 2);
            let output = convolution(&mut graph, product, [16, 8, 1], &window);
            let residual = graph.rows(rows, &[8, 9, 9]);
            let output = graph.wire(math::add(), &[output, residual]);
            let output = graph.with(math::max(), output, 0.0);
            graph.check(&[output], &["Unary", "Convolution"]);
        }
    }
}

#[test]
fn a_residual_of_an_excitation_joins_it() {
    let mut graph = Graph::new();
    let (input, squeezed) = (graph.rows(2, &[16, 7, 7]), graph.rows(2, &[4, 1, 1]));
    let excited = convolution(&mut graph, squeezed, [4, 16, 1], &Window::square(1));
    let excited = unary(tract_onnx::tract_core::ops::nn::sigmoid(), &mut graph, excited);
    let product = graph.wire(math::mul(), &[input, excited]);
    let output = graph.wire(math::add(), &[input, product]);
    graph.check(&[output], &["Convolution", "Binary"]);
}

#[test]
fn pools_of_all_geometries_are_ours() {
    let windows = [
        Window::square(2).strided(2),
        Window::square(3).padded(1),
        Window { padding: PaddingSpec::SameUpper, ..Window::square(3).strided(2) },
        Window {
            padding: PaddingSpec::ExplicitOnnxPool(tvec!(1, 1), tvec!(1, 1), true),
            ..Window::square(3).strided(2)
        },
    ];
    for window in windows {
        let is_rounded_up = matches!(window.padding, PaddingSpec::ExplicitOnnxPool(_, _, true));
        let pool_spec = window.pool(3, 3);
        let maximum = MaxPool { pool_spec: pool_spec.clone(), with_index_outputs: None };
        let mut graph = Graph::new();
        let input = graph.rows(2, &[3, 8, 9]);
        let output = graph.wire(maximum, &[input]);
        graph.check(&[output], &["Pool"]);
        for count_include_pad in [true, false] {
            let mean = SumPool { pool_spec: pool_spec.clone(), count_include_pad, normalize: true };
            let mut graph = Graph::new();
            let input = graph.rows(2, &[3, 8, 9]);
            let output = graph.wire(mean, &[input]);
            let is_ours = !count_include_pad || !is_rounded_up;
            graph.check(&[output], &[if is_ours { "Pool" } else { "SumPool" }]);
        }
    }
}

#[test]
fn a_deconvolution_is_ours() {
    for (window, adjustments) in [
        (Window::square(2).strided(2), tvec!(0, 0)),
        (Window::square(3).strided(2).padded(1), tvec!(1, 1)),
        (Window { dilation: 2, ..Window::square(3) }, tvec!(0, 0)),
    ] {
        let mut graph = Graph::new();
        let input = graph.rows(2, &[4, 5, 6]);
        let (weights, bias) =
            (graph.constant(&[7, 4, window.kernel[0], window.kernel[1]]), graph.constant(&[7]));
        let pool_spec = window.pool(4, 7);
        let deconv = Deconv { pool_spec, kernel_format: KernelFormat::OIHW, adjustments, group: 1 };
        let output = graph.wire(deconv, &[input, weights, bias]);
        let output = unary(tract_onnx::tract_core::ops::nn::sigmoid(), &mut graph, output);
        graph.check(&[output], &["Deconvolution"]);
    }
}

#[test]
fn an_image_with_channels_last_is_transposed_by_tract() {
    let mut graph = Graph::new();
    let input = graph.input(&[1, 8, 9, 3]);
    let channels_first = graph.wire(AxisOp::Move(3, 1), &[input]);
    let output = convolution(&mut graph, channels_first, [3, 8, 1], &Window::square(3));
    let output = graph.with(math::max(), output, 0.0);
    let output = graph.wire(AxisOp::Move(1, 3), &[output]);
    graph.model.select_output_outlets(&[output]).unwrap();
    graph.check(&[output], &["MoveAxis", "Convolution", "MoveAxis"]);
}
