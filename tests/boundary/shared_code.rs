use std::fs;
use std::path::Path;

use guesthouse_tests::artifacts::{Misbehave, temporary_folder, toxicity};
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

fn setup(folder: &Path) -> Setup {
    Setup {
        artifacts: vec![toxicity("1.0.0"), toxicity("2.0.0")],
        state: Some(folder.join("state")),
        ..Setup::default()
    }
}

/// The sizes of the compiled modules and of the compiled versions, in bytes.
fn compiled_sizes(folder: &Path) -> (Vec<u64>, Vec<u64>) {
    let (mut modules, mut versions) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder.join("state/compiled")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let sizes = if name.starts_with("module-") { &mut modules } else { &mut versions };
        if name.ends_with(".cwasm") {
            sizes.push(entry.metadata().unwrap().len());
        }
    }
    (modules, versions)
}

fn label(server: &Server, version: &str) -> Value {
    let path = format!("/models/toxicity/versions/{version}/predict");
    let answer = server.post(&path, &json!({"text": "That is lame"}));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["label"].clone()
}

#[test]
fn versions_of_one_guest_are_compiled_once() {
    let folder = temporary_folder();
    let server = Server::start(&setup(folder.path()));
    let (modules, versions) = compiled_sizes(folder.path());
    assert_eq!((modules.len(), versions.len()), (1, 2));
    let is_small = |version: &u64| modules[0] > 5 * version;
    assert!(versions.iter().all(is_small), "the code is shared: {modules:?}, {versions:?}");
    let compiled = |line: &Value| line["message"] == "compiled";
    let steps: Vec<_> = server.lines().into_iter().filter(compiled).collect();
    assert_eq!(steps.len(), 2, "{steps:?}");
    let labels = [label(&server, "1.0.0"), label(&server, "2.0.0")];
    assert!(labels[0] != labels[1], "each has its own threshold: {labels:?}");
    server.stop();
    let again = Server::start(&setup(folder.path()));
    assert_eq!(labels, [label(&again, "1.0.0"), label(&again, "2.0.0")]);
    assert!(!again.lines().iter().any(compiled), "a second start compiles nothing");
}

#[test]
fn a_lost_module_is_compiled_again() {
    let folder = temporary_folder();
    let artifacts = vec![Misbehave::default().pack(folder.path())];
    let state = Some(folder.path().join("state"));
    let setup = Setup { artifacts, state, ..Setup::default() };
    Server::start(&setup).stop();
    let compiled = folder.path().join("state/compiled");
    for entry in fs::read_dir(&compiled).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("module-") {
            fs::remove_file(path).unwrap();
        }
    }
    let server = Server::start(&setup);
    let answer = server.post("/predict", &json!({"action": "echo"}));
    assert_eq!(answer.status, 200, "{answer:?}");
}
