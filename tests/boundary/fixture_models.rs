use guesthouse_tests::artifacts::{fixture_names, temporary_folder};
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

fn server(names: &[&str]) -> (Server, tempfile::TempDir) {
    let folder = temporary_folder();
    (Server::start(&Setup::fixtures(folder.path(), names)), folder)
}

/// Predicts one row; returns the outputs.
fn ask(server: &Server, model: &str, row: &Value) -> Value {
    let answer = server.post(&format!("/models/{model}/predict"), row);
    assert_eq!(answer.status, 200, "{model} {row}: {answer:?}");
    answer.body
}

#[test]
fn simple_adds_and_subtracts_its_inputs() {
    let (server, _folder) = server(&["simple", "simple_string"]);
    let (one, other): (Vec<i32>, Vec<i32>) = ((0..16).collect(), vec![i32::MAX; 16]);
    let both = |operation: fn(i32, i32) -> i32| -> Vec<i32> {
        one.iter().zip(&other).map(|(one, other)| operation(*one, *other)).collect()
    };
    let answer = ask(&server, "simple", &json!({"INPUT0": one, "INPUT1": other}));
    assert_eq!(answer["OUTPUT0"], json!(both(i32::wrapping_add)));
    assert_eq!(answer["OUTPUT1"], json!(both(i32::wrapping_sub)));

    let texts = |numbers: &[i64]| json!(numbers.iter().map(i64::to_string).collect::<Vec<_>>());
    let (one, other): (Vec<i64>, Vec<i64>) = ((0..16).collect(), vec![-7; 16]);
    let row = json!({"INPUT0": texts(&one), "INPUT1": texts(&other)});
    let answer = ask(&server, "simple_string", &row);
    let sums: Vec<_> = one.iter().map(|number| number - 7).collect();
    let differences: Vec<_> = one.iter().map(|number| number + 7).collect();
    assert_eq!(answer["OUTPUT0"], texts(&sums));
    assert_eq!(answer["OUTPUT1"], texts(&differences));
}

#[test]
fn a_non_numeric_text_is_rejected_by_row_and_input() {
    let (server, _folder) = server(&["simple_string"]);
    let good = json!(vec!["1"; 16]);
    let mut bad = vec!["1"; 16];
    bad[9] = "one";
    let rows = json!({"instances": [
        {"INPUT0": good, "INPUT1": good},
        {"INPUT0": good, "INPUT1": bad},
    ]});
    let answer = server.post("/models/simple_string/batch_predict", &rows);
    assert_eq!((answer.status, answer.error_code()), (422, Some("unacceptable_input")));
    let detail = &answer.body["details"][0];
    assert_eq!((&detail["row"], &detail["field"]), (&json!(1), &json!("INPUT1")));
}

/// Every datatype has an identity model. The golden examples contain the extreme values; these are
/// rows of other lengths, and batches.
#[test]
fn identity_models_return_their_input_in_every_datatype() {
    let (server, _folder) = server(&[]);
    let identities = fixture_names().into_iter().filter(|name| name.starts_with("identity_"));
    let mut seen = 0;
    for model in identities {
        let (one, other) = match model.as_str() {
            "identity_bool" => (json!([true, false, false]), json!([false, true, true])),
            "identity_bytes" => (json!(["AA==", "", "/w=="]), json!(["aGk=", "AA==", ""])),
            "identity_text" => (json!(["a", "", "ß"]), json!(["\u{0}", "b", "c"])),
            _ => (json!([1, 0, 100]), json!([7, 8, 9])),
        };
        let is = |answer: &Value, row: &Value| {
            let (answer, row) = (answer["OUTPUT0"].as_array(), row.as_array());
            let same = |(is, wanted): (&Value, &Value)| match (is.as_f64(), wanted.as_f64()) {
                (Some(is), Some(wanted)) => is.to_bits() == wanted.to_bits(),
                _ => is == wanted,
            };
            let (answer, row) = (answer.unwrap(), row.unwrap());
            assert_eq!(answer.len(), row.len(), "{model}");
            assert!(answer.iter().zip(row).all(same), "{model}: {answer:?} {row:?}");
        };
        is(&ask(&server, &model, &json!({ "INPUT0": one })), &one);
        let rows = json!({"instances": [{"INPUT0": one}, {"INPUT0": other}]});
        let answer = server.post(&format!("/models/{model}/batch_predict"), &rows);
        assert_eq!(answer.status, 200, "{model}: {answer:?}");
        is(&answer.body["results"][0], &one);
        is(&answer.body["results"][1], &other);
        seen += 1;
    }
    assert_eq!(seen, 15, "fourteen datatypes, and BYTES both as bytes and as text");
}

#[test]
fn row_sum_adds_rows_of_any_length() {
    let (server, _folder) = server(&["row_sum"]);
    for (row, sum) in [(vec![], 0.0), (vec![1.5], 1.5), (vec![0.25; 1000], 250.0)] {
        assert_eq!(ask(&server, "row_sum", &json!({ "INPUT0": row }))["OUTPUT0"], json!(sum));
    }
}

/// Input names are case-sensitive.
#[test]
fn input_names_are_case_sensitive() {
    let (server, _folder) = server(&["row_sum"]);
    let answer = server.post("/models/row_sum/predict", &json!({ "input0": [1.0] }));
    assert_eq!((answer.status, answer.error_code()), (400, Some("malformed_request")));
}
