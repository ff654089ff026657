use std::path::{Path, PathBuf};

use guesthouse_tests::artifacts::{Misbehave, run_host, temporary_folder, toxicity};
use guesthouse_tests::entry_points::{EntryPoint, Iterations, rewrite};
use guesthouse_tests::{HttpResponse, Server, Setup};
use serde_json::{Value, json};

/// The length of an action at which the pack_rewritten entry points loop. The host allocates four bytes
/// more for it.
const TRIGGER: usize = 77;
const TRIGGER_BYTES: i32 = 81;

/// Packs a version of the misbehaving guest and rewrites one of its entry points.
fn pack_rewritten(folder: &Path, misbehave: &Misbehave, entry_point: EntryPoint) -> PathBuf {
    let artifact = misbehave.pack(folder);
    rewrite(&artifact, entry_point);
    artifact
}

fn version(version: &'static str, composed: bool) -> Misbehave {
    Misbehave { version, composed, ..Misbehave::default() }
}

/// A version whose instances run their start functions and `init`.
fn without_snapshot(version: &'static str) -> Misbehave {
    Misbehave { version, init: "time", ..Misbehave::default() }
}

fn ask(server: &Server, version: &str, action: &str) -> HttpResponse {
    let path = format!("/models/misbehave/versions/{version}/predict");
    server.post(&path, &json!({ "action": action }))
}

fn failure_line(server: &Server, version: &str) -> Value {
    server.wait_for(version, |line| line["version"] == version && line["level"] == "ERROR")
}

#[test]
fn an_endless_start_function_fails_its_deployment() {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 5000);
    setup.config.push_str("start_seconds = 1\n");
    let endless = EntryPoint::Start(Iterations::Endless);
    setup.artifacts.extend([
        pack_rewritten(folder.path(), &version("2.0.0", false), endless),
        pack_rewritten(folder.path(), &version("3.0.0", true), endless),
        pack_rewritten(folder.path(), &version("4.0.0", false), EntryPoint::StartTraps),
        version("5.0.0", false).pack(folder.path()),
    ]);
    // The server becomes ready, and loads what comes later in the folder.
    let server = Server::start(&setup);
    for (version, reason) in [("2.0.0", "`start`"), ("3.0.0", "`start`"), ("4.0.0", "unreachable")]
    {
        let line = failure_line(&server, version);
        assert_eq!(line["step"], "preinit", "{line}");
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
        assert_eq!(ask(&server, version, "echo").error_code(), Some("not_ready"));
    }
    assert_eq!(ask(&server, "5.0.0", "echo").status, 200);

    let late = pack_rewritten(folder.path(), &version("6.0.0", true), endless);
    let failed = server.deploy(&late);
    assert_eq!(failed["state"], "failed", "{failed}");
    let behind = server.deploy(&version("7.0.0", false).pack(folder.path()));
    assert_eq!(behind["state"], "done", "{behind}");
    server.assert_healthy();
}

#[test]
fn an_endless_start_function_is_interrupted_when_loading() {
    let folder = temporary_folder();
    let state = Some(folder.path().join("state"));
    // Memory can grow when the version is compiled.
    let grows = EntryPoint::StartUnlessItGrows(1024);
    let artifact = pack_rewritten(folder.path(), &without_snapshot("1.0.0"), grows);
    let good = version("2.0.0", false).pack(folder.path());
    let artifacts = vec![toxicity("1.0.0"), artifact, good];
    let config = |memory_mib: u32| {
        format!(
            "default_model = \"toxicity\"\n[limits]\nstart_seconds = 1\n\
             [models.misbehave]\ninstance_memory_mib = {memory_mib}\n"
        )
    };
    let setup = Setup { artifacts, state, config: config(128), ..Setup::default() };
    let server = Server::start(&setup);
    assert_eq!(ask(&server, "1.0.0", "echo").status, 200);
    server.stop();

    let server = Server::start(&Setup { config: config(32), ..setup });
    let line = failure_line(&server, "1.0.0");
    assert_eq!(line["step"], "instance", "{line}");
    assert_eq!(ask(&server, "1.0.0", "echo").error_code(), Some("not_ready"));
    assert_eq!(ask(&server, "2.0.0", "echo").status, 200);
    server.assert_healthy();
    server.stop();
}

#[test]
fn every_entry_point_is_interrupted_at_the_deadline() {
    for composed in [false, true] {
        let folder = temporary_folder();
        let mut setup = Setup::misbehave(folder.path(), 500);
        let realloc = EntryPoint::Realloc(TRIGGER_BYTES, Iterations::Endless);
        let post_return = EntryPoint::PostReturn(TRIGGER_BYTES, Iterations::Endless);
        setup.artifacts.extend([
            pack_rewritten(folder.path(), &version("2.0.0", composed), realloc),
            pack_rewritten(folder.path(), &version("3.0.0", composed), post_return),
        ]);
        let server = Server::start(&setup);
        let long = "x".repeat(TRIGGER);
        for version in ["2.0.0", "3.0.0"] {
            let answer = ask(&server, version, &long);
            let got = (answer.status, answer.error_code());
            assert_eq!(got, (504, Some("deadline_exceeded")), "{version}: {answer:?}");
            server.eventually("the next call succeeds", |server| {
                ask(server, version, "echo").status == 200
            });
        }
        server.assert_healthy();
    }
}

#[test]
fn every_entry_point_is_interrupted_on_disconnect() {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 30_000);
    // One thread per version: it takes another call only when the first one has ended.
    setup.config.push_str("threads_per_version = 1\n");
    let realloc = EntryPoint::Realloc(TRIGGER_BYTES, Iterations::Endless);
    let post_return = EntryPoint::PostReturn(TRIGGER_BYTES, Iterations::Endless);
    setup.artifacts.extend([
        pack_rewritten(folder.path(), &version("2.0.0", true), realloc),
        pack_rewritten(folder.path(), &version("3.0.0", true), post_return),
    ]);
    let server = Server::start(&setup);
    let long = "x".repeat(TRIGGER);
    for (version, action) in [("1.0.0", "spin"), ("2.0.0", &long), ("3.0.0", &long)] {
        let path = format!("/models/misbehave/versions/{version}/predict");
        server.disconnect_while_running(&path, &json!({ "action": action }));
        let line = server
            .wait_for(version, |line| line["target"] == "fault" && line["version"] == version);
        assert_eq!(line["kind"], "cancelled", "{line}");
        assert_eq!(ask(&server, version, "echo").status, 200, "{version}");
    }
    server.assert_healthy();
}

#[test]
fn a_slow_start_function_occupies_no_inference_thread() {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 200);
    // Every request uses the one instance, and the next one needs a new one.
    setup.config.push_str("threads_per_version = 1\n[models.misbehave]\nisolation = \"fresh\"\n");
    let long = EntryPoint::Start(Iterations::Count(700_000_000));
    setup.artifacts =
        vec![toxicity("1.0.0"), pack_rewritten(folder.path(), &without_snapshot("1.0.0"), long)];
    let server = Server::start(&setup);
    let before = (server.thread_time("inference"), server.process_time());
    let (mut answered, mut late) = (0, 0);
    server.eventually("three requests succeed", |server| {
        let answer = ask(server, "1.0.0", "echo");
        match (answer.status, answer.error_code()) {
            (200, _) => answered += 1,
            (504, Some("deadline_exceeded")) => late += 1,
            _ => panic!("{answer:?}"),
        }
        answered == 3
    });
    assert!(late > 0, "no request timed out while an instance started");
    let inference = server.thread_time("inference") - before.0;
    let all = server.process_time() - before.1;
    assert!(inference < all / 4, "inference threads ran for {inference:?} of {all:?}");
    server.assert_healthy();
}

#[test]
fn relaxed_simd_is_the_same_in_init_and_predict() {
    for composed in [false, true] {
        let folder = temporary_folder();
        let artifacts = vec![version("1.0.0", composed).pack(folder.path())];
        let server = Server::start(&Setup { artifacts, ..Setup::default() });
        let answer = ask(&server, "1.0.0", "relaxed-simd");
        assert_eq!(answer.status, 200, "{answer:?}");
        let (in_init, in_predict) = answer.body["done"].as_str().unwrap().split_once(' ').unwrap();
        assert_eq!(in_init.len(), 320);
        assert_eq!(in_init, in_predict);
        server.stop();
    }
}

#[test]
fn pack_rejects_a_trapping_start_function() {
    let folder = temporary_folder();
    let component = folder.path().join("component.wasm");
    let guest = guesthouse_tests::environment::guests().join("misbehave.wasm");
    std::fs::copy(guest, &component).unwrap();
    rewrite(&component, EntryPoint::StartTraps);
    // Written for its manifest and its golden examples.
    Misbehave::default().pack(folder.path());
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let output = run_host(&[
        "pack",
        "--manifest",
        &path("manifest-1.0.0-well.toml"),
        "--component",
        &component.to_string_lossy(),
        "--output",
        &path("never.wasm"),
    ]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("`start` function trapped"), "{text}");
}
