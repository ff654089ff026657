use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use guesthouse_tests::artifacts::{Misbehave, make_pipe, run_host, temporary_folder};
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

fn setup(folder: &Path) -> Setup {
    let artifacts = vec![Misbehave::default().pack(folder)];
    Setup { artifacts, state: Some(folder.join("state")), ..Setup::default() }
}

/// Where the version was loaded from.
fn from(server: &Server) -> Value {
    let line = server.wait_for("the version", |line| line["message"] == "version ready");
    line["from"].clone()
}

fn assert_serves(server: &Server) {
    let answer = server.post("/predict", &json!({"action": "echo"}));
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn a_second_start_compiles_nothing() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    let first = Server::start(&setup);
    assert_eq!(from(&first), "compiled");
    assert!(first.stop().0.success());
    let second = Server::start(&setup);
    assert_eq!(from(&second), "store");
    assert_serves(&second);
}

/// The compiled files whose names begin and end like this.
fn compiled_files(folder: &Path, prefix: &str, suffix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("state/compiled")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with(prefix) && name.ends_with(suffix)
    });
    paths
}

fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// How many stored files were rejected and compiled again.
fn recompilations(server: &Server) -> usize {
    let lines = server.lines();
    let anew = |line: &&Value| {
        line["level"] == "WARN" && line["message"].as_str().unwrap().contains("compiling again")
    };
    lines.iter().filter(anew).count()
}

#[test]
fn a_flipped_bit_in_any_compiled_file_is_repaired() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    let files = compiled_files(folder.path(), "", "");
    let versions = ["1.0.1", "1.0.2", "1.0.3", "1.0.4", "1.0.5", "1.0.6"];
    assert_eq!(files.len(), versions.len(), "{files:?}");
    // A new version in each round, whose compilation reads all stored files.
    for (file, version) in files.iter().zip(versions) {
        flip_a_bit(file);
        let next = Misbehave { version, ..Misbehave::default() };
        setup.artifacts.truncate(1);
        setup.artifacts.push(next.pack(folder.path()));
        let server = Server::start(&setup);
        assert_eq!(recompilations(&server), 1, "{file:?}");
        assert_serves(&server);
        assert!(server.stop().0.success());
    }
    let last = Misbehave { version: "1.1.0", ..Misbehave::default() };
    setup.artifacts.push(last.pack(folder.path()));
    let server = Server::start(&setup);
    assert_eq!(recompilations(&server), 0);
    assert_serves(&server);
}

#[test]
fn a_version_that_returns_is_not_compiled_again() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    let next = Misbehave { version: "1.0.1", ..Misbehave::default() };
    let (artifacts, state) = (vec![next.pack(folder.path())], setup.state.clone());
    let next = Setup { artifacts, state, ..Setup::default() };
    assert!(Server::start(&next).stop().0.success());
    assert_eq!(from(&Server::start(&setup)), "store");
}

#[test]
fn unneeded_compiled_files_are_removed() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    let compiled = folder.path().join("state/compiled");
    let digest = "0".repeat(64);
    let long_ago = SystemTime::now() - Duration::from_secs(60 * 24 * 60 * 60);
    let put = |name: String, time: SystemTime| {
        let path = compiled.join(name);
        fs::write(&path, b"code").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        path
    };
    let unneeded = [
        put(format!("{digest}-0123456789abcdef.cwasm"), long_ago),
        put(format!("{digest}-0123456789abcdef.json"), long_ago),
        put("functions-0123456789abcdef.bin".to_owned(), SystemTime::now()),
        put(format!("init-{digest}-0123456789abcdef.cwasm"), SystemTime::now()),
    ];
    let spared = [
        put(format!("{digest}-fedcba9876543210.cwasm"), SystemTime::now()),
        put("somebody's notes.json".to_owned(), long_ago),
    ];
    let exist = |paths: &[PathBuf]| paths.iter().filter(|path| path.exists()).count();
    // While one file cannot be read, the server does not know what it needs.
    let server = Server::start_with(&setup, |repository| make_pipe(&repository.join("pipe.wasm")));
    assert!(server.stop().0.success());
    assert_eq!(exist(&unneeded), unneeded.len());

    let server = Server::start(&setup);
    assert_eq!(from(&server), "store");
    assert_eq!((exist(&unneeded), exist(&spared)), (0, spared.len()));
    let lines = server.lines();
    let is_removal =
        |line: &&Value| line["message"].as_str().unwrap().starts_with("removed a file");
    assert_eq!(lines.iter().filter(is_removal).count(), 3, "code and report count as one file");
    assert_serves(&server);
}

#[test]
fn a_host_killed_during_a_deployment_starts_again() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    // Killed as soon as it listens, at any point of the compilation.
    for _ in 0..5 {
        drop(Server::start_loading(&setup));
    }
    let server = Server::start(&setup);
    assert_serves(&server);
}

#[test]
fn inspect_shows_the_cost_of_compiling() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    let artifact = folder.path().join("misbehave-1.0.0.wasm");
    let (artifact, state) = (artifact.to_string_lossy(), folder.path().join("state"));
    let state = state.to_string_lossy();
    let output = run_host(&["inspect", "--json", "--state", &state, &artifact]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [compiled] = report["compiled"].as_object().unwrap().values().collect::<Vec<_>>()[..]
    else {
        panic!("{report}")
    };
    assert_eq!(compiled["start"], "snapshot");
    assert!(compiled["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(compiled["steps_ms"].as_array().unwrap().iter().any(|step| step[0] == "compile"));
    let output = run_host(&["inspect", "--state", &state, &artifact]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("start from a snapshot") && text.contains("peak memory"), "{text}");
}

#[test]
fn a_second_host_on_one_state_folder_is_rejected() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    let first = Server::start(&setup);
    let repository = first.repository();
    let second = run_host(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--repository",
        &repository.to_string_lossy(),
        "--state",
        &folder.path().join("state").to_string_lossy(),
    ]);
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.contains("another host uses it"), "{text}");
    assert_serves(&first);
}

#[test]
fn an_invalid_configuration_is_rejected_in_one_line() {
    let folder = temporary_folder();
    let file = folder.path().join("guesthouse.toml");
    for (text, reason) in [
        ("default_model = \"a\"\nlisten = 1\n", "line 2: "),
        ("[limits]\nbody_byte = 1\n", "body_byte"),
        ("[limits]\nbody_bytes = 0\n", "limits.body_bytes"),
        ("[models.a]\nsplit = { \"1.0.0\" = 1 }\n", "must add up to 1000000"),
    ] {
        fs::write(&file, text).unwrap();
        let output = run_host(&["serve", "--config", &file.to_string_lossy()]);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        let [line] = errors.lines().collect::<Vec<_>>()[..] else { panic!("{errors}") };
        assert!(line.starts_with("error: failed to ") && line.contains(reason), "{line}");
    }
}

#[test]
fn a_second_version_reuses_the_compiled_code() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    let shared = |prefix: &str| {
        let files = compiled_files(folder.path(), prefix, "");
        files.into_iter().map(|path| (fs::metadata(&path).unwrap().ino(), path)).collect::<Vec<_>>()
    };
    let (functions, modules) = (shared("functions-"), shared("module-"));
    assert_eq!((functions.len(), modules.len()), (2, 2), "each file has a MAC");
    let second = Misbehave { version: "1.1.0", ..Misbehave::default() };
    setup.artifacts.push(second.pack(folder.path()));
    let server = Server::start(&setup);
    let body = json!({"action": "echo"});
    let answer = server.post("/models/misbehave/versions/1.1.0/predict", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    // The stored code was reused: nothing new was stored beside it.
    assert_eq!((shared("functions-"), shared("module-")), (functions, modules));
    assert_eq!(recompilations(&server), 0);
}

#[test]
fn a_loading_server_is_live_before_it_is_ready() {
    let folder = temporary_folder();
    let server = Server::start_loading(&setup(folder.path()));
    assert_eq!(server.get("/healthz").status, 200);
    // It may be ready already, but not before the version is.
    let answer = server.get("/readyz");
    let published = server.lines().iter().any(|line| line["message"] == "version ready");
    assert!(answer.status == 503 || published, "{answer:?}");
    server.wait_for("ready", |line| line["message"] == "ready");
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn scores_are_bit_identical_after_a_restart() {
    let scores = || {
        let server = Server::start(&Setup::toxicity());
        let texts = ["You are nice", "what a load of rubbish", "idiot"];
        let answer = server.post("/v1/batch_predict", &json!({ "texts": texts }));
        answer.body["results"].clone()
    };
    assert_eq!(scores(), scores());
}
