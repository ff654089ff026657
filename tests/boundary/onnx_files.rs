use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use guesthouse_tests::artifacts::{run_host, temporary_folder};
use guesthouse_tests::state::state_with_packed_modules;
use guesthouse_tests::{Server, Setup};
use serde_json::Value;

fn iris(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/iris").join(file)
}

fn pack(file: &Path, output: &Path, more: &[&str]) -> Output {
    let (file, output) = (file.to_string_lossy(), output.to_string_lossy());
    let arguments =
        ["pack", "--onnx", &file, "--name", "iris", "--version", "1.0.0", "-o", &output];
    run_host(&[&arguments, more].concat())
}

fn oracle() -> Vec<Value> {
    let lines = fs::read_to_string(iris("oracle.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn assert_close(found: &Value, expected: &Value) {
    match (found.as_array(), expected.as_array()) {
        (Some(found), Some(expected)) => {
            assert_eq!(found.len(), expected.len());
            found.iter().zip(expected).for_each(|(found, expected)| assert_close(found, expected));
        }
        _ => {
            let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
        }
    }
}

#[test]
fn pipeline_of_scikit_learn_is_packed_and_answers_as_itself() {
    let folder = temporary_folder();
    let artifact = folder.path().join("iris-1.0.0.wasm");
    let golden = iris("oracle.jsonl");
    let packed = pack(&iris("iris.onnx"), &artifact, &["--golden", &golden.to_string_lossy()]);
    assert!(packed.status.success(), "{packed:?}");
    let state = state_with_packed_modules(folder.path());
    let setup = Setup { artifacts: vec![artifact], state: Some(state), ..Setup::default() };
    let server = Server::start(&setup);
    let oracle = oracle();
    assert!(oracle.len() >= 12);
    for example in &oracle {
        let answer = server.post("/models/iris/predict", &example["inputs"]);
        assert_eq!(answer.status, 200, "{answer:?}");
        for output in ["label", "probabilities"] {
            assert_close(&answer.body[output], &example["outputs"][output]);
        }
    }
    let wrong = server.post("/models/iris/predict", &serde_json::json!({ "X": [1, 2, 3] }));
    assert_eq!(wrong.status, 422, "{wrong:?}");
}

#[test]
fn onnx_file_without_golden_examples_records_what_it_computes() {
    let folder = temporary_folder();
    let artifact = folder.path().join("new/iris-1.0.0.wasm");
    let packed = pack(&iris("iris.onnx"), &artifact, &["--max-batch-size", "7"]);
    assert!(packed.status.success(), "{packed:?}");
    let inspected = run_host(&["inspect", "--json", &artifact.to_string_lossy()]);
    let report: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(report["signature"]["max_batch_size"], 7);
    let example = &report["golden_examples"][0];
    assert_eq!(example["inputs"]["X"], serde_json::json!([0, 0, 0, 0]));
    let sum: f64 = example["outputs"]["probabilities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|probability| probability.as_f64().unwrap())
        .sum();
    assert!((sum - 1.0).abs() < 1e-5, "{example}");
}

#[test]
fn rejected_onnx_file_leaves_no_artifact() {
    let folder = temporary_folder();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let good = fs::read(iris("iris.onnx")).unwrap();
    let replaced = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        // The type of the operator, which follows the name of the node.
        let at = good.windows(from.len()).rposition(|window| window == from).unwrap();
        [&good[..at], to, &good[at + from.len()..]].concat()
    };
    let wrong_answer = br#"{"inputs": {"X": [5, 3, 1, 0]}, "outputs": {"label": 2}}"#;
    let wrong_golden = write("wrong.jsonl", wrong_answer).to_string_lossy().into_owned();
    let no_golden = write("none.jsonl", b"\n").to_string_lossy().into_owned();
    let output = folder.path().join("out/iris.wasm");
    for (file, more, expected) in [
        (write("short.onnx", &good[..good.len() / 2]), vec![], "it is not ONNX"),
        (folder.path().join("absent.onnx"), vec![], "absent.onnx"),
        (
            write("operator.onnx", &replaced(b"LinearClassifier", b"LinearClassifieR")),
            vec![],
            "tract has no operator LinearClassifieR (node",
        ),
        (iris("iris.onnx"), vec!["--golden", wrong_golden.as_str()], "golden example 1"),
        (iris("iris.onnx"), vec!["--golden", no_golden.as_str()], "no golden examples"),
        (iris("iris.onnx"), vec!["--max-batch-size", "0"], "max-batch-size"),
        (iris("iris.onnx"), vec!["--component", wrong_golden.as_str()], "component"),
    ] {
        let rejected = pack(&file, &output, &more);
        let error = String::from_utf8_lossy(&rejected.stderr);
        assert!(!rejected.status.success(), "{} {more:?}", file.display());
        assert!(error.contains(expected), "{}: {error}", file.display());
        assert!(!folder.path().join("out").exists(), "{error}");
    }
    for (name, version, expected) in
        [("Iris", "1.0.0", "a model's name"), ("iris", "1", "invalid value '1'")]
    {
        let (file, output) = (iris("iris.onnx"), output.to_string_lossy());
        let file = file.to_string_lossy();
        let named = ["--name", name, "--version", version, "-o", &output];
        let rejected = run_host(&[&["pack", "--onnx", &file][..], &named].concat());
        let error = String::from_utf8_lossy(&rejected.stderr);
        assert!(error.contains(expected), "{error}");
    }
}
