use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use guesthouse_tests::artifacts::{run_host, temporary_folder};
use guesthouse_tests::state::state_with_packed_modules;
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/onnx-manifest").join(file)
}

/// What the framework that a model comes from has computed.
fn examples(file: &str) -> Vec<Value> {
    let lines = fs::read_to_string(data(file)).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn pack(graph: &Path, name: &str, output: &Path, more: &[&str]) -> Output {
    let (graph, output) = (graph.to_string_lossy(), output.to_string_lossy());
    let arguments = ["pack", "--onnx", &graph, "--name", name, "--version", "1.0.0", "-o", &output];
    run_host(&[&arguments, more].concat())
}

/// A server with a model of the data folder, packed with its manifest and its golden examples.
struct Served {
    server: Server,
    artifact: PathBuf,
    predict: String,
    batch_predict: String,
    _folder: tempfile::TempDir,
}

impl Served {
    fn start(name: &str, tolerance: &str) -> Self {
        let folder = temporary_folder();
        let artifact = folder.path().join(format!("{name}-1.0.0.wasm"));
        let file =
            |extension: &str| data(&format!("{name}.{extension}")).to_string_lossy().into_owned();
        let golden = file("jsonl");
        let mut more = vec!["--golden", golden.as_str(), "--tolerance", tolerance];
        let manifest = file("toml");
        if Path::new(&manifest).exists() {
            more.extend(["--manifest", manifest.as_str()]);
        }
        let packed = pack(&data(&format!("{name}.onnx")), name, &artifact, &more);
        assert!(packed.status.success(), "{packed:?}");
        let state = Some(state_with_packed_modules(folder.path()));
        let setup = Setup { artifacts: vec![artifact.clone()], state, ..Setup::default() };
        Self {
            server: Server::start(&setup),
            artifact,
            predict: format!("/models/{name}/predict"),
            batch_predict: format!("/models/{name}/batch_predict"),
            _folder: folder,
        }
    }

    fn signature(&self) -> Value {
        let inspected = run_host(&["inspect", "--json", &self.artifact.to_string_lossy()]);
        let report: Value = serde_json::from_slice(&inspected.stdout).unwrap();
        report["signature"].clone()
    }

    /// Ask for each example alone, and for all of them together.
    fn assert_answers(&self, examples: &[Value], tolerance: f64) {
        assert!(examples.len() >= 3);
        for example in examples {
            let answer = self.server.post(&self.predict, &example["inputs"]);
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_outputs(&answer.body, &example["outputs"], tolerance);
        }
        let instances: Vec<_> = examples.iter().map(|example| &example["inputs"]).collect();
        let answer = self.server.post(&self.batch_predict, &json!({ "instances": instances }));
        assert_eq!(answer.status, 200, "{answer:?}");
        let results = answer.body["results"].as_array().unwrap();
        assert_eq!(results.len(), examples.len());
        for (result, example) in results.iter().zip(examples) {
            assert_outputs(result, &example["outputs"], tolerance);
        }
    }

    fn assert_rejects(&self, instance: &Value) {
        let answer = self.server.post(&self.predict, instance);
        assert_eq!(answer.status, 422, "{instance}: {answer:?}");
    }
}

fn assert_outputs(found: &Value, expected: &Value, tolerance: f64) {
    for (name, expected) in expected.as_object().unwrap() {
        assert_close(&found[name], expected, tolerance);
    }
}

fn assert_close(found: &Value, expected: &Value, tolerance: f64) {
    match expected {
        Value::Array(expected) => {
            let found = found.as_array().unwrap();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert_close(found, expected, tolerance);
            }
        }
        Value::Number(expected) => {
            let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
        }
        _ => assert_eq!(found, expected),
    }
}

#[test]
fn labels_of_scikit_learn_are_served_without_its_zip_map() {
    let served = Served::start("species", "0.00001");
    served.assert_answers(&examples("species.jsonl"), 1e-5);
    let signature = served.signature();
    let names = |side: &str| -> Vec<String> {
        let fields = signature[side].as_array().unwrap();
        fields.iter().map(|field| field["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("inputs"), ["measures"]);
    assert_eq!(names("outputs"), ["species", "probabilities", "best", "setosa", "is_setosa"]);
    let input = &signature["inputs"][0];
    assert_eq!(input["description"], "length and width of sepal and petal, in cm");
    assert_eq!(input["constraints"], json!([{"range": {"minimum": 0.0, "maximum": 30.0}}]));
    let labels = json!(["text", {"one_of": ["setosa", "versicolor", "virginica"]}]);
    assert_eq!(signature["outputs"][2]["constraints"], labels);
    served.assert_rejects(&json!({"measures": [1, 2, 3, 31]}));
}

#[test]
fn columns_of_a_table_are_prepared_as_by_scikit_learn() {
    let served = Served::start("people", "0.00001");
    let examples = examples("people.jsonl");
    assert!(examples.iter().any(|example| example["inputs"]["age"].is_null()));
    served.assert_answers(&examples, 1e-5);
    served.assert_rejects(&json!({"age": 121, "hours": 1, "job": "nurse", "region": 1}));
    let incomplete = json!({"age": 12, "job": "nurse", "region": 1});
    assert_eq!(served.server.post(&served.predict, &incomplete).status, 400);
}

#[test]
fn texts_are_tokenized_padded_and_pooled() {
    let served = Served::start("encoder", "0.00001");
    served.assert_answers(&examples("encoder.jsonl"), 1e-5);
    let signature = served.signature();
    assert_eq!(signature["max_batch_size"], 32);
    assert_eq!(signature["inputs"].as_array().unwrap().len(), 1);
    served.assert_rejects(&json!({"text": "  "}));
}

#[test]
fn pictures_are_prepared_as_by_pillow() {
    // Decoders of JPEG round differently.
    let served = Served::start("picture", "0.002");
    served.assert_answers(&examples("picture.jsonl"), 2e-3);
    served.assert_rejects(&json!({"image": "aGVsbG8="}));
    assert_eq!(served.server.get("/healthz").status, 200);
}

#[test]
fn weights_in_another_file_are_packed() {
    let served = Served::start("external", "0.00001");
    served.assert_answers(&examples("external.jsonl"), 1e-5);
}

#[test]
fn texts_of_a_graph_are_served_as_texts() {
    let folder = temporary_folder();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/onnx-pipelines");
    let json = fs::read_to_string(source.join("one_hot.json")).unwrap();
    let found: Value = serde_json::from_str(&json).unwrap();
    let names = ["size", "age", "colour", "shape", "code"];
    let fields = names.map(|name| format!("[[inputs]]\nname = \"{name}\"\nscalar = true\n"));
    let manifest = folder.path().join("model.toml");
    fs::write(&manifest, fields.concat()).unwrap();
    let mut examples = Vec::new();
    for row in 0..12 {
        let inputs = names.map(|name| (name.to_owned(), found["inputs"][name][row][0].clone()));
        // JSON has no NaN.
        if inputs.iter().all(|(_name, value)| !value.is_null()) {
            let output = |name: &str| found["outputs"][name][row].clone();
            let outputs = json!({
                "output_label": output("output_label"),
                "output_probability": output("output_probability"),
            });
            examples
                .push(json!({"inputs": serde_json::Map::from_iter(inputs), "outputs": outputs}));
        }
    }
    assert!(examples.len() >= 6);
    let golden = folder.path().join("golden.jsonl");
    fs::write(&golden, examples.iter().map(|line| format!("{line}\n")).collect::<String>())
        .unwrap();
    let artifact = folder.path().join("colours-1.0.0.wasm");
    let (golden, manifest) = (golden.to_string_lossy(), manifest.to_string_lossy());
    let more = ["--golden", &*golden, "--manifest", &manifest];
    let packed = pack(&source.join("one_hot.onnx"), "colours", &artifact, &more);
    assert!(packed.status.success(), "{packed:?}");
    let state = Some(state_with_packed_modules(folder.path()));
    let server = Server::start(&Setup { artifacts: vec![artifact], state, ..Setup::default() });
    let instances: Vec<_> = examples.iter().map(|example| &example["inputs"]).collect();
    let answer = server.post("/models/colours/batch_predict", &json!({ "instances": instances }));
    assert_eq!(answer.status, 200, "{answer:?}");
    let results = answer.body["results"].as_array().unwrap();
    assert_eq!(results.len(), examples.len());
    for (result, example) in results.iter().zip(&examples) {
        assert_outputs(result, &example["outputs"], 1e-4);
    }
}

#[test]
fn rows_that_are_quantised_dynamically_do_not_depend_on_others() {
    let served = Served::start("dynamic", "0.001");
    let examples = examples("dynamic.jsonl");
    served.assert_answers(&examples, 1e-3);
    assert_eq!(served.signature()["max_batch_size"], 1);
    // A row of large numbers beside one of small ones would leave it a single step.
    let alone: Vec<_> = examples
        .iter()
        .map(|example| served.server.post(&served.predict, &example["inputs"]).body["y"].clone())
        .collect();
    let instances: Vec<_> = examples.iter().map(|example| &example["inputs"]).collect();
    let together = served.server.post(&served.batch_predict, &json!({ "instances": instances }));
    let together = together.body["results"].as_array().unwrap();
    let together: Vec<_> = together.iter().map(|result| result["y"].clone()).collect();
    assert_eq!(together, alone);
}

/// Packing with this manifest fails with this message, and leaves no file.
fn assert_rejected(folder: &Path, graph: &Path, manifest: &str, expected: &str) {
    let path = folder.join("model.toml");
    fs::write(&path, manifest).unwrap();
    let output = folder.join("out/model.wasm");
    let rejected = pack(graph, "model", &output, &["--manifest", &path.to_string_lossy()]);
    let error = String::from_utf8_lossy(&rejected.stderr);
    assert!(!rejected.status.success(), "{manifest}");
    assert!(error.contains(expected), "{manifest}: {error}");
    assert!(!folder.join("out").exists(), "{error}");
}

#[test]
fn manifests_that_are_wrong_leave_no_artifact() {
    let folder = temporary_folder();
    let folder = folder.path();
    fs::write(folder.join("gap.txt"), "a\n\nb\n").unwrap();
    let output = |graph: &str, steps: &str| {
        format!("[[outputs]]\nname = \"y\"\ngraph = \"{graph}\"\nsteps = [{steps}]\n")
    };
    for (manifest, expected) in [
        ("[[inputs]]\nname = \"x\"\ncolour = 1\n".to_owned(), "line 3: unknown field `colour`"),
        ("name = ".to_owned(), "line 1"),
        ("[[inputs]]\nname = \"a b\"\ngraph = \"X\"\n".to_owned(), "a name is 1 to 64"),
        ("[[inputs]]\nname = \"x\"\n".to_owned(), "has no input \"x\", but X"),
        ("[[inputs]]\nname = \"X\"\nlength = [1, 2]\n".to_owned(), "is for texts and files"),
        ("[[inputs]]\nname = \"X\"\nscalar = true\n".to_owned(), "rows of one element"),
        (output("scores", ""), "its outputs are output_label, output_probability"),
        (
            output("probabilities", "\"argmax\", { labels = [\"a\", \"b\"] }"),
            "2 texts for 3 classes",
        ),
        (output("probabilities", "{ top_k = 4 }"), "1 to 3"),
        (output("probabilities", "\"argmin\""), "unknown variant `argmin`"),
        (output("probabilities", "\"argmax\", { labels = \"absent.txt\" }"), "absent.txt"),
        (output("probabilities", "\"argmax\", { labels = \"gap.txt\" }"), "line 2 is empty"),
        (
            "[[tokenize]]\ninput = \"t\"\ntokenizer = \"absent.json\"\nmax_length = 8\n".to_owned(),
            "set `tokenizer` to the path",
        ),
        (
            "[[table]]\ngraph = \"X\"\ncolumns = [{ input = \"a\" }]\n".to_owned(),
            "the columns are 1 numbers",
        ),
    ] {
        assert_rejected(folder, &data("species.onnx"), &manifest, expected);
    }
}

#[test]
fn tokenizers_of_another_model_leave_no_artifact() {
    let folder = temporary_folder();
    let folder = folder.path();
    for file in ["wordpiece.json", "bpe.json"] {
        fs::copy(data(file), folder.join(file)).unwrap();
    }
    fs::write(folder.join("broken.json"), "{}").unwrap();
    let manifest = |tokenizer: &str, length: usize| {
        format!(
            "[[tokenize]]\ninput = \"text\"\ntokenizer = \"{tokenizer}\"\nmax_length = {length}\n"
        )
    };
    for (manifest, expected) in [
        (manifest("bpe.json", 16), "give the tokenizer of this model"),
        (manifest("broken.json", 16), "the tokenizer is not valid"),
        // The graph has 16 positions.
        (manifest("wordpiece.json", 17), "too many tokens"),
    ] {
        assert_rejected(folder, &data("encoder.onnx"), &manifest, expected);
    }
}

#[test]
fn external_data_that_is_missing_leaves_no_artifact() {
    let folder = temporary_folder();
    let graph = folder.path().join("external.onnx");
    fs::copy(data("external.onnx"), &graph).unwrap();
    assert_rejected(folder.path(), &graph, "", "\"external.onnx.data\" is missing");
    std::os::unix::fs::symlink(
        data("external.onnx.data"),
        folder.path().join("external.onnx.data"),
    )
    .unwrap();
    assert_rejected(folder.path(), &graph, "", "is outside of the model's folder");
}
