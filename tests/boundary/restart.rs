use std::fs;

use guesthouse_tests::artifacts::{Misbehave, run_host, temporary_folder};
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

fn setup(folder: &std::path::Path) -> Setup {
    let artifacts = vec![Misbehave::default().pack(folder)];
    Setup { artifacts, state: Some(folder.join("state")), ..Setup::default() }
}

/// Where the version came from.
fn from(server: &Server) -> Value {
    let line = server.wait_for("the version", |line| line["message"] == "version ready");
    line["from"].clone()
}

fn assert_serves(server: &Server) {
    let answer = server.post("/predict", &json!({"action": "echo"}));
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn the_second_start_compiles_nothing() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    let first = Server::start(&setup);
    assert_eq!(from(&first), "compiled");
    assert!(first.stop().0.success());
    let second = Server::start(&setup);
    assert_eq!(from(&second), "store");
    assert_serves(&second);
}

#[test]
fn compiled_code_that_was_tampered_with_is_never_loaded() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    drop(Server::start(&setup));
    let compiled = folder.path().join("state/compiled");
    let code = fs::read_dir(&compiled)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "cwasm"))
        .unwrap();
    let mut bytes = fs::read(&code).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&code).unwrap();
    fs::write(&code, bytes).unwrap();
    let server = Server::start(&setup);
    server.wait_for("the warning", |line| {
        line["message"].as_str().is_some_and(|message| message.contains("MAC"))
    });
    assert_eq!(from(&server), "compiled");
    assert_serves(&server);
}

#[test]
fn a_host_killed_at_any_moment_of_a_deploy_starts_again() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    // Killed as soon as it listens: the child may be anywhere.
    for _ in 0..5 {
        drop(Server::start_loading(&setup));
    }
    let server = Server::start(&setup);
    assert_serves(&server);
}

#[test]
fn what_compiling_took_is_shown_by_inspect() {
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
    assert!(text.contains("begin in a snapshot") && text.contains("peak memory"), "{text}");
}

#[test]
fn a_second_host_on_the_same_state_is_refused() {
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
fn a_configuration_that_makes_no_sense_is_refused_in_one_line() {
    let folder = temporary_folder();
    let file = folder.path().join("guesthouse.toml");
    for (text, reason) in [
        ("default_model = \"a\"\nlisten = 1\n", "line 2: "),
        ("[limits]\nbody_byte = 1\n", "body_byte"),
        ("[limits]\nbody_bytes = 0\n", "limits.body_bytes"),
        ("[models.a]\nsplit = { \"1.0.0\" = 1 }\n", "add up to 1000000"),
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
fn a_second_version_of_a_guest_is_compiled_from_the_firsts_functions() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    let functions = fs::read_dir(folder.path().join("state/compiled"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("functions-"))
        .count();
    assert_eq!(functions, 2, "they and their MAC");
    let second = Misbehave { version: "1.1.0", ..Misbehave::default() };
    setup.artifacts.push(second.pack(folder.path()));
    let server = Server::start(&setup);
    let body = json!({"action": "echo"});
    let answer = server.post("/models/misbehave/versions/1.1.0/predict", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn health_is_green_while_readiness_is_red() {
    let folder = temporary_folder();
    let server = Server::start_loading(&setup(folder.path()));
    assert_eq!(server.get("/healthz").status, 200);
    // It may be ready already; what must not happen is ready before the version is.
    let answer = server.get("/readyz");
    let published = server.lines().iter().any(|line| line["message"] == "version ready");
    assert!(answer.status == 503 || published, "{answer:?}");
    server.wait_for("ready", |line| line["message"] == "ready");
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn the_same_input_gives_the_same_bits_after_a_restart() {
    let scores = || {
        let server = Server::start(&Setup::toxicity());
        let texts = ["You are nice", "what a load of rubbish", "idiot"];
        let answer = server.post("/v1/batch_predict", &json!({ "texts": texts }));
        answer.body["results"].clone()
    };
    assert_eq!(scores(), scores());
}
