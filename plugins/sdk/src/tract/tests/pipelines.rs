//! Pipelines of scikit-learn, held against what scikit-learn has computed
//! (`tests/data/onnx-pipelines`).

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tract_onnx::prelude::*;

use crate::tract::file::{GraphValue, OnnxFile};
use crate::tract::{Dimension, Model, ModelOutputs};

/// How far probabilities may be from those of scikit-learn.
const TOLERANCE: f64 = 2e-4;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx-pipelines")
}

fn load(path: &Path) -> Result<(Vec<GraphValue>, Vec<String>, Model), String> {
    let file = OnnxFile::read(&mut &fs::read(path).unwrap()[..]).unwrap();
    let mut values = file.inputs().unwrap();
    for value in &mut values {
        value.shape[0] = Dimension::Named("rows".to_owned());
    }
    let outputs = file.outputs();
    let builder = values.iter().map(GraphValue::model_input);
    let builder = builder.fold(Model::builder(), |builder, input| builder.input(input));
    let model = builder.build(file).map_err(|error| error.to_string())?;
    Ok((values, outputs, model))
}

fn array(rows: &Value, value: &GraphValue) -> Tensor {
    let rows = rows.as_array().unwrap();
    let cells: Vec<&Value> = rows.iter().flat_map(|row| row.as_array().unwrap()).collect();
    let shape = [rows.len(), cells.len() / rows.len()];
    if value.datum_type() == String::datum_type() {
        let texts: Vec<String> =
            cells.iter().map(|cell| cell.as_str().unwrap().to_owned()).collect();
        return tensor1(&texts).into_shape(&shape).unwrap();
    }
    let numbers: Vec<f64> = cells.iter().map(|cell| cell.as_f64().unwrap_or(f64::NAN)).collect();
    let numbers = Tensor::from_shape(&shape, &numbers).unwrap();
    numbers.cast_to_dt(value.datum_type()).unwrap().into_owned()
}

fn compare(outputs: &ModelOutputs, index: usize, expected: &Value) -> Result<(), String> {
    let rows = expected.as_array().unwrap();
    let found = outputs.array(index).unwrap();
    if found.datum_type() == String::datum_type() {
        let texts = found.to_plain_array_view::<String>().unwrap();
        let is_equal =
            texts.iter().map(String::as_str).eq(rows.iter().map(|row| row.as_str().unwrap()));
        return if is_equal { Ok(()) } else { Err(format!("{found:?} is not {expected}")) };
    }
    let found = found.cast_to::<f64>().unwrap();
    let found: Vec<f64> = found.to_plain_array_view::<f64>().unwrap().iter().copied().collect();
    let expected: Vec<f64> = rows
        .iter()
        .flat_map(|row| match row {
            Value::Array(numbers) => {
                numbers.iter().map(|number| number.as_f64().unwrap()).collect()
            }
            number => vec![number.as_f64().unwrap()],
        })
        .collect();
    let is_close = |(found, expected): (&f64, &f64)| (found - expected).abs() < TOLERANCE;
    if found.len() == expected.len() && found.iter().zip(&expected).all(is_close) {
        return Ok(());
    }
    Err(format!("{found:?} is not {expected:?}"))
}

/// Run a pipeline on its rows; the number of outputs that are right.
fn check(path: &Path) -> Result<usize, String> {
    let (values, outputs, model) = load(path)?;
    let json = fs::read_to_string(path.with_extension("json")).unwrap();
    let example: Value = serde_json::from_str(&json).unwrap();
    let inputs = values.iter().map(|value| array(&example["inputs"][&value.name], value));
    let found = model.run(inputs).map_err(|error| format!("{error:?}"))?;
    let expected = example["outputs"].as_object().unwrap();
    for (name, expected) in expected {
        let index = outputs.iter().position(|output| output == name).unwrap();
        compare(&found, index, expected).map_err(|what| format!("{name}: {what}"))?;
    }
    Ok(expected.len())
}

#[test]
fn pipelines_answer_as_scikit_learn_does() {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    let (mut checked, mut wrong) = (0, Vec::new());
    for path in files {
        match check(&path) {
            Ok(outputs) => checked += outputs,
            Err(error) => wrong.push(format!("{}: {error}", path.display())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked >= 40, "{checked}");
}

#[test]
fn tokens_without_an_embedding_are_an_error() {
    let (values, _outputs, model) = load(&folder().join("../onnx-manifest/encoder.onnx")).unwrap();
    let run = |token: i64, length: usize| {
        let tokens = |value: &GraphValue| {
            let token = if value.name == "input_ids" { token } else { 0 };
            Tensor::from_shape(&[1, length], &vec![token; length]).unwrap()
        };
        model
            .run(values.iter().map(tokens))
            .map(|_outputs| ())
            .map_err(|error| format!("{error:?}"))
    };
    run(5, 16).unwrap();
    for (token, length) in [(100_000, 4), (-100_000, 4), (5, 17)] {
        let error = run(token, length).unwrap_err();
        assert!(error.contains("too many tokens or a wrong one"), "{error}");
    }
}
