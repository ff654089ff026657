use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use guesthouse_tests::artifacts::{Misbehave, doctor, make_pipe, run_host, temporary_folder};
use guesthouse_tests::{Answer, Server, Setup};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How often the folder is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// The misbehaving guest in a folder that is looked at every second.
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

/// Put a file into the repository at once, as whoever does it well.
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

fn pin(server: &Server, version: &str) -> Answer {
    let path = format!("/models/misbehave/versions/{version}/predict");
    server.post(&path, &json!({"action": "echo"}))
}

fn assert_serves(server: &Server, version: &str) {
    let answer = pin(server, version);
    assert_eq!((answer.status, &answer.body["model_version"]), (200, &json!(version)));
}

/// What goes where.
fn routing(server: &Server) -> Value {
    let model = server.model("misbehave");
    ["stable", "candidates", "shadow", "promoted"].map(|part| model[part].clone()).into()
}

/// What operators are shown of a version.
fn shown(server: &Server, version: &str) -> Value {
    let model = server.model("misbehave");
    let versions = model["versions"].as_array().unwrap();
    let found = versions.iter().find(|shown| shown["version"] == version);
    found.cloned().unwrap_or_default()
}

fn digest(artifact: &Path) -> Value {
    let output = run_host(&["inspect", "--json", &artifact.to_string_lossy()]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["digest"].is_string(), "{report}");
    report["digest"].clone()
}

#[test]
fn a_file_that_comes_later_is_deployed_and_moves_nothing_else() {
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
    let answer = pin(&server, "1.2.0");
    assert_eq!((answer.status, answer.header("x-model-version")), (200, Some("1.2.0")));
    assert_eq!(answer.header("x-route-reason"), Some("pin"));
    assert_eq!(routing(&server), before);
    let version = shown(&server, "1.2.0");
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

#[test]
fn a_file_that_is_written_slowly_is_deployed_when_it_is_complete() {
    let (server, folder) = start();
    let whole = fs::read(pack(folder.path(), "1.1.0")).unwrap();
    let mut file = File::create(server.repository().join("slow.wasm")).unwrap();
    let begun = Instant::now();
    let mut written = 0;
    // Each piece comes long before the next look, because only a request comes between; all the
    // while, there are several looks.
    let mut longest = Duration::ZERO;
    while begun.elapsed() < 4 * INTERVAL {
        let piece = Instant::now();
        file.write_all(&whole[written..=written]).unwrap();
        written += 1;
        assert_serves(&server, "1.0.0");
        longest = longest.max(piece.elapsed());
    }
    assert!(longest < INTERVAL, "the machine stood still, and the file with it: {longest:?}");
    file.write_all(&whole[written..]).unwrap();
    drop(file);
    wait_until_ready(&server, "1.1.0");
    assert_serves(&server, "1.1.0");
    let broken = server.lines().into_iter().find(|line| is_about(line, "slow.wasm"));
    assert_eq!(broken, None);
}

/// Everything that is no artifact, by the names of the files. Their good versions come later.
fn put_junk(server: &Server, folder: &Path) -> [(&'static str, &'static str); 7] {
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
fn junk_is_reported_once_and_changes_nothing_until_it_is_replaced() {
    let (server, folder) = start();
    let before = (routing(&server), server.model("misbehave")["revision"].clone());
    let junk = put_junk(&server, folder.path());
    for (name, _) in junk {
        let line = server.wait_for(name, |line| is_about(line, name));
        assert_eq!(line["step"], "artifact", "{line}");
    }
    assert_eq!((routing(&server), server.model("misbehave")["revision"].clone()), before);
    assert_serves(&server, "1.0.0");

    // Takes two more looks, at least.
    let linked = pack(folder.path(), "1.0.8");
    symlink(&linked, server.repository().join("link.wasm")).unwrap();
    wait_until_ready(&server, "1.0.8");
    assert_serves(&server, "1.0.8");
    let reports = |name: &str| server.lines().iter().filter(|line| is_about(line, name)).count();
    for (name, _) in junk {
        assert_eq!(reports(name), 1, "{name}");
    }

    fs::remove_dir(server.repository().join("folder.wasm")).unwrap();
    for (name, version) in junk {
        let good = pack(folder.path(), version);
        if name == "dangling.wasm" {
            fs::rename(good, folder.path().join("target.wasm")).unwrap();
        } else {
            put(&server, &good, name);
        }
    }
    for (name, version) in junk {
        wait_until_ready(&server, version);
        assert_serves(&server, version);
        assert_eq!(reports(name), 1, "{name}");
    }
    assert_eq!(routing(&server), before.0);
}

#[test]
fn of_two_files_of_one_version_the_first_by_name_wins() {
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
            // The second by name is there first.
            fs::copy(second, repository.join("b.wasm")).unwrap();
            fs::copy(first, repository.join("a.wasm")).unwrap();
        };
        // The second start knows what it has served; so does a third, without the folder.
        for _ in 0..2 {
            let server = Server::start_with(&setup, both);
            let conflicts: Vec<_> =
                server.lines().into_iter().filter(|line| line["step"] == "conflict").collect();
            let [conflict] = &conflicts[..] else { panic!("{conflicts:?}") };
            assert_eq!(conflict["file"], "b.wasm");
            assert_eq!(shown(&server, "1.1.0")["digest"], digest(first));
            assert_serves(&server, "1.1.0");
            assert!(server.stop().0.success());
        }
        let server = Server::start(&Setup { artifacts: Vec::new(), ..setup });
        assert_eq!(shown(&server, "1.1.0")["digest"], digest(first));
        // What is served stays, whatever comes later under a name before it.
        fs::copy(second, server.repository().join("0.wasm")).unwrap();
        let line = server.wait_for("the conflict", |line| is_about(line, "0.wasm"));
        assert_eq!(line["step"], "conflict");
        assert_eq!(shown(&server, "1.1.0")["digest"], digest(first));
        assert_serves(&server, "1.1.0");
    }
}

fn conflicts(server: &Server) -> Vec<Value> {
    server.lines().into_iter().filter(|line| line["step"] == "conflict").collect()
}

#[test]
fn a_broken_file_blocks_no_good_one_of_the_same_version() {
    let folder = temporary_folder();
    let good = pack(folder.path(), "1.1.0");
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    let golden = r#"{"inputs": {"action": "echo"}, "outputs": {"done": "ohce"}}"#;
    let wrong = Misbehave { version: "1.1.0", golden, ..Misbehave::default() }.pack(&other);
    let failing = folder.path().join("failing.wasm");
    fs::copy(&good, &failing).unwrap();
    doctor(&failing, r#""init":"well""#, r#""init":"fail""#);
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
        assert_eq!(shown(server, "1.1.0")["digest"], digest(&good));
        assert_eq!(conflicts(server), Vec::<Value>::new());
    };
    // There at the start, and put there later.
    let state = |name: &str| Some(folder.path().join(name));
    let server = Server::start_with(&Setup { state: state("one"), ..setup(folder.path()) }, both);
    assert_good(&server);
    let server = Server::start(&Setup { state: state("two"), ..setup(folder.path()) });
    both(&server.repository());
    assert_good(&server);
}

#[test]
fn a_broken_file_holds_no_good_one_to_its_signature() {
    let (server, folder) = start();
    // It promises another signature than it has, after which the good one would have to be a minor.
    let broken = pack(folder.path(), "1.1.0");
    doctor(&broken, r#""max_batch_size":8"#, r#""max_batch_size":9"#);
    put(&server, &pack(folder.path(), "1.1.1"), "a.wasm");
    put(&server, &broken, "b.wasm");
    wait_until_refused(&server, "1.1.0", "signature");
    wait_until_ready(&server, "1.1.1");
    assert_serves(&server, "1.1.1");
}

#[test]
fn a_patch_with_another_signature_is_refused_until_it_keeps_its_promise() {
    let (server, folder) = start();
    let doctored = pack(folder.path(), "1.0.1");
    doctor(&doctored, r#""max_batch_size":8"#, r#""max_batch_size":9"#);
    put(&server, &doctored, "patch.wasm");
    let line = wait_until_refused(&server, "1.0.1", "contract");
    assert!(line["reason"].as_str().unwrap().contains("minor"), "{line}");
    let version = shown(&server, "1.0.1");
    assert_eq!(
        (&version["state"], &version["failed_step"]),
        (&json!("failed"), &json!("contract"))
    );
    assert!(version["reason"].is_string());
    let answer = pin(&server, "1.0.1");
    assert_eq!((answer.status, answer.error_code()), (503, Some("not_ready")));
    let answer = server.post("/models/misbehave/predict", &json!({"action": "echo"}));
    assert_eq!((answer.status, &answer.body["model_version"]), (200, &json!("1.0.0")));

    put(&server, &pack(folder.path(), "1.0.1"), "patch.wasm");
    wait_until_ready(&server, "1.0.1");
    assert_serves(&server, "1.0.1");
    assert_eq!(shown(&server, "1.0.1")["state"], "ready");
}

#[test]
fn what_is_taken_out_of_the_folder_stays_served() {
    let folder = temporary_folder();
    let state = Some(folder.path().join("state"));
    let mut setup = Setup { state, ..setup(folder.path()) };
    setup.artifacts.push(pack(folder.path(), "1.1.0"));
    let server = Server::start(&setup);
    for name in ["misbehave-1.0.0.wasm", "misbehave-1.1.0.wasm"] {
        fs::remove_file(server.repository().join(name)).unwrap();
    }
    // Whoever has seen what came later has seen what is gone.
    fs::write(server.repository().join("junk.wasm"), b"").unwrap();
    server.wait_for("the next look", |line| is_about(line, "junk.wasm"));
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

/// Change a file's time, so that it is read again.
fn touch(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(1)).unwrap();
}

fn wait_until_skipped(server: &Server, file: &str) {
    let skipped = |line: &Value| {
        let message = line["message"].as_str().unwrap_or_default();
        line["file"] == file && message.starts_with("skipped: this artifact was undeployed")
    };
    server.wait_for("the word that it was undeployed", skipped);
}

#[test]
fn what_was_undeployed_comes_back_only_when_somebody_deploys_it() {
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
    server.wait_for("the end of 1.1.0", gone);
    let assert_gone = |server: &Server| {
        let answer = pin(server, "1.1.0");
        assert_eq!((answer.status, answer.error_code()), (404, Some("not_found")), "{answer:?}");
        assert_eq!(shown(server, "1.1.0"), Value::Null);
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
