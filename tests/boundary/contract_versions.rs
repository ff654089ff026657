use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guesthouse_tests::artifacts::{growing, run_host, temporary_folder};
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

/// The folder of the artifacts that releases left.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contracts")
}

/// The artifacts by their version of the contract.
fn artifacts() -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for contract in fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()) {
        if contract.is_dir() {
            let name = contract.file_name().unwrap().to_string_lossy().into_owned();
            let artifacts = fs::read_dir(&contract).unwrap().map(|entry| entry.unwrap().path());
            let artifacts: Vec<_> = artifacts.collect();
            let [artifact] = &artifacts[..] else { panic!("{name} has {artifacts:?}") };
            found.insert(name, artifact.clone());
        }
    }
    found
}

fn inspect(artifact: &Path) -> Value {
    let inspected = run_host(&["inspect", "--json", &artifact.to_string_lossy()]);
    serde_json::from_slice(&inspected.stdout).unwrap()
}

fn setup(state: &Path, artifacts: Vec<PathBuf>) -> Setup {
    Setup { artifacts, state: Some(state.join("state")), ..Setup::default() }
}

/// Asserts that a version answers every golden example of an artifact exactly.
fn assert_answers_golden_examples(server: &Server, report: &Value) {
    let (model, version) = (report["model"].as_str().unwrap(), report["version"].as_str().unwrap());
    let examples = report["golden_examples"].as_array().unwrap();
    assert!(!examples.is_empty(), "{model}");
    for example in examples {
        let path = format!("/models/{model}/versions/{version}/predict");
        let answer = server.post(&path, &example["inputs"]);
        assert_eq!(answer.status, 200, "{answer:?}");
        for (output, expected) in example["outputs"].as_object().unwrap() {
            // The golden examples may write `8` where an answer has `8.0`.
            assert_eq!(answer.body[output].as_f64(), expected.as_f64(), "{model} {output}");
        }
    }
}

#[test]
fn there_is_an_artifact_of_every_contract_as_it_was_made() {
    for contract in guesthouse_artifact::CONTRACT_VERSIONS {
        let artifact = artifacts().remove(contract).unwrap_or_else(|| panic!("{contract}"));
        let exports = inspect(&artifact)["exports"].clone();
        let export = format!("guesthouse:model/predict@{contract}");
        assert!(exports.as_array().unwrap().contains(&export.into()), "{exports}");
    }
    let mut sums = Command::new("sha256sum");
    sums.args(["--check", "--strict", "SHA256SUMS"]).current_dir(folder()).stdout(Stdio::piped());
    let checked = sums.output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let listed = String::from_utf8(checked.stdout).unwrap().lines().count();
    assert_eq!(listed, artifacts().len());
}

#[test]
fn artifacts_of_all_contracts_are_served_side_by_side() {
    let state = temporary_folder();
    let setup = setup(state.path(), artifacts().into_values().collect());
    // Compiled at the first start, and taken from the state folder at the second.
    for _start in 0..2 {
        let server = Server::start(&setup);
        for artifact in artifacts().values() {
            let report = inspect(artifact);
            assert_answers_golden_examples(&server, &report);
            let name = |key: &str| report[key].as_str().unwrap().to_owned();
            let path = format!("/models/{}/versions/{}", name("model"), name("version"));
            assert_eq!(server.send("GET", &path, &[], b"").body["snapshot"], true, "{path}");
        }
        assert!(server.stop().0.success());
    }
}

#[test]
fn a_rollout_from_one_contract_to_the_next_is_an_ordinary_one() {
    let folder = temporary_folder();
    let old = artifacts().remove("0.2.0").unwrap();
    let report = inspect(&old);
    assert_eq!((&report["model"], &report["version"]), (&json!("growing"), &json!("1.1.0")));
    let server = Server::start(&setup(folder.path(), vec![old]));

    // The same signature, built for the contract of this release.
    let operation = server.deploy(&growing("growing", "1.2.0", 2, folder.path()));
    assert_eq!(operation["state"], "done", "{operation}");
    assert_eq!(operation["result"]["replay"]["of"], "1.1.0", "{operation}");
    assert_eq!(operation["result"]["replay"]["differences"], json!([]), "{operation}");
    let weight = json!({"version": "1.2.0", "weight": "50%"});
    let canary = server.admin("POST", "models/growing/canary", &weight);
    assert_eq!(canary.status, 200, "{canary:?}");
    let mut versions = BTreeMap::<String, usize>::new();
    server.eventually("both versions answer", |server| {
        let answer = server.post("/models/growing/predict", &json!({"text": "four", "factor": 3}));
        assert_eq!(answer.body["weight"], 12.0, "{answer:?}");
        let version = answer.body["model_version"].as_str().unwrap();
        *versions.entry(version.to_owned()).or_default() += 1;
        versions.len() == 2
    });

    // A signature that callers of the old version do not understand.
    let operation = server.deploy(&growing("growing", "1.3.0", 3, folder.path()));
    assert_eq!(operation["state"], "failed", "{operation}");
    assert_eq!(operation["error"]["error_code"], "contract_violation", "{operation}");
    assert_answers_golden_examples(&server, &report);
}

#[test]
fn a_rollback_to_an_older_contract_answers_as_before() {
    let folder = temporary_folder();
    let old = artifacts().remove("0.2.0").unwrap();
    let report = inspect(&old);
    let server = Server::start(&setup(folder.path(), vec![old]));
    server.deploy(&growing("growing", "1.2.0", 2, folder.path()));
    let promoted = server.admin("POST", "models/growing/promote", &json!({"version": "1.2.0"}));
    assert_eq!(promoted.status, 200, "{promoted:?}");
    let rolled_back = server.admin("POST", "models/growing/rollback", &json!({}));
    assert_eq!(rolled_back.status, 200, "{rolled_back:?}");
    assert_eq!(server.model("growing")["stable"], "1.1.0");
    assert_answers_golden_examples(&server, &report);
}
