//! Held against `tests/data/onnx-manifest/steps.json`, which SciPy, scikit-learn and NumPy have computed.

use guesthouse_guest::Datatype;
use guesthouse_onnx_manifest::Labels;
use serde_json::Value;

use super::*;

fn expected(name: &str) -> Value {
    let json = include_str!("../../../../../tests/data/onnx-manifest/steps.json");
    serde_json::from_str::<Value>(json).unwrap()[name].clone()
}

/// The numbers of an array, row-major.
fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(flat).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

#[expect(clippy::cast_possible_truncation, reason = "they have been computed in single precision")]
fn numbers(name: &str, shape: &[usize]) -> Values {
    let numbers = flat(&expected(name)).into_iter().map(|number| number as f32).collect();
    Values { shape: shape.to_vec(), elements: Elements::Floats(numbers) }
}

fn logits() -> (Form, Values) {
    (Form::new(Datatype::Fp32, &[Dimension::Fixed(5)]), numbers("logits", &[3, 5]))
}

/// Check a step, carry it out, and compare the shape with what was announced.
fn carried_out(step: &Step, form: Form, values: Values, mask: Option<&[f32]>) -> (Form, Values) {
    let form = check(step, form).unwrap();
    let values = apply(step, values, mask).unwrap();
    let shape: Vec<_> = values.shape[1..].iter().map(|size| Dimension::Fixed(*size)).collect();
    assert_eq!(shape, form.shape);
    (form, values)
}

fn assert_close(values: &Values, name: &str) {
    let Elements::Floats(found) = &values.elements else { panic!("{values:?} are no numbers") };
    let expected = flat(&expected(name));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} is not {expected}");
    }
}

#[test]
fn numbers_are_those_of_scipy_and_scikit_learn() {
    for (step, name) in [
        (Step::Softmax, "softmax"),
        (Step::Sigmoid, "sigmoid"),
        (Step::L2Norm, "l2_norm"),
        (Step::TopK(3), "top_3"),
    ] {
        let (form, values) = logits();
        let (_form, values) = carried_out(&step, form, values, None);
        assert_close(&values, name);
    }
}

#[test]
fn indexes_are_those_of_numpy() {
    for (step, name) in [(Step::Argmax, "argmax"), (Step::TopKIndexes(3), "top_3_indexes")] {
        let (form, values) = logits();
        let (form, values) = carried_out(&step, form, values, None);
        #[expect(clippy::cast_possible_truncation, reason = "small indexes")]
        let expected = flat(&expected(name)).into_iter().map(|index| index as i64).collect();
        assert_eq!(values.elements, Elements::Integers(expected));
        assert_eq!(form.choices, Some(5));
    }
}

#[test]
fn pooling_ignores_tokens_that_are_masked() {
    let form = Form::new(Datatype::Fp32, &[Dimension::Fixed(4), Dimension::Fixed(3)]);
    let tokens = || numbers("tokens", &[2, 4, 3]);
    let Elements::Floats(mask) = numbers("mask", &[2, 4]).elements else { unreachable!() };
    let step = Step::MeanPool { mask: "attention_mask".to_owned() };
    let (_form, values) = carried_out(&step, form.clone(), tokens(), Some(&mask));
    assert_close(&values, "mean_pool");
    let (_form, values) = carried_out(&Step::ClsPool, form, tokens(), None);
    assert_close(&values, "cls_pool");
    assert!(apply(&step, tokens(), Some(&mask[..5])).is_err());
}

#[test]
fn labels_stand_for_indexes_and_flags() {
    let labels = |texts: &[&str]| {
        Step::Labels(Labels::Texts(texts.iter().map(|text| (*text).to_owned()).collect()))
    };
    let (form, values) = logits();
    let (form, values) = carried_out(&Step::Argmax, form, values, None);
    let five = ["a", "b", "c", "d", "e"];
    let (form, values) = carried_out(&labels(&five), form, values, None);
    let indexes = expected("argmax");
    let indexes = indexes.as_array().unwrap().iter().map(|index| index.as_u64().unwrap());
    let texts: Vec<_> = indexes.map(|index| five[usize::try_from(index).unwrap()]).collect();
    assert_eq!(values.elements, Elements::Texts(texts.into_iter().map(str::to_owned).collect()));
    assert_eq!(form.labels.unwrap(), five);

    let (form, values) = logits();
    let (form, values) = carried_out(&Step::Threshold(0.0), form, values, None);
    let (_form, values) = carried_out(&labels(&["below", "above"]), form, values, None);
    let Elements::Texts(texts) = values.elements else { panic!("no texts") };
    let expected = flat(&expected("logits"));
    let expected = expected.iter().map(|logit| if *logit >= 0.0 { "above" } else { "below" });
    assert!(texts.iter().eq(expected), "{texts:?}");
}

#[test]
fn index_without_a_label_is_an_error() {
    let labels = Step::Labels(Labels::Texts(vec!["a".to_owned(), "b".to_owned()]));
    let form = Form::new(Datatype::Int64, &[]);
    check(&labels, form).unwrap();
    for index in [2, -1] {
        let values = Values { shape: vec![1], elements: Elements::Integers(vec![index]) };
        assert!(apply(&labels, values, None).unwrap_err().contains("no label"));
    }
}

#[test]
fn steps_that_do_not_fit_are_rejected() {
    let five = || Form::new(Datatype::Fp32, &[Dimension::Fixed(5)]);
    let varies = || Form::new(Datatype::Fp32, &[Dimension::Named("n".to_owned())]);
    let one = || Form::new(Datatype::Fp32, &[]);
    let texts = || Form::new(Datatype::Bytes, &[Dimension::Fixed(5)]);
    let labels = |count: usize| Step::Labels(Labels::Texts(vec![String::new(); count]));
    for (step, form, expected) in [
        (Step::Softmax, texts(), "takes numbers"),
        (Step::Softmax, one(), "a row has one"),
        (Step::Element(5), five(), "the last one is 4"),
        (Step::TopK(6), five(), "1 to 5"),
        (Step::TopKIndexes(0), five(), "1 to 5"),
        (Step::Argmax, varies(), "it varies"),
        (Step::ClsPool, five(), "[tokens, features]"),
        (labels(2), five(), "put `argmax` before it"),
        (labels(4), check(&Step::Argmax, five()).unwrap(), "4 texts for 5 classes"),
        (labels(6), check(&Step::Argmax, five()).unwrap(), "6 texts for 5 classes"),
        (labels(3), check(&Step::Threshold(0.5), one()).unwrap(), "3 texts for 2 classes"),
        (labels(0), Form::new(Datatype::Int64, &[]), "0 texts"),
    ] {
        let error = check(&step, form).unwrap_err();
        assert!(error.contains(expected), "{step:?}: {error}");
    }
}
