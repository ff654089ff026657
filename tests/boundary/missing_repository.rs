use std::fs;
use std::path::Path;

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

fn setup(folder: &Path) -> Setup {
    let artifacts = vec![Misbehave::default().pack(folder)];
    let config = "[limits]\nrepository_seconds = 1\n".to_owned();
    Setup { artifacts, config, state: Some(folder.join("state")), ..Setup::default() }
}

fn assert_serves(server: &Server, version: &str) {
    let path = format!("/models/misbehave/versions/{version}/predict");
    let answer = server.post(&path, &json!({"action": "echo"}));
    assert_eq!((answer.status, &answer.body["model_version"]), (200, &json!(version)));
}

fn is_folder_error(line: &Value) -> bool {
    line["level"] == "ERROR" && line["message"].as_str().unwrap().contains("repository folder")
}

fn folder_errors(server: &Server) -> usize {
    server.lines().iter().filter(|line| is_folder_error(line)).count()
}

fn put(server: &Server, folder: &Path, version: &'static str) {
    let file = Misbehave { version, ..Misbehave::default() }.pack(folder);
    fs::rename(file, server.repository().join(format!("{version}.wasm"))).unwrap();
}

fn wait_until_ready(server: &Server, version: &str) {
    let ready = |line: &Value| line["message"] == "version ready" && line["version"] == version;
    server.wait_for(version, ready);
    assert_serves(server, version);
}

/// The names of all stored artifacts and compiled files.
fn stored_files(folder: &Path) -> Vec<String> {
    let of = |name: &str| {
        let entries = fs::read_dir(folder.join("state").join(name)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names.collect::<Vec<_>>()
    };
    let mut names = [of("artifacts"), of("compiled")].concat();
    names.sort();
    names
}

type Replace = fn(&Path);

/// What can be in the place of the folder.
fn replacements() -> [(&'static str, Replace); 2] {
    let missing = |_: &Path| {};
    let file = |repository: &Path| fs::write(repository, b"no folder").unwrap();
    [("missing", missing), ("a file", file)]
}

#[test]
fn a_start_without_the_folder_serves_and_retries() {
    for (what, replace) in replacements() {
        let folder = temporary_folder();
        let mut setup = setup(folder.path());
        assert!(Server::start(&setup).stop().0.success());
        setup.artifacts.clear();
        let before = stored_files(folder.path());
        let server = Server::start_loading_with(&setup, |repository| {
            fs::remove_dir(repository).unwrap();
            replace(repository);
        });
        server.wait_for("ready", |line| line["message"] == "ready");
        server.wait_for("the error", is_folder_error);
        assert_eq!(server.get("/readyz").status, 200, "{what}");
        assert_serves(&server, "1.0.0");
        assert_eq!(stored_files(folder.path()), before, "{what}");

        // The volume is mounted late.
        let _ = fs::remove_file(server.repository());
        fs::create_dir(server.repository()).unwrap();
        put(&server, folder.path(), "1.1.0");
        wait_until_ready(&server, "1.1.0");
        assert_serves(&server, "1.0.0");
        assert_eq!(folder_errors(&server), 1, "{what}");
        assert!(server.stop().0.success());
    }
}

#[test]
fn a_folder_that_is_read_once_may_appear_later() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    setup.artifacts.clear();
    setup.config = "[limits]\nrepository_seconds = 0\n".to_owned();
    let remove = |repository: &Path| fs::remove_dir(repository).unwrap();
    let server = Server::start_loading_with(&setup, remove);
    server.wait_for("the error", is_folder_error);
    fs::create_dir(server.repository()).unwrap();
    put(&server, folder.path(), "1.1.0");
    // With a single read of the folder, a later file is not found.
    server.wait_for("the repository folder being read", |line| {
        line["message"] == "repository folder read"
    });
    assert_serves(&server, "1.0.0");
}

#[test]
fn removing_the_folder_undeploys_nothing() {
    for (what, replace) in replacements() {
        let folder = temporary_folder();
        let setup = setup(folder.path());
        let server = Server::start(&setup);
        let before = stored_files(folder.path());
        let away = folder.path().join("away");
        fs::rename(server.repository(), &away).unwrap();
        replace(&server.repository());
        server.wait_for("the error", is_folder_error);
        assert_eq!(server.get("/readyz").status, 200, "{what}");
        assert_serves(&server, "1.0.0");
        assert_eq!(stored_files(folder.path()), before, "{what}");
        let _ = fs::remove_file(server.repository());
        fs::rename(&away, server.repository()).unwrap();
        put(&server, folder.path(), "1.1.0");
        wait_until_ready(&server, "1.1.0");
        assert_serves(&server, "1.0.0");
    }
}

#[test]
fn a_first_start_without_the_folder_fails() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path());
    setup.artifacts.clear();
    let remove = |repository: &Path| fs::remove_dir(repository).unwrap();
    let server = Server::start_loading_with(&setup, remove);
    let (status, lines) = server.wait_for_end();
    assert!(!status.success());
    assert!(!lines.iter().any(|line| line["message"] == "ready"));
}
