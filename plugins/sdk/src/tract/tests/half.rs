//! Graphs in half precision: the same numbers as in single precision, from rounded weights.

use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::*;

use super::file::{File, Type, int};
use super::{Random, operations};
use crate::tract::{Model, ModelBuilder, ModelInput};

const ROWS: usize = 3;
const INPUTS: usize = 20;
const OUTPUTS: usize = 10;

/// The bits and the numbers of weights that a type holds.
fn weights(elements: Type) -> (Vec<u8>, Vec<f32>) {
    let mut random = Random(5);
    let numbers = (0..INPUTS * OUTPUTS).map(|_| random.next());
    let halves = numbers.map(|number| match elements {
        Type::Float16 => {
            let half = f16::from_f32(number);
            (half.to_bits(), half.to_f32())
        }
        _ => {
            let upper = number.to_bits() >> 16;
            (u16::try_from(upper).unwrap(), f32::from_bits(upper << 16))
        }
    });
    let (bits, numbers): (Vec<_>, Vec<_>) = halves.unzip();
    (bits.into_iter().flat_map(u16::to_le_bytes).collect(), numbers)
}

/// The product of rows with weights, and an activation.
fn product(elements: Type) -> File {
    let file = File::new(17).output("y", elements);
    file.node("MatMul", &["rows", "w"], &["product"], []).node("Tanh", &["product"], &["y"], [])
}

fn build<T: Datum>(file: ModelProto) -> Model {
    let rows = ModelInput::new::<T>().named("rows").fixed(INPUTS);
    Model::new(ModelBuilder::default().input(rows).plan_of(file).unwrap())
}

fn run<T: Datum>(model: &Model, rows: &Tensor) -> Vec<f32> {
    let rows = rows.cast_to::<T>().unwrap().into_owned();
    model.run([rows]).unwrap().fp32(0).unwrap()
}

/// Numbers that both types of half precision hold.
fn rows() -> Tensor {
    let rows: Vec<f32> = (0..ROWS * INPUTS).map(|index| (index % 17) as f32 / 8.0).collect();
    Tensor::from_shape(&[ROWS, INPUTS], &rows).unwrap()
}

fn in_single_precision(numbers: &[f32]) -> Vec<f32> {
    let file = product(Type::Float).input("rows", Type::Float);
    let file = file.floats("w", &[INPUTS, OUTPUTS], numbers);
    run::<f32>(&build::<f32>(file.model()), &rows())
}

#[test]
fn weights_in_half_precision_are_widened() {
    for elements in [Type::Float16, Type::Bfloat16] {
        let (bytes, numbers) = weights(elements);
        let file = product(Type::Float).input("rows", Type::Float);
        let file = file.constant("half", elements, &[INPUTS, OUTPUTS], bytes);
        let mut file = file.node("Cast", &["half"], &["w"], [int("to", 1)]).model();
        file.graph.as_mut().unwrap().node.rotate_right(1);
        let model = build::<f32>(file);
        assert_eq!(operations(model.plan.model()), ["MatrixProduct"], "{elements:?}");
        assert_eq!(run::<f32>(&model, &rows()), in_single_precision(&numbers), "{elements:?}");
    }
}

#[test]
fn graph_of_float16_keeps_the_types_of_inputs_and_outputs() {
    let (bytes, numbers) = weights(Type::Float16);
    let file = product(Type::Float16).input("rows", Type::Float16);
    let file = file.constant("w", Type::Float16, &[INPUTS, OUTPUTS], bytes);
    let model = build::<f16>(file.model());
    assert_eq!(operations(model.plan.model()), ["Cast", "MatrixProduct", "Cast"]);
    let wanted = in_single_precision(&numbers).into_iter().map(|it| f16::from_f32(it).to_f32());
    assert_eq!(run::<f16>(&model, &rows()), wanted.collect::<Vec<_>>());
}

#[test]
fn a_graph_of_bfloat16_takes_and_returns_single_precision() {
    let (bytes, numbers) = weights(Type::Bfloat16);
    let file = product(Type::Bfloat16).input("rows", Type::Bfloat16);
    let file = file.constant("w", Type::Bfloat16, &[INPUTS, OUTPUTS], bytes);
    let model = build::<f32>(file.model());
    assert_eq!(operations(model.plan.model()), ["MatrixProduct"]);
    assert_eq!(run::<f32>(&model, &rows()), in_single_precision(&numbers));
}
