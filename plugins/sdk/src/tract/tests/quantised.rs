//! Operations on 8-bit tensors, compared with tract's computation in f32: a value may fall to the
//! other side of a step.

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx::tract_core::ops::quant::{
    DequantizeLinearF32, quantize_linear_i8, quantize_linear_u8,
};

use super::{Graph, in_steps, operations, rewrite};

const SCALE: f32 = 1.0 / 64.0;

/// A quantisation of all values in a graph.
#[derive(Clone, Copy)]
struct Values {
    is_signed: bool,
    zero_point: i32,
}

const UNSIGNED: Values = Values { is_signed: false, zero_point: 131 };
const SIGNED: Values = Values { is_signed: true, zero_point: 3 };

impl Graph {
    fn quantised(&mut self, operand: OutletId, values: Values, scale: f32) -> OutletId {
        let operation = if values.is_signed {
            quantize_linear_i8(scale.recip(), i8::try_from(values.zero_point).unwrap())
        } else {
            quantize_linear_u8(scale.recip(), u8::try_from(values.zero_point).unwrap())
        };
        self.wire(operation, &[operand])
    }

    fn dequantised(&mut self, operand: OutletId, values: Values, scale: f32) -> OutletId {
        self.wire(DequantizeLinearF32::new(scale, values.zero_point), &[operand])
    }

    /// Numbers that have been 8-bit values.
    fn in_steps(&mut self, operand: OutletId, values: Values, scale: f32) -> OutletId {
        let quantised = self.quantised(operand, values, scale);
        self.dequantised(quantised, values, scale)
    }

    /// Random 8-bit weights with a scale along an axis, as numbers.
    fn weights(&mut self, shape: &[usize], axis: usize) -> OutletId {
        let count = shape.iter().product();
        let values: Vec<i8> = (0..count).map(|_| self.random.next_integer()).collect();
        let values = Tensor::from_shape(shape, &values).unwrap();
        let name = self.name();
        let values = self.model.add_const(name, values).unwrap();
        let values = self.wire(cast(f32::datum_type()), &[values]);
        let values = self.with(math::sub(), values, 0.0);
        let mut scales = vec![1; shape.len()];
        scales[axis] = shape[axis];
        let steps: Vec<f32> =
            (0..shape[axis]).map(|_| (self.random.next() + 1.5) / 512.0).collect();
        let scales = Tensor::from_shape(&scales, &steps).unwrap();
        let name = self.name();
        let scales = self.model.add_const(name, scales).unwrap();
        self.wire(math::mul(), &[values, scales])
    }

    fn quantised_convolution(
        &mut self,
        input: OutletId,
        [inputs, outputs, group]: [usize; 3],
        kernel: &[usize],
    ) -> OutletId {
        let shape = [&[outputs, inputs / group], kernel].concat();
        let (weights, bias) = (self.weights(&shape, 0), self.constant(&[outputs]));
        let ones: TVec<usize> = tvec!(1; kernel.len());
        let pool_spec = PoolSpec {
            data_format: DataFormat::NCHW,
            kernel_shape: kernel.into(),
            padding: PaddingSpec::Explicit(ones.clone(), ones),
            dilations: None,
            strides: Some(tvec!(2; kernel.len())),
            input_channels: inputs,
            output_channels: outputs,
        };
        let conv = Conv { pool_spec, kernel_fmt: KernelFormat::OIHW, group, q_params: None };
        self.wire(conv, &[input, weights, bias])
    }

    fn quantised_product(&mut self, input: OutletId, [k, n]: [usize; 2]) -> OutletId {
        let weights = self.weights(&[k, n], 1);
        let axes: AxesMapping = "mk,kn->mn".parse().unwrap();
        self.wire(EinSum::new(axes, f32::datum_type()), &[input, weights])
    }

    /// Check that no number of the rewritten graph is further from tract's than a step, and that
    /// the graph consists of these operations.
    fn check_steps(mut self, outputs: &[OutletId], step: f32, expected: &[&str]) {
        self.model.select_output_outlets(outputs).unwrap();
        let inputs: TVec<TValue> =
            self.shapes.iter().map(|shape| self.random.tensor(shape).into_tvalue()).collect();
        let plain = self.model.clone().into_optimized().unwrap().into_runnable().unwrap();
        let wanted = plain.run(inputs.clone()).unwrap();
        let mut rewritten = self.model;
        rewrite(&mut rewritten).unwrap();
        let optimized = rewritten.into_optimized().unwrap();
        assert_eq!(operations(&optimized), expected);
        let computed = optimized.into_runnable().unwrap().run(inputs).unwrap();
        for (computed, wanted) in computed.iter().zip(&wanted) {
            assert_eq!(computed.datum_type(), wanted.datum_type());
            let [computed, wanted] = [computed, wanted].map(|it| it.cast_to::<f32>().unwrap());
            let tolerance = Approximation::Custom(step * 1.01, 0.0, 0.0);
            computed.close_enough(&wanted, tolerance).unwrap();
            let exact = Approximation::Custom(step * 0.01, 0.0, 0.01);
            computed.close_enough(&wanted, exact).unwrap();
        }
    }
}

#[test]
fn a_convolution_between_8_bit_tensors_is_one_operation() {
    for values in [UNSIGNED, SIGNED] {
        for (channels, kernel, name) in [
            ([5, 11, 1], &[3, 3][..], "QuantisedConvolution"),
            ([5, 11, 1], &[1, 1], "QuantisedConvolution"),
            ([5, 11, 1], &[5], "QuantisedConvolution"),
            ([6, 6, 6], &[3, 3], "QuantisedDepthwiseConvolution"),
        ] {
            let mut graph = Graph::new();
            let size = &[9, 8][..kernel.len()];
            let input = graph.rows(2, &[&[channels[0]], size].concat());
            let input = graph.in_steps(input, values, SCALE);
            let output = graph.quantised_convolution(input, channels, kernel);
            let output = graph.with(math::max(), output, -0.5);
            let output = graph.with(math::min(), output, 0.75);
            let output = graph.in_steps(output, values, SCALE);
            graph.check_steps(&[output], SCALE, &["Quantise", name, "Dequantise"]);
        }
    }
}

#[test]
fn a_convolution_whose_numbers_are_used_keeps_them() {
    let mut graph = Graph::new();
    let input = graph.input(&[1, 5, 9, 8]);
    let input = graph.in_steps(input, UNSIGNED, SCALE);
    let output = graph.quantised_convolution(input, [5, 11, 1], &[3, 3]);
    graph.check_steps(&[output], 1e-4, &["Quantise", "QuantisedConvolution"]);
}

#[test]
fn an_activation_of_numbers_joins_the_convolution() {
    let mut graph = Graph::new();
    let input = graph.input(&[1, 5, 9, 8]);
    let input = graph.in_steps(input, UNSIGNED, SCALE);
    let x = graph.quantised_convolution(input, [5, 11, 1], &[3, 3]);
    let bounded = graph.with(math::add(), x, 3.0);
    let bounded = graph.with(math::max(), bounded, 0.0);
    let bounded = graph.with(math::min(), bounded, 6.0);
    let product = graph.wire(math::mul(), &[x, bounded]);
    let output = graph.with(math::div(), product, 6.0);
    let output = graph.in_steps(output, UNSIGNED, SCALE);
    let expected = ["Quantise", "QuantisedConvolution", "Quantise", "Dequantise"];
    graph.check_steps(&[output], SCALE, &expected);
}

#[test]
fn a_matrix_product_with_a_bias_is_one_operation() {
    for values in [UNSIGNED, SIGNED] {
        let mut graph = Graph::new();
        let input = graph.rows(3, &[40]);
        let input = graph.in_steps(input, values, SCALE);
        let output = graph.quantised_product(input, [40, 30]);
        let bias = graph.constant(&[1, 30]);
        let output = graph.wire(math::add(), &[output, bias]);
        let output = graph.in_steps(output, values, SCALE);
        graph.check_steps(&[output], SCALE, &["Quantise", "QuantisedProduct", "Dequantise"]);
    }
}

#[test]
fn a_sum_of_8_bit_tensors_is_one_operation() {
    let mut graph = Graph::new();
    let operands = [graph.rows(3, &[40]), graph.rows(3, &[40])];
    let operands = operands.map(|operand| graph.in_steps(operand, UNSIGNED, SCALE));
    let output = graph.wire(math::add(), &operands);
    let output = graph.in_steps(output, UNSIGNED, 1.7 * SCALE);
    let expected = ["Quantise", "Quantise", "QuantisedSum", "Dequantise"];
    graph.check_steps(&[output], 1.7 * SCALE, &expected);
}

#[test]
fn axes_change_on_8_bit_tensors() {
    for values in [UNSIGNED, SIGNED] {
        let mut graph = Graph::new();
        let input = graph.rows(3, &[4, 10]);
        let input = graph.in_steps(input, values, SCALE);
        let moved = graph.wire(AxisOp::Move(1, 2), &[input]);
        let output = graph.in_steps(moved, values, SCALE);
        graph.check_steps(&[output], SCALE, &["Quantise", "MoveAxis", "Dequantise"]);
    }
}

#[test]
fn outputs_of_8_bits_keep_their_type() {
    for values in [UNSIGNED, SIGNED] {
        let mut graph = Graph::new();
        let input = graph.rows(3, &[40]);
        let input = graph.in_steps(input, values, SCALE);
        let output = graph.quantised_product(input, [40, 30]);
        let output = graph.quantised(output, values, SCALE);
        let mut expected = vec!["Quantise", "QuantisedProduct"];
        if values.is_signed {
            expected.push("OffsetU8asI8");
        }
        graph.check_steps(&[output], 1.0, &expected);
    }
}

#[test]
fn operations_on_numbers_between_8_bit_tensors_are_left() {
    let mut graph = Graph::new();
    let input = graph.rows(3, &[40]);
    let input = graph.in_steps(input, UNSIGNED, SCALE);
    let output = graph.wire(math::tanh(), &[input]);
    let output = graph.in_steps(output, UNSIGNED, SCALE);
    graph.check_steps(
        &[output],
        SCALE,
        &["Quantise", "Dequantise", "Unary", "Quantise", "Dequantise"],
    );
}

#[test]
fn a_quantised_convolution_has_exact_sums() {
    // A sum of products as it is in the definition of the quantisation.
    let mut graph = Graph::new();
    let input = graph.input(&[1, 200]);
    let input = graph.in_steps(input, UNSIGNED, SCALE);
    let values: Vec<i8> = (0..400).map(|_| graph.random.next_integer()).collect();
    let weights = Tensor::from_shape(&[200, 2], &values).unwrap();
    let weights = graph.model.add_const("weights", weights).unwrap();
    let weights = graph.wire(DequantizeLinearF32::new(0.25, 0), &[weights]);
    let axes: AxesMapping = "mk,kn->mn".parse().unwrap();
    let output = graph.wire(EinSum::new(axes, f32::datum_type()), &[input, weights]);
    graph.model.select_output_outlets(&[output]).unwrap();
    rewrite(&mut graph.model).unwrap();
    let plan = graph.model.into_optimized().unwrap().into_runnable().unwrap();
    let numbers = graph.random.tensor(&[1, 200]);
    let view = numbers.try_as_plain_ram().unwrap();
    let steps: Vec<i32> = view
        .as_slice::<f32>()
        .unwrap()
        .iter()
        .map(|number| in_steps(*number, SCALE, -131, 124))
        .collect();
    let sum = |column: usize| -> i32 {
        steps.iter().enumerate().map(|(row, step)| step * i32::from(values[2 * row + column])).sum()
    };
    let outputs = plan.run(tvec!(numbers.clone().into_tvalue())).unwrap();
    let view = outputs[0].try_as_plain_ram().unwrap();
    let wanted = [0, 1].map(|column| sum(column) as f32 * (SCALE * 0.25));
    assert_eq!(view.as_slice::<f32>().unwrap(), wanted);
}
