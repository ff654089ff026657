use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use guesthouse_tests::artifacts::{
    Misbehave, make_pipe, replace_bytes, run_host, temporary_folder,
};
use guesthouse_tests::{HttpResponse, Server, Setup, eventually_some};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How often the folder is read.
const INTERVAL: Duration = Duration::from_secs(1);

/// The misbehaving guest in a folder that is read every second.
fn setup(folder: &Path) -> Setup {
    let artifacts = vec![pack(folder, "1.0.0")];
    let config = "[limits]\nrepository_seconds = 1\n".to_owned();
    Setup { artifacts, config, ..Setup::default() }
}

fn start() -> (Server, TempDir) {
    let folder = temporary_folder();
    let state = Some(folder.path().join("state"));
    (Server::start(&Setup { state, ..setup(folder.path()) }), folder)
}

fn pack(folder: &Path, version: &'static str) -> PathBuf {
    Misbehave { version, ..Misbehave::default() }.pack(folder)
}

/// Moves a file into the repository atomically.
fn put(server: &Server, file: &Path, name: &str) {
    fs::rename(file, server.repository().join(name)).unwrap();
}

fn wait_until_ready(server: &Server, version: &str) {
    let ready = |line: &Value| line["message"] == "version ready" && line["version"] == version;
    server.wait_for(version, ready);
}

fn wait_until_refused(server: &Server, version: &str, step: &str) -> Value {
    let refused = |line: &Value| {
        line["level"] == "ERROR" && line["version"] == version && line["step"] == step
    };
    server.wait_for(step, refused)
}

fn is_about(line: &Value, file: &str) -> bool {
    line["level"] == "ERROR" && line["file"] == file
}

fn predict_with(server: &Server, version: &str) -> HttpResponse {
    let path = format!("/models/misbehave/versions/{version}/predict");
    server.post(&path, &json!({"action": "echo"}))
}

fn assert_serves(server: &Server, version: &str) {
    let answer = predict_with(server, version);
    assert_eq!((answer.status, &answer.body["model_version"]), (200, &json!(version)));
}

/// The routing of the model.
fn routing(server: &Server) -> Value {
    let model = server.model("misbehave");
    ["stable", "candidates", "shadow", "promoted"].map(|part| model[part].clone()).into()
}

/// The admin API's description of a version.
fn version_status(server: &Server, version: &str) -> Value {
    let model = server.model("misbehave");
    let versions = model["versions"].as_array().unwrap();
    let found = versions.iter().find(|version_status| version_status["version"] == version);
    found.cloned().unwrap_or_default()
}

fn digest(artifact: &Path) -> Value {
    let output = run_host(&["inspect", "--json", &artifact.to_string_lossy()]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["digest"].is_string(), "{report}");
    report["digest"].clone()
}

#[test]
fn a_new_file_is_deployed_without_changing_the_routing() {
    let (server, folder) = start();
    assert_eq!(server.deploy(&pack(folder.path(), "1.1.0"))["state"], "done");
    let weight = json!({"version": "1.1.0", "weight": 100_000});
    assert_eq!(server.admin("POST", "models/misbehave/canary", &weight).status, 200);
    let before = routing(&server);
    assert_eq!(before, json!(["1.0.0", {"1.1.0": 100_000}, null, []]));

    let file = pack(folder.path(), "1.2.0");
    let wanted = digest(&file);
    put(&server, &file, "any-name.wasm");
    wait_until_ready(&server, "1.2.0");
    let answer = predict_with(&server, "1.2.0");
    assert_eq!((answer.status, answer.header("x-model-version")), (200, Some("1.2.0")));
    assert_eq!(answer.header("x-route-reason"), Some("pin"));
    assert_eq!(routing(&server), before);
    let version = version_status(&server, "1.2.0");
    assert_eq!((&version["state"], &version["digest"]), (&json!("ready"), &wanted));
    for _ in 0..50 {
        let answer = server.post("/models/misbehave/predict", &json!({"action": "echo"}));
        assert_eq!((answer.status, answer.header("x-route-reason")), (200, Some("split")));
        assert_ne!(answer.body["model_version"], "1.2.0");
    }
    let history = server.admin("GET", "history?limit=1", &Value::Null).body;
    let entry = &history["entries"][0];
    assert_eq!((&entry["operation"], &entry["version"]), (&json!("deploy"), &json!("1.2.0")));
    assert_eq!((&entry["actor"], &entry["digest"]), (&json!("repository"), &wanted));
}

/// Writes an artifact in many small pieces over several reads of the folder. Whether no pause was so
/// long that the server could take the file for complete.
fn write_slowly(server: &Server, name: &str, bytes: &[u8]) -> bool {
    let mut file = File::create(server.repository().join(name)).unwrap();
    let begun = Instant::now();
    let (mut written, mut longest) = (0, Duration::ZERO);
    while begun.elapsed() < 4 * INTERVAL {
        let piece = Instant::now();
        file.write_all(&bytes[written..=written]).unwrap();
        written += 1;
        assert_serves(server, "1.0.0");
        longest = longest.max(piece.elapsed());
    }
    file.write_all(&bytes[written..]).unwrap();
    longest < INTERVAL
}

#[test]
fn a_slowly_written_file_is_deployed_when_complete() {
    let (server, folder) = start();
    // On a busy machine, an attempt may pause for too long. Each writes another version.
    let mut versions = ["1.1.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0", "1.6.0"].into_iter();
    let (version, name) = eventually_some("a file is written without a long pause", || {
        let version = versions.next().expect("the machine pauses in every attempt");
        let name = format!("slow-{version}.wasm");
        let bytes = fs::read(pack(folder.path(), version)).unwrap();
        write_slowly(&server, &name, &bytes).then_some((version, name))
    });
    wait_until_ready(&server, version);
    assert_serves(&server, version);
    let broken = server.lines().into_iter().find(|line| is_about(line, &name));
    assert_eq!(broken, None);
}

/// Files that are not artifacts, each with the version that replaces it later.
fn put_invalid_files(server: &Server, folder: &Path) -> [(&'static str, &'static str); 7] {
    let path = |name: &str| server.repository().join(name);
    let good = fs::read(pack(folder, "1.0.9")).unwrap();
    fs::write(path("empty.wasm"), b"").unwrap();
    fs::write(path("text.wasm"), b"#!/bin/sh\necho hello\n").unwrap();
    fs::write(path("truncated.wasm"), &good[..good.len() / 2]).unwrap();
    make_pipe(&path("pipe.wasm"));
    fs::create_dir(path("folder.wasm")).unwrap();
    symlink(folder.join("target.wasm"), path("dangling.wasm")).unwrap();
    symlink("loop.wasm", path("loop.wasm")).unwrap();
    [
        ("empty.wasm", "1.0.1"),
        ("text.wasm", "1.0.2"),
        ("truncated.wasm", "1.0.3"),
        ("pipe.wasm", "1.0.4"),
        ("folder.wasm", "1.0.5"),
        ("dangling.wasm", "1.0.6"),
        ("loop.wasm", "1.0.7"),
    ]
}

#[test]
fn invalid_files_are_reported_once_until_replaced() {
    let (server, folder) = start();
    let before = (routing(&server), server.model("misbehave")["revision"].clone());
    let invalid = put_invalid_files(&server, folder.path());
    for (name, _) in invalid {
        let line = server.wait_for(name, |line| is_about(line, name));
        assert_eq!(line["step"], "artifact", "{line}");
    }
    assert_eq!((routing(&server), server.model("misbehave")["revision"].clone()), before);
    assert_serves(&server, "1.0.0");

    // Takes at least two more reads of the folder.
    let linked = pack(folder.path(), "1.0.8");
    symlink(&linked, server.repository().join("link.wasm")).unwrap();
    wait_until_ready(&server, "1.0.8");
    assert_serves(&server, "1.0.8");
    let reports = |name: &str| server.lines().iter().filter(|line| is_about(line, name)).count();
    for (name, _) in invalid {
        assert_eq!(reports(name), 1, "{name}");
    }

    fs::remove_dir(server.repository().join("folder.wasm")).unwrap();
    for (name, version) in invalid {
        let good = pack(folder.path(), version);
        if name == "dangling.wasm" {
            fs::rename(good, folder.path().join("target.wasm")).unwrap();
        } else {
            put(&server, &good, name);
        }
    }
    for (name, version) in invalid {
        wait_until_ready(&server, version);
        assert_serves(&server, version);
        assert_eq!(reports(name), 1, "{name}");
    }
    assert_eq!(routing(&server), before.0);
}

#[test]
fn of_two_files_of_one_version_the_first_name_wins() {
    let folder = temporary_folder();
    let one = pack(folder.path(), "1.1.0");
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    let golden = "{\"inputs\": {\"action\": \"echo\"}, \"outputs\": {\"done\": \"echo\"}}\n\n";
    let other = Misbehave { version: "1.1.0", golden, ..Misbehave::default() }.pack(&other);
    assert_ne!(digest(&one), digest(&other));
    for (index, (first, second)) in [(&one, &other), (&other, &one)].into_iter().enumerate() {
        let state = folder.path().join(format!("state-{index}"));
        let setup = Setup { state: Some(state), ..setup(folder.path()) };
        let both = |repository: &Path| {
            // The file with the later name is written first.
            fs::copy(second, repository.join("b.wasm")).unwrap();
            fs::copy(first, repository.join("a.wasm")).unwrap();
        };
        // The second start remembers the deployed version, and so does a third start without the
        // folder.
        for _ in 0..2 {
            let server = Server::start_with(&setup, both);
            let conflicts: Vec<_> =
                server.lines().into_iter().filter(|line| line["step"] == "conflict").collect();
            let [conflict] = &conflicts[..] else { panic!("{conflicts:?}") };
            assert_eq!(conflict["file"], "b.wasm");
            assert_eq!(version_status(&server, "1.1.0")["digest"], digest(first));
            assert_serves(&server, "1.1.0");
            assert!(server.stop().0.success());
        }
        let server = Server::start(&Setup { artifacts: Vec::new(), ..setup });
        assert_eq!(version_status(&server, "1.1.0")["digest"], digest(first));
        // A deployed version stays, even if a file with an earlier name appears.
        fs::copy(second, server.repository().join("0.wasm")).unwrap();
        let line = server.wait_for("a conflict", |line| is_about(line, "0.wasm"));
        assert_eq!(line["step"], "conflict");
        assert_eq!(version_status(&server, "1.1.0")["digest"], digest(first));
        assert_serves(&server, "1.1.0");
    }
}

fn conflicts(server: &Server) -> Vec<Value> {
    server.lines().into_iter().filter(|line| line["step"] == "conflict").collect()
}

#[test]
fn a_broken_file_does_not_block_a_good_one() {
    let folder = temporary_folder();
    let good = pack(folder.path(), "1.1.0");
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    let golden = r#"{"inputs": {"action": "echo"}, "outputs": {"done": "ohce"}}"#;
    let wrong = Misbehave { version: "1.1.0", golden, ..Misbehave::default() }.pack(&other);
    let failing = folder.path().join("failing.wasm");
    fs::copy(&good, &failing).unwrap();
    replace_bytes(&failing, r#""init":"well""#, r#""init":"fail""#);
    let both = |repository: &Path| {
        fs::copy(&wrong, repository.join("a.wasm")).unwrap();
        fs::copy(&failing, repository.join("b.wasm")).unwrap();
        fs::copy(&good, repository.join("c.wasm")).unwrap();
    };
    let assert_good = |server: &Server| {
        wait_until_refused(server, "1.1.0", "golden");
        wait_until_refused(server, "1.1.0", "preinit");
        wait_until_ready(server, "1.1.0");
        assert_serves(server, "1.1.0");
        assert_eq!(version_status(server, "1.1.0")["digest"], digest(&good));
        assert_eq!(conflicts(server), Vec::<Value>::new());
    };
    // With the files present at the start, and with files that appear later.
    let state = |name: &str| Some(folder.path().join(name));
    let server = Server::start_with(&Setup { state: state("one"), ..setup(folder.path()) }, both);
    assert_good(&server);
    let server = Server::start(&Setup { state: state("two"), ..setup(folder.path()) });
    both(&server.repository());
    assert_good(&server);
}

#[test]
fn a_broken_files_signature_does_not_bind_a_good_one() {
    let (server, folder) = start();
    // Its declared signature differs from the real one, and would make the good version a minor
    // step.
    let broken = pack(folder.path(), "1.1.0");
    replace_bytes(&broken, r#""max_batch_size":8"#, r#""max_batch_size":9"#);
    put(&server, &pack(folder.path(), "1.1.1"), "a.wasm");
    put(&server, &broken, "b.wasm");
    wait_until_refused(&server, "1.1.0", "signature");
    wait_until_ready(&server, "1.1.1");
    assert_serves(&server, "1.1.1");
}

#[test]
fn a_patch_that_changes_the_signature_is_rejected() {
    let (server, folder) = start();
    let changed = pack(folder.path(), "1.0.1");
    replace_bytes(&changed, r#""max_batch_size":8"#, r#""max_batch_size":9"#);
    put(&server, &changed, "patch.wasm");
    let line = wait_until_refused(&server, "1.0.1", "contract");
    assert!(line["reason"].as_str().unwrap().contains("minor"), "{line}");
    let version = version_status(&server, "1.0.1");
    assert_eq!(
        (&version["state"], &version["failed_step"]),
        (&json!("failed"), &json!("contract"))
    );
    assert!(version["reason"].is_string());
    let answer = predict_with(&server, "1.0.1");
    assert_eq!((answer.status, answer.error_code()), (503, Some("not_ready")));
    let answer = server.post("/models/misbehave/predict", &json!({"action": "echo"}));
    assert_eq!((answer.status, &answer.body["model_version"]), (200, &json!("1.0.0")));

    put(&server, &pack(folder.path(), "1.0.1"), "patch.wasm");
    wait_until_ready(&server, "1.0.1");
    assert_serves(&server, "1.0.1");
    assert_eq!(version_status(&server, "1.0.1")["state"], "ready");
}

#[test]
fn a_version_whose_file_is_removed_stays_deployed() {
    let folder = temporary_folder();
    let state = Some(folder.path().join("state"));
    let mut setup = Setup { state, ..setup(folder.path()) };
    setup.artifacts.push(pack(folder.path(), "1.1.0"));
    let server = Server::start(&setup);
    for name in ["misbehave-1.0.0.wasm", "misbehave-1.1.0.wasm"] {
        fs::remove_file(server.repository().join(name)).unwrap();
    }
    // When the server has reported the later file, it has also noticed the removal.
    fs::write(server.repository().join("junk.wasm"), b"").unwrap();
    server.wait_for("the next read of the folder", |line| is_about(line, "junk.wasm"));
    let assert_unchanged = |server: &Server| {
        assert_serves(server, "1.0.0");
        assert_serves(server, "1.1.0");
        assert_eq!(routing(server), json!(["1.1.0", {}, null, []]));
    };
    assert_unchanged(&server);
    assert!(server.stop().0.success());
    setup.artifacts.clear();
    assert_unchanged(&Server::start(&setup));
}

/// Changes a file's modification time, so that it is read again.
fn touch(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(1)).unwrap();
}

fn wait_until_skipped(server: &Server, file: &str) {
    let skipped = |line: &Value| {
        let message = line["message"].as_str().unwrap_or_default();
        line["file"] == file && message.starts_with("skipped: this artifact was undeployed")
    };
    server.wait_for("the log line of the skipped file", skipped);
}

#[test]
fn an_undeployed_version_returns_only_by_deploying_it() {
    let folder = temporary_folder();
    let state = Some(folder.path().join("state"));
    let mut setup = Setup { state, ..setup(folder.path()) };
    let server = Server::start(&setup);
    let next = pack(folder.path(), "1.1.0");
    setup.artifacts.push(next.clone());
    fs::hard_link(&next, server.repository().join("misbehave-1.1.0.wasm")).unwrap();
    wait_until_ready(&server, "1.1.0");
    let undeploy = "models/misbehave/versions/1.1.0";
    let undeployed = server.admin("DELETE", undeploy, &Value::Null);
    assert_eq!((undeployed.status, &undeployed.body["status"]), (200, &json!("Undeployed")));
    let gone = |line: &Value| line["message"] == "unloaded" && line["version"] == "1.1.0";
    server.wait_for("1.1.0 being unloaded", gone);
    let assert_gone = |server: &Server| {
        let answer = predict_with(server, "1.1.0");
        assert_eq!((answer.status, answer.error_code()), (404, Some("not_found")), "{answer:?}");
        assert_eq!(version_status(server, "1.1.0"), Value::Null);
        assert_serves(server, "1.0.0");
    };
    touch(&server.repository().join("misbehave-1.1.0.wasm"));
    wait_until_skipped(&server, "misbehave-1.1.0.wasm");
    assert_gone(&server);
    assert!(server.stop().0.success());

    let server = Server::start(&setup);
    wait_until_skipped(&server, "misbehave-1.1.0.wasm");
    assert_gone(&server);
    let deployed = server.deploy(&next);
    assert_eq!(
        (&deployed["state"], &deployed["result"]["changed"]),
        (&json!("done"), &json!(true))
    );
    assert_serves(&server, "1.1.0");
    assert!(server.stop().0.success());
    assert_serves(&Server::start(&setup), "1.1.0");
}
