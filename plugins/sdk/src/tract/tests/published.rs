//! The graphs of this repository's models.

use std::fs::File;
use std::path::Path;

use tract_onnx::prelude::Tensor;

use super::Random;
use crate::{Model, ModelBuilder, ModelInput};

const ROWS: usize = 3;
const PIXELS: [usize; 3] = [3, 48, 192];

fn read(builder: ModelBuilder, model: &str) -> Model {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let path = models.join(model).join("assets/model.onnx");
    builder.read_onnx(&mut File::open(path).unwrap()).unwrap()
}

fn text_direction(builder: ModelBuilder) -> Model {
    let pixels = ModelInput::new::<f32>().named("rows");
    let pixels = PIXELS.into_iter().fold(pixels, ModelInput::fixed);
    read(builder.input(pixels), "text-direction")
}

fn pictures(rows: usize) -> Vec<Tensor> {
    let mut random = Random(7);
    (0..rows).map(|_| random.tensor(&[&[1], &PIXELS[..]].concat())).collect()
}

fn assert_near(left: &[f32], right: &[f32]) {
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().zip(right) {
        assert!((left - right).abs() <= 1e-5, "{left} and {right}");
    }
}

#[test]
fn text_direction_computes_what_tract_computes() {
    let ours = text_direction(Model::builder());
    let tract = text_direction(Model::builder().left_to_tract());
    for picture in pictures(ROWS) {
        let [ours, tract] =
            [&ours, &tract].map(|model| model.run([picture.clone()]).unwrap().fp32(0).unwrap());
        assert_near(&ours, &tract);
    }
}

#[test]
fn rows_of_a_batch_get_the_bits_that_they_get_alone() {
    let model = text_direction(Model::builder());
    let alone: Vec<f32> = pictures(ROWS)
        .into_iter()
        .flat_map(|picture| model.run([picture]).unwrap().fp32(0).unwrap())
        .collect();
    let batch = Tensor::stack_tensors(0, &pictures(ROWS)).unwrap();
    let together = model.run([batch]).unwrap().fp32(0).unwrap();
    assert_eq!(alone, together);
}

#[test]
fn toxicity_computes_what_tract_computes() {
    let build = |builder: ModelBuilder| {
        let terms = ModelInput::new::<i64>().named("rows").named("terms");
        let weights = ModelInput::new::<f32>().named("rows").named("terms");
        read(builder.input(terms).input(weights), "toxicity")
    };
    let [ours, tract] = [build(Model::builder()), build(Model::builder().left_to_tract())];
    let terms: Vec<i64> = (0..40).map(|term| term * 7).collect();
    let terms = Tensor::from_shape(&[2, 20], &terms).unwrap();
    let weights = Random(3).tensor(&[2, 20]);
    let [ours, tract] = [&ours, &tract]
        .map(|model| model.run([terms.clone(), weights.clone()]).unwrap().fp32(0).unwrap());
    assert_near(&ours, &tract);
}
