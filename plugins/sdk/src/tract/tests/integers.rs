//! Files with operations on 8-bit tensors, compared with plain loops.

use tract_onnx::prelude::*;

use super::file::{File, Type, int};
use super::{Random, in_steps, operations};
use crate::tract::{Model, ModelBuilder, ModelInput};

const ROWS: usize = 3;
const INPUTS: usize = 40;
const OUTPUTS: usize = 20;

const INPUT_SCALE: f32 = 1.0 / 64.0;
const OUTPUT_SCALE: f32 = 1.0 / 4.0;
const ZERO_POINT: u8 = 120;

/// Random weights, a scale for each column, and a bias in units of the sums.
struct Weights {
    values: Vec<i8>,
    scales: Vec<f32>,
    bias: Vec<i32>,
}

impl Weights {
    fn new() -> Self {
        let mut random = Random(11);
        Self {
            values: (0..INPUTS * OUTPUTS).map(|_| random.next_integer()).collect(),
            scales: (0..OUTPUTS).map(|_| (random.next() + 1.5) / 256.0).collect(),
            bias: (0..OUTPUTS).map(|_| i32::from(random.next_integer()) * 40).collect(),
        }
    }

    fn file(&self, operation: &str) -> File {
        let bytes = self.values.iter().map(|value| value.cast_unsigned()).collect();
        let bias = self.bias.iter().flat_map(|bias| bias.to_le_bytes()).collect();
        let file = File::new(17).input("x", Type::Float).output("y", Type::Float);
        let file = file.constant("w", Type::Int8, &[INPUTS, OUTPUTS], bytes);
        let file = file.floats("w_scale", &[OUTPUTS], &self.scales);
        let file = file.constant("w_zero", Type::Int8, &[OUTPUTS], vec![0; OUTPUTS]);
        let file = file.floats("x_scale", &[], &[INPUT_SCALE]);
        let file = file.constant("x_zero", Type::Uint8, &[], vec![ZERO_POINT]);
        let file = file.floats("y_scale", &[], &[OUTPUT_SCALE]);
        let file = file.constant("y_zero", Type::Uint8, &[], vec![ZERO_POINT]);
        let file = if operation == "QGemm" {
            file.constant("bias", Type::Int32, &[OUTPUTS], bias)
        } else {
            file
        };
        file.node("QuantizeLinear", &["x", "x_scale", "x_zero"], &["x_values"], [])
    }

    /// The sums of products of a row, with the bias.
    fn sums(&self, row: &[i32], has_bias: bool) -> Vec<i32> {
        let sum = |column: usize| -> i32 {
            let weights = self.values.iter().skip(column).step_by(OUTPUTS);
            row.iter().zip(weights).map(|(value, weight)| value * i32::from(*weight)).sum()
        };
        let bias = |column: usize| if has_bias { self.bias[column] } else { 0 };
        (0..OUTPUTS).map(|column| sum(column) + bias(column)).collect()
    }
}

fn run(file: File, rows: &Tensor) -> (Vec<String>, Vec<f32>) {
    let input = ModelInput::new::<f32>().named("rows").fixed(INPUTS);
    let model = Model::new(ModelBuilder::default().input(input).plan_of(file.model()).unwrap());
    let outputs = model.run([rows.clone()]).unwrap().fp32(0).unwrap();
    (operations(model.plan.model()), outputs)
}

fn values(number: f32, scale: f32, zero_point: i32) -> i32 {
    in_steps(number, scale, -zero_point, 255 - zero_point)
}

#[test]
fn products_with_8_bit_inputs_and_outputs_are_one_operation() {
    let weights = Weights::new();
    let rows = Random(3).tensor(&[ROWS, INPUTS]);
    let view = rows.try_as_plain_ram().unwrap();
    for (operation, has_bias) in [("QLinearMatMul", false), ("QGemm", true)] {
        let (x, w, y) =
            (["x_values", "x_scale", "x_zero"], ["w", "w_scale", "w_zero"], ["y_scale", "y_zero"]);
        let inputs =
            if has_bias { [&x[..], &w, &["bias"], &y].concat() } else { [&x[..], &w, &y].concat() };
        let file = weights.file(operation).node(operation, &inputs, &["y_values"], []);
        let file = file.node("DequantizeLinear", &["y_values", "y_scale", "y_zero"], &["y"], []);
        let (operations, outputs) = run(file, &rows);
        assert_eq!(operations, ["Quantise", "QuantisedProduct", "Dequantise"], "{operation}");
        let wanted = view.as_slice::<f32>().unwrap().chunks_exact(INPUTS).flat_map(|row| {
            let row: Vec<i32> =
                row.iter().map(|it| values(*it, INPUT_SCALE, ZERO_POINT.into())).collect();
            let sums = weights.sums(&row, has_bias);
            let numbers = sums.into_iter().zip(&weights.scales);
            let numbers = numbers.map(|(sum, scale)| sum as f32 * (INPUT_SCALE * scale));
            numbers.collect::<Vec<_>>()
        });
        let wanted = wanted.map(|number| values(number, OUTPUT_SCALE, ZERO_POINT.into()));
        let wanted: Vec<f32> = wanted.map(|value| value as f32 * OUTPUT_SCALE).collect();
        assert_eq!(outputs, wanted, "{operation}");
    }
}

#[test]
fn products_of_dynamically_quantised_values_are_one_operation() {
    let weights = Weights::new();
    let rows = Random(3).tensor(&[ROWS, INPUTS]);
    let file = weights.file("");
    let file = file.node("DynamicQuantizeLinear", &["x"], &["v", "v_scale", "v_zero"], []);
    let file = file.node("MatMulInteger", &["v", "w", "v_zero", "w_zero"], &["sums"], []);
    let file = file.node("Cast", &["sums"], &["real"], [int("to", 1)]);
    let file = file.node("Mul", &["v_scale", "w_scale"], &["factors"], []);
    let file = file.node("Mul", &["real", "factors"], &["product"], []);
    let bias: Vec<f32> = weights.bias.iter().map(|bias| *bias as f32 / 1000.0).collect();
    let file = file.floats("added", &[OUTPUTS], &bias);
    let file = file.node("Add", &["product", "added"], &["sum"], []);
    let file = file.node("Relu", &["sum"], &["y"], []);
    let (operations, outputs) = run(file, &rows);
    assert_eq!(operations, ["DynamicQuantise", "DynamicProduct"]);
    let view = rows.try_as_plain_ram().unwrap();
    let numbers = view.as_slice::<f32>().unwrap();
    let [least, greatest] =
        [f32::min, f32::max].map(|bound| numbers.iter().copied().fold(0.0, bound));
    let scale = (greatest - least) / 255.0;
    let zero_point = in_steps(-least, scale, 0, 255);
    for (row, outputs) in numbers.chunks_exact(INPUTS).zip(outputs.chunks_exact(OUTPUTS)) {
        let row: Vec<i32> = row.iter().map(|it| values(*it, scale, zero_point)).collect();
        for (column, sum) in weights.sums(&row, false).into_iter().enumerate() {
            let wanted = sum as f32 * (scale * weights.scales[column]) + bias[column];
            let wanted = wanted.max(0.0);
            assert!((outputs[column] - wanted).abs() <= 1e-5, "{} and {wanted}", outputs[column]);
        }
    }
}

#[test]
fn operations_with_any_number_of_8_bit_inputs_are_expanded() {
    let rows = Random(3).tensor(&[ROWS, INPUTS]);
    let x = ["x_values", "x_scale", "x_zero"];
    let inputs = [&["y_scale", "y_zero"][..], &x, &x].concat();
    let file = Weights::new().file("").node("QLinearConcat", &inputs, &["twice"], [int("axis", 1)]);
    let file = file.node("DequantizeLinear", &["twice", "y_scale", "y_zero"], &["y"], []);
    let (_operations, outputs) = run(file, &rows);
    let view = rows.try_as_plain_ram().unwrap();
    let wanted = view.as_slice::<f32>().unwrap().chunks_exact(INPUTS).flat_map(|row| {
        let numbers = row.iter().chain(row).map(|number| {
            let value = values(*number, INPUT_SCALE, ZERO_POINT.into());
            values(value as f32 * INPUT_SCALE, OUTPUT_SCALE, ZERO_POINT.into())
        });
        numbers.map(|value| value as f32 * OUTPUT_SCALE).collect::<Vec<_>>()
    });
    assert_eq!(outputs, wanted.collect::<Vec<_>>());
}
