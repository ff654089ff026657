use std::fs;
use std::path::Path;
use std::process::Output;

use guesthouse_tests::artifacts::{self, Arithmetic, run_host, temporary_folder};
use serde_json::Value;

fn verify(artifact: &Path, more: &[&str]) -> Output {
    run_host(&[&["verify", &artifact.to_string_lossy()], more].concat())
}

fn report(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"))
}

#[test]
fn good_artifact_passes_under_every_policy() {
    let folder = temporary_folder();
    let plain = artifacts::fixture("row_sum", folder.path());
    let passed = verify(&plain, &["--json"]);
    assert_eq!(passed.status.code(), Some(0), "{passed:?}");
    let found = report(&passed);
    assert_eq!(found["passed"], true);
    let policies = |found: &Value| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let policies = found["policies"].as_array().unwrap().iter();
        policies.map(|policy| (text(&policy["isolation"]), text(&policy["arithmetic"]))).collect()
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned())).collect()
    };
    assert_eq!(policies(&found), pairs(&[("fresh", "not used"), ("reuse", "not used")]));
    for policy in found["policies"].as_array().unwrap() {
        assert_eq!((&policy["failed"], &policy["snapshot"]), (&0.into(), &true.into()));
        assert!(policy["calls"].as_u64().unwrap() >= 100, "{policy}");
        assert!(policy["median_ms"].as_f64().unwrap() <= policy["p99_ms"].as_f64().unwrap());
        assert!(policy["instance_memory_bytes"].as_u64().unwrap() >= 64 << 10, "{policy}");
    }

    let state = folder.path().join("state").to_string_lossy().into_owned();
    let computing = Arithmetic::default().pack(folder.path());
    for _ in 0..2 {
        let passed = verify(&computing, &["--json", "--state", &state]);
        assert_eq!(passed.status.code(), Some(0), "{passed:?}");
        let (granted, denied) = ("granted", "denied");
        let all = [("fresh", granted), ("reuse", granted), ("fresh", denied), ("reuse", denied)];
        assert_eq!(policies(&report(&passed)), pairs(&all));
    }
    let table = verify(&plain, &[]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.starts_with("row_sum 1.0.0") && table.lines().count() == 4, "{table}");
}

#[test]
fn guest_that_needs_the_grant_fails_without_it() {
    let folder = temporary_folder();
    let insists = Arithmetic { insists: true, ..Arithmetic::default() }.pack(folder.path());
    let failed = verify(&insists, &["--json"]);
    assert_eq!(failed.status.code(), Some(3), "{failed:?}");
    let found = report(&failed);
    let failed: Vec<_> =
        found["policies"].as_array().unwrap().iter().map(|policy| &policy["failed"]).collect();
    assert_eq!(failed, [0, 0, 1, 1]);
    assert_eq!(found["failures"][0]["arithmetic"], "denied");
}

#[test]
fn skew_is_reported_by_row_and_element() {
    let folder = temporary_folder();
    let artifact = artifacts::fixture("row_sum", folder.path());
    let recorded = folder.path().join("recorded.jsonl");
    let rows = [
        r#"{"inputs": {"INPUT0": [1, 2]}, "outputs": {"OUTPUT0": 3}}"#,
        r#"{"inputs": {"INPUT0": [1, 2]}, "outputs": {"OUTPUT0": 3.0625}}"#,
        r#"{"inputs": {"INPUT0": ["a"]}, "outputs": {"OUTPUT0": 0}}"#,
        r#"{"inputs": {"INPUT0": [1]}, "outputs": {"OUTPUT1": 1}}"#,
    ];
    fs::write(&recorded, rows.join("\n")).unwrap();
    let recorded = recorded.to_string_lossy();
    let failed = verify(&artifact, &["--json", "--against", &recorded]);
    assert_eq!(failed.status.code(), Some(3), "{failed:?}");
    let found = report(&failed);
    let failures: Vec<_> =
        found["failures"].as_array().unwrap().iter().map(|one| &one["example"]).collect();
    assert_eq!(failures, [2, 3, 4]);
    let skew = &found["recorded"]["outputs"][0];
    assert_eq!((&skew["elements"], &skew["equal"]), (&2.into(), &1.into()));
    assert_eq!(skew["largest_difference"], 0.0625);

    let lines = verify(&artifact, &["--against", &recorded, "--tolerance", "OUTPUT0=0.1"]);
    assert_eq!(lines.status.code(), Some(3), "{lines:?}");
    let lines = String::from_utf8_lossy(&lines.stdout).into_owned();
    let failing: Vec<_> = lines.lines().filter(|line| line.starts_with("recorded ex")).collect();
    assert_eq!(failing.len(), 2, "{lines}");
    assert!(failing[0].contains("example 3") && failing[0].contains("INPUT0"), "{lines}");
    assert!(failing[1].contains("example 4") && failing[1].contains("OUTPUT1"), "{lines}");
}

#[test]
fn what_cannot_be_verified_is_rejected_before_compiling() {
    let folder = temporary_folder();
    let artifact = artifacts::fixture("row_sum", folder.path());
    let state = folder.path().join("state");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    };
    let broken = write("broken.jsonl", "{\"inputs\": {}, \"outputs\": {\"a\": 1}}\n{\"inputs\":");
    let (empty, no_outputs) =
        (write("empty.jsonl", "\n"), write("none.jsonl", "{\"inputs\":{},\"outputs\":{}}"));
    let absent = folder.path().join("absent").to_string_lossy().into_owned();
    for (more, code, expected) in [
        (["--against", &broken], 1, "line 2"),
        (["--against", &empty], 1, "no rows"),
        (["--against", &no_outputs], 1, "no outputs"),
        (["--against", &absent], 1, "absent"),
        (["--tolerance", "OUTPUT0"], 2, "score=1e-3"),
        (["--tolerance", "OUTPUT0=-1"], 2, "score=1e-3"),
        (["--tolerance", "SUM=1"], 2, "it has OUTPUT0"),
    ] {
        let state = ["--state", &state.to_string_lossy()];
        let rejected = verify(&artifact, &[&more[..], &state].concat());
        let error = String::from_utf8_lossy(&rejected.stderr);
        assert_eq!(rejected.status.code(), Some(code), "{more:?}: {error}");
        assert!(error.contains(expected), "{more:?}: {error}");
    }
    let no_artifact = verify(Path::new(&broken), &[]);
    assert_eq!(no_artifact.status.code(), Some(1), "{no_artifact:?}");
    assert!(!state.exists());
}
