//! Held against `tests/data/onnx-manifest`: columns that scikit-learn's transformers have made.

use guesthouse_onnx_manifest::{Labels, OnnxManifest};
use serde_json::Value as Json;

use super::*;

fn value() -> GraphValue {
    let shape = vec![Dimension::Named("rows".to_owned()), Dimension::Fixed(7)];
    GraphValue { name: "X".to_owned(), datatype: Datatype::Fp32, shape }
}

fn people() -> OnnxManifest {
    toml::from_str(include_str!("../../../../../tests/data/onnx-manifest/people.toml")).unwrap()
}

fn columns() -> Columns {
    let manifest = people();
    Columns::new(&manifest.table[0], &manifest.inputs, &[value()]).unwrap()
}

#[test]
fn columns_are_those_of_scikit_learn() {
    let json = include_str!("../../../../../tests/data/onnx-manifest/columns.json");
    let expected: Json = serde_json::from_str(json).unwrap();
    let columns = columns();
    let rows = expected["rows"].as_array().unwrap();
    assert!(rows.len() >= 16);
    for (row, expected) in rows.iter().zip(expected["columns"].as_array().unwrap()) {
        let mut numbers = vec![0.0; columns.width];
        let mut first = 0;
        for (encoder, cell) in columns.encoders.iter().zip(row.as_array().unwrap()) {
            let cell = match cell {
                Json::Null => Cell::Number(-1.0),
                Json::String(text) => Cell::Text(text),
                number if number.is_i64() => Cell::Integer(number.as_i64().unwrap()),
                number => Cell::Number(number.as_f64().unwrap()),
            };
            encoder.encode(cell, &mut numbers[first..first + encoder.width()]).unwrap();
            first += encoder.width();
        }
        for (number, expected) in numbers.iter().zip(expected.as_array().unwrap()) {
            assert!((number - expected.as_f64().unwrap()).abs() < 1e-6, "{row}: {numbers:?}");
        }
    }
}

#[test]
fn missing_values_have_a_default_and_unknown_ones_do_not() {
    let wanted = columns().takes();
    let default =
        |name: &str| wanted.iter().find(|(field, _)| field == name).unwrap().1.default.clone();
    assert_eq!(default("age"), Some(Value::Integer(-1)));
    assert_eq!(default("hours"), None);
}

fn column() -> Column {
    Column { input: "x".to_owned(), std: 1.0, ..Column::default() }
}

fn texts(texts: &[&str]) -> Option<Categories> {
    let texts = texts.iter().map(|text| (*text).to_owned()).collect();
    Some(Categories::Labels(Labels::Texts(texts)))
}

#[test]
fn values_that_are_no_category_are_rejected_by_default() {
    let categories = Some(Categories::Integers(vec![3, 5]));
    let encoder = Encoder::new(&Column { categories, ..column() }, None).unwrap();
    let mut number = [0.0];
    encoder.encode(Cell::Integer(5), &mut number).unwrap();
    assert_eq!(number, [1.0]);
    assert!(encoder.encode(Cell::Integer(4), &mut number).is_err());

    let missing = Some(Value::Text(String::new()));
    let categories = texts(&["b", "a"]);
    let encoder = Encoder::new(&Column { categories, missing, ..column() }, None).unwrap();
    assert_eq!(encoder.wanted().one_of.unwrap(), ["b", "a", ""]);
    encoder.encode(Cell::Text(""), &mut number).unwrap();
    assert!(number[0].is_nan());
}

#[test]
fn columns_that_cannot_be_made_are_rejected() {
    let fill = |fill| Column { fill: Some(fill), ..column() };
    for (column, expected) in [
        (Column { std: 0.0, ..column() }, "`std` is 0"),
        (fill(Value::Text("a".to_owned())), "give a number"),
        (Column { categories: texts(&["a", "a"]), ..column() }, "listed twice"),
        (Column { categories: texts(&[]), ..column() }, "no categories"),
        (Column { categories: texts(&["a"]), ..fill(Value::Integer(1)) }, "none of the categories"),
        (Column { encoding: Encoding::OneHot, ..column() }, "are for `categories`"),
        (Column { categories: texts(&["a"]), unknown: Unknown::Zeros, ..column() }, "give a code"),
        (Column { categories: texts(&["a"]), std: 2.0, ..column() }, "are for numbers"),
    ] {
        let error = Encoder::new(&column, None).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let mut table = people().table.remove(0);
    table.columns.pop();
    let error = Columns::new(&table, &[], &[value()]).err().unwrap().to_string();
    assert!(error.contains("the columns are 6 numbers"), "{error}");
    let named = GraphValue { name: "Y".to_owned(), ..value() };
    let error = Columns::new(&table, &[], &[named]).err().unwrap().to_string();
    assert!(error.contains("the graph has no input \"X\", but Y"), "{error}");
}
