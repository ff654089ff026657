//! Tensors of a call as arrays, and back.

use tract_onnx::prelude::*;

use crate::bindings::guesthouse::model::types as wit;
use crate::tract::ModelOutputs;
use crate::{Batch, Datatype};

fn input(datatype: Datatype, data: &[u8]) -> wit::Tensor {
    let count = data.len() as u64 / 8;
    wit::Tensor { name: "x".to_owned(), datatype, shape: vec![count, 2, 4], data: data.to_vec() }
}

#[test]
fn inputs_and_outputs_keep_their_bytes() {
    for (datatype, size) in [
        (Datatype::Uint8, 1),
        (Datatype::Int8, 1),
        (Datatype::Uint16, 2),
        (Datatype::Int16, 2),
        (Datatype::Uint32, 4),
        (Datatype::Int32, 4),
        (Datatype::Uint64, 8),
        (Datatype::Int64, 8),
        (Datatype::Fp16, 2),
        (Datatype::Fp32, 4),
        (Datatype::Fp64, 8),
        (Datatype::Bool, 1),
    ] {
        let data: Vec<u8> = (0..16).map(|byte| byte % if size == 1 { 2 } else { 100 }).collect();
        let shape = vec![2, 8 / size];
        let tensor = wit::Tensor { shape: shape.clone(), ..input(datatype, &data) };
        let array = Batch::new(vec![tensor]).array("x").unwrap();
        assert_eq!(array.shape(), [2, 8 / usize::try_from(size).unwrap()]);
        let output = ModelOutputs(tvec!(array.into_tvalue())).tensor(0, "y").unwrap().into_wit();
        assert_eq!((output.datatype, output.shape, output.data), (datatype, shape, data));
    }
}

#[test]
fn an_array_of_bfloat16_is_widened() {
    let data = 1.5_f32.to_le_bytes();
    let tensor = wit::Tensor { shape: vec![1], ..input(Datatype::Bf16, &data[2..]) };
    assert_eq!(Batch::new(vec![tensor]).array("x").unwrap(), tensor1(&[1.5_f32]));
}

#[test]
fn texts_are_arrays() {
    let data = [&[1, 0, 0, 0][..], b"a", &[0; 4], &[2, 0, 0, 0], "é".as_bytes()].concat();
    let tensor = wit::Tensor { shape: vec![3, 1], ..input(Datatype::Bytes, &data) };
    let array = Batch::new(vec![tensor]).array("x").unwrap();
    let texts = ["a", "", "é"].map(str::to_owned);
    assert_eq!(array, tensor1(&texts).into_shape(&[3, 1]).unwrap());
    let output = ModelOutputs(tvec!(array.into_tvalue())).tensor(0, "y").unwrap().into_wit();
    assert_eq!((output.datatype, output.shape, output.data), (Datatype::Bytes, vec![3, 1], data));
}

#[test]
fn inputs_that_are_no_arrays_are_errors() {
    let tensors = [
        input(Datatype::Bytes, &[0; 8]),
        // Another length than the shape has.
        input(Datatype::Fp32, &[0; 8]),
    ];
    for tensor in tensors {
        assert!(Batch::new(vec![tensor]).array("x").is_err());
    }
}
