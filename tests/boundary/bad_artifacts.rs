use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use guesthouse_tests::artifacts::{
    Misbehave, append_section, make_pipe, replace_bytes, run_host, temporary_folder, toxicity,
};
use guesthouse_tests::{Server, Setup, environment};
use serde_json::json;

/// Runs a command that must fail, and returns its one line of error.
fn refusal(arguments: &[&str]) -> String {
    let output = run_host(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    let [line] = errors[..] else { panic!("not one line: {text}") };
    line.to_owned()
}

fn inspect(file: &Path) -> String {
    refusal(&["inspect", &file.to_string_lossy()])
}

fn pack(folder: &Path, component: &Path) -> String {
    let manifest = folder.join("manifest.toml");
    let text = "name = \"x\"\nversion = \"1.0.0\"\n[golden]\nfile = \"golden.jsonl\"\n";
    fs::write(&manifest, text).unwrap();
    let golden = r#"{"inputs": {"action": "echo"}, "outputs": {"done": "echo"}}"#;
    fs::write(folder.join("golden.jsonl"), golden).unwrap();
    refusal(&[
        "pack",
        "--manifest",
        &manifest.to_string_lossy(),
        "--component",
        &component.to_string_lossy(),
        "--output",
        &folder.join("never.wasm").to_string_lossy(),
    ])
}

/// Files that are not artifacts, each with a part of the expected reason.
fn strange_files(folder: &Path) -> Vec<(PathBuf, &'static str)> {
    let component = fs::read(environment::guests().join("misbehave.wasm")).unwrap();
    let core_module = b"\0asm\x01\0\0\0";
    let empty_component = b"\0asm\x0d\0\x01\0";
    // The magic number of ELF, the format of compiled components.
    let files: [(&str, &[u8], &str); 6] = [
        ("empty", b"", "not a WebAssembly file"),
        ("text", b"#!/bin/sh\necho hello\n", "not a WebAssembly file"),
        ("core", core_module, "core WebAssembly module"),
        ("native", b"\x7fELF\x02\x01\x01\0\0\0\0\0", "precompiled"),
        ("truncated", &component[..component.len() / 2], "not a whole component"),
        ("other-world", empty_component, "another world"),
    ];
    let write = |(name, bytes, reason): (&str, &[u8], &'static str)| {
        let path = folder.join(format!("{name}.wasm"));
        fs::write(&path, bytes).unwrap();
        (path, reason)
    };
    files.into_iter().map(write).collect()
}

#[test]
fn pack_and_inspect_reject_invalid_files_in_one_line() {
    let folder = temporary_folder();
    for (path, reason) in strange_files(folder.path()) {
        for line in [inspect(&path), pack(folder.path(), &path)] {
            assert!(line.contains(reason), "{}: {line}", path.display());
        }
    }
    assert!(inspect(&folder.path().join("absent.wasm")).contains("cannot read"));
    // A component that was not packed, and one that is packed twice.
    let built = environment::guests().join("misbehave.wasm");
    assert!(inspect(&built).contains("not a packed artifact"));
    let packed = Misbehave::default().pack(folder.path());
    assert!(pack(folder.path(), &packed).contains("packed before"));
    assert!(!folder.path().join("never.wasm").exists());
}

#[test]
fn pack_names_an_unusable_file_and_leaves_no_output() {
    let folder = temporary_folder();
    let component = environment::guests().join("misbehave.wasm");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    write("golden.jsonl", Misbehave::default().golden);
    let manifest = |asset: &str| {
        let text = "name = \"misbehave\"\nversion = \"1.0.0\"\n[parameters]\ninit = \"well\"\n\
                    [golden]\nfile = \"golden.jsonl\"\n";
        write("manifest.toml", &format!("{text}{asset}"));
    };
    make_pipe(&folder.path().join("pipe"));
    // A sparse file larger than any artifact.
    let huge = fs::File::create(folder.path().join("huge")).unwrap();
    huge.set_len(2 << 30).unwrap();
    let before = fs::read_dir(folder.path()).unwrap().count() + 1;
    let component = component.to_string_lossy();
    let pack = |manifest: &str, output: &str| {
        let (manifest, output) = (path(manifest), path(output));
        let files = ["--component", &component, "--output", &output];
        refusal(&[["pack", "--manifest", &manifest].as_slice(), &files].concat())
    };
    for (asset, reason) in [
        (".", "not a regular file"),
        ("pipe", "not a regular file"),
        ("huge", "larger than 1024 MiB"),
        ("absent", "No such file"),
    ] {
        manifest(&format!("[assets]\nx = \"{asset}\"\n"));
        let line = pack("manifest.toml", "new/never.wasm");
        assert!(line.contains(reason) && line.contains(asset), "{asset}: {line}");
    }
    manifest("");
    assert!(pack("pipe", "new/never.wasm").contains("not a regular file"));
    assert!(pack("manifest.toml", ".").contains("not a regular file"));
    assert!(pack("manifest.toml", "pipe").contains("not a regular file"));
    assert!(pack("manifest.toml", "golden.jsonl/never.wasm").contains("golden.jsonl"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before);
}

#[test]
fn pack_on_a_full_disk_leaves_no_output() {
    let folder = temporary_folder();
    let output = folder.path().join("new/never.wasm");
    // A limit of the file size stands for a full disk: a write fails half-way.
    let full = "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"";
    let outcome =
        Misbehave::default().try_pack_through(&["sh", "-c", full], folder.path(), &output);
    let text = String::from_utf8(outcome.stderr).unwrap();
    assert_eq!(outcome.status.code(), Some(1), "{text}");
    assert!(text.contains("failed to write the draft: File too large"), "{text}");
    let mut left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["golden.jsonl", "manifest-1.0.0-well.toml"]);
}

#[test]
fn pack_rejects_guests_whose_init_fails() {
    let folder = temporary_folder();
    let output = folder.path().join("never.wasm");
    for (init, reason) in [
        ("fail", "init was told to fail"),
        ("miss", "has no asset"),
        ("trap", "init trapped"),
        ("hogs", "init ran out of memory"),
    ] {
        let misbehave = Misbehave { init, ..Misbehave::default() };
        let outcome = misbehave.try_pack(folder.path(), &output);
        let text = String::from_utf8(outcome.stderr).unwrap();
        assert_eq!(outcome.status.code(), Some(1), "{init}: {text}");
        assert!(text.contains(reason), "{init}: {text}");
        assert!(!output.exists());
    }
}

#[test]
fn serve_reports_each_invalid_file_and_serves_the_others() {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 5000);
    let strange = strange_files(folder.path());
    setup.artifacts.extend(strange.iter().map(|(path, _)| path.clone()));
    // `pack` runs `init`, so artifacts whose `init` fails are made by changing good ones.
    let changed = |version, golden, from: &str, to: &str| {
        let file = Misbehave { version, golden, ..Misbehave::default() }.pack(folder.path());
        replace_bytes(&file, from, to);
        file
    };
    let golden = Misbehave::default().golden;
    let wrong = r#"{"inputs": {"action": "echo"}, "outputs": {"done": "ohce"}}"#;
    let stray = r#"{"inputs": {"nothing": "echo"}, "outputs": {"done": "echo"}}"#;
    let trap = r#"{"inputs": {"action": "panic"}, "outputs": {"done": "panic"}}"#;
    setup.artifacts.extend([
        changed("2.0.0", golden, r#""init":"well""#, r#""init":"fail""#),
        changed("3.0.0", golden, r#""init":"well""#, r#""init":"trap""#),
        changed("4.0.0", golden, r#""max_batch_size":8"#, r#""max_batch_size":9"#),
        Misbehave { version: "5.0.0", golden: wrong, ..Misbehave::default() }.pack(folder.path()),
        Misbehave { version: "6.0.0", golden: stray, ..Misbehave::default() }.pack(folder.path()),
        Misbehave { version: "7.0.0", golden: trap, ..Misbehave::default() }.pack(folder.path()),
    ]);
    let server = Server::start(&setup);
    for (path, reason) in strange {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let line = server.wait_for(&name, |line| line["file"] == name.as_str());
        assert_eq!(line["level"], "ERROR");
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
    }
    let ready = server.get("/readyz");
    assert_eq!(ready.status, 200);
    for (version, step, reason) in [
        ("2.0.0", "preinit", "init was told to fail"),
        ("3.0.0", "preinit", "init trapped"),
        ("4.0.0", "signature", "another signature"),
        ("5.0.0", "golden", "golden example 1: `done` is"),
        ("6.0.0", "golden", "does not fit the signature"),
        ("7.0.0", "golden", "the guest trapped"),
    ] {
        let line = server.wait_for(version, |line| {
            line["version"] == version && line["level"] == "ERROR" && line["step"] == step
        });
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
        let path = format!("/models/misbehave/versions/{version}/predict");
        let answer = server.post(&path, &serde_json::json!({"action": "echo"}));
        assert_eq!((answer.status, answer.error_code()), (503, Some("not_ready")), "{version}");
    }
    let answer = server.post("/models/misbehave/predict", &serde_json::json!({"action": "echo"}));
    assert_eq!((answer.status, &answer.body["model_version"]), (200, &"1.0.0".into()));
    server.assert_healthy();
}

#[test]
fn a_golden_example_is_limited_to_the_configured_stack() {
    let folder = temporary_folder();
    let golden = r#"{"inputs": {"action": "recurse"}, "outputs": {"done": "recurse"}}"#;
    let deep = Misbehave { version: "2.0.0", golden, ..Misbehave::default() };
    let mut setup = Setup::misbehave(folder.path(), 5000);
    setup.config.push_str("[models.misbehave]\nstack_kib = 4096\n");
    setup.state = Some(folder.path().join("state"));
    setup.artifacts = vec![Misbehave::default().pack(folder.path()), deep.pack(folder.path())];
    // Compiled in the first round, loaded from the store in the second.
    for _ in 0..2 {
        let server = Server::start(&setup);
        let line = server.wait_for("the rejection", |line| line["step"] == "golden");
        assert!(line["reason"].as_str().unwrap().contains("the guest trapped"), "{line}");
        let echo = server.post("/models/misbehave/predict", &json!({"action": "echo"}));
        assert_eq!(echo.body["model_version"], "1.0.0", "{echo:?}");
        server.stop();
    }
}

#[test]
fn a_version_over_the_instance_limit_is_rejected() {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 5000);
    setup.config.push_str("threads_per_version = 2\ninstances = 3\n");
    let server = Server::start(&setup);
    let line = server.wait_for("the rejection", |line| line["step"] == "admission");
    let reason = line["reason"].as_str().unwrap();
    assert!(reason.contains("2 instances") && reason.contains("1 instances"), "{reason}");
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn an_endless_init_is_killed_and_others_are_served() {
    let folder = temporary_folder();
    let mut setup = Setup::misbehave(folder.path(), 5000);
    setup.config.push_str("preinit_cpu_seconds = 10\n");
    let spinning = Misbehave { version: "2.0.0", ..Misbehave::default() }.pack(folder.path());
    replace_bytes(&spinning, r#""init":"well""#, r#""init":"spin""#);
    setup.artifacts.push(spinning);
    let server = Server::start(&setup);
    let line = server.wait_for("a failure of the compiler", |line| line["step"] == "preinit");
    // The limit is on CPU time, or on wall time if the process gets only a fraction of a core.
    assert!(line["reason"].as_str().unwrap().contains("exceeded its limit"), "{line}");
    let answer = server.post("/models/misbehave/predict", &serde_json::json!({"action": "echo"}));
    assert_eq!(answer.status, 200, "{answer:?}");
    server.assert_healthy();
}

#[test]
fn a_version_with_other_bytes_is_a_conflict() {
    let (one, two) = (temporary_folder(), temporary_folder());
    let first = Misbehave::default().pack(one.path());
    let golden = "{\"inputs\": {\"action\": \"echo\"}, \"outputs\": {\"done\": \"echo\"}}\n\n";
    let other = Misbehave { golden, ..Misbehave::default() }.pack(two.path());
    let renamed = two.path().join("other-name.wasm");
    fs::rename(other, &renamed).unwrap();
    let artifacts = vec![first, renamed];
    let server = Server::start(&Setup { artifacts, ..Setup::default() });
    let line = server.wait_for("a conflict", |line| line["step"] == "conflict");
    assert_eq!(line["level"], "ERROR");
}

#[test]
fn pipes_folders_and_sockets_are_reported_and_skipped() {
    let folder = temporary_folder();
    let server = Server::start_with(&Setup::misbehave(folder.path(), 5000), |repository| {
        let path = |name: &str| repository.join(name);
        make_pipe(&path("a-pipe.wasm"));
        fs::create_dir(path("a-folder.wasm")).unwrap();
        symlink(path("absent"), path("a-dangling.wasm")).unwrap();
        symlink(path("a-pipe.wasm"), path("a-link.wasm")).unwrap();
        // The socket file outlives its listener.
        drop(UnixListener::bind(path("a-socket.wasm")).unwrap());
    });
    for (file, reason) in [
        ("a-pipe.wasm", "not a regular file"),
        ("a-folder.wasm", "not a regular file"),
        ("a-dangling.wasm", "No such file"),
        ("a-link.wasm", "not a regular file"),
        ("a-socket.wasm", "not a regular file"),
    ] {
        let line = server.wait_for(file, |line| line["file"] == file);
        assert_eq!((&line["level"], &line["step"]), (&"ERROR".into(), &"artifact".into()));
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
    }
    server.assert_healthy();
    assert!(inspect(&server.repository().join("a-pipe.wasm")).contains("not a regular file"));
}

#[test]
fn text_from_an_artifact_is_escaped_for_terminals() {
    let folder = temporary_folder();
    let file = Misbehave::default().pack(folder.path());
    // An escape sequence that sets the terminal's title, and a line that looks like another error.
    append_section(&file, "description", "x\x1b]0;y\x07\nerror: z\u{202e}".as_bytes());
    let shown = |arguments: &[&str]| {
        let output = run_host(arguments);
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let file = file.to_string_lossy();
    for text in [shown(&["inspect", &file]), shown(&["inspect", "--json", &file])] {
        assert!(text.contains("error: z"), "{text}");
        assert!(
            !text.contains(['\x1b', '\x07', '\u{202e}']) && !text.contains("\nerror"),
            "{text}"
        );
    }
    let foreign = folder.path().join("foreign.wasm");
    fs::copy(environment::guests().join("misbehave.wasm"), &foreign).unwrap();
    append_section(&foreign, "version", b"\x1b[2J\nerror: forged");
    let name = b"\x00\x02\x01x";
    append_section(&foreign, "component-name", name);
    assert!(!inspect(&foreign).contains('\x1b'));
    // The same for the name of the file.
    let strange = folder.path().join("\x1b[2J\nerror: forged.wasm");
    fs::write(&strange, b"").unwrap();
    assert!(!inspect(&strange).contains('\x1b'));
}

#[test]
fn an_artifact_under_two_names_is_loaded_once() {
    let artifacts = vec![toxicity("1.0.0")];
    let server = Server::start_with(&Setup { artifacts, ..Setup::default() }, |repository| {
        fs::copy(toxicity("1.0.0"), repository.join("copy.wasm")).unwrap();
    });
    let message =
        |line: &serde_json::Value| line["message"].as_str().unwrap_or_default().to_owned();
    let line = server.wait_for("the skipped copy", |line| message(line).starts_with("skipped"));
    assert_eq!((&line["level"], &line["model"]), (&"INFO".into(), &"toxicity".into()));
    let ready = server.lines().iter().filter(|line| message(line) == "version ready").count();
    assert_eq!(ready, 1);
    server.assert_healthy();
}

#[test]
fn a_split_of_an_absent_version_is_warned_about() {
    let config = "[models.toxicity]\nsplit = { \"1.0.0\" = 900_000, \"1.0.1\" = 100_000 }\n\
                  [models.toxicty]\nsplit = { \"2.0.0\" = 1_000_000 }\n";
    let artifacts = vec![toxicity("1.0.0")];
    let setup = Setup { artifacts, config: config.to_owned(), ..Setup::default() };
    let server = Server::start(&setup);
    for (model, version) in [("toxicity", "1.0.1"), ("toxicty", "2.0.0")] {
        let line = server.wait_for(version, |line| line["version"] == version);
        assert_eq!((&line["level"], &line["model"]), (&"WARN".into(), &model.into()));
    }
    let body = json!({"text": "You are nice"});
    let answer = server.post("/models/toxicty/predict", &body);
    assert_eq!((answer.status, answer.error_code()), (404, Some("not_found")));
    // The only model is the default model, and its split applies.
    let answer = server.post("/predict", &body);
    assert_eq!((answer.status, answer.header("x-route-reason")), (200, Some("split")));
}

#[test]
fn a_server_without_versions_is_live_but_not_ready() {
    let folder = temporary_folder();
    let artifacts = strange_files(folder.path()).into_iter().map(|(path, _)| path).collect();
    let server = Server::start_loading(&Setup { artifacts, ..Setup::default() });
    server.wait_for("the end of loading", |line| {
        line["message"].as_str().is_some_and(|message| message.starts_with("not ready"))
    });
    assert_eq!(server.get("/healthz").status, 200);
    let answer = server.get("/readyz");
    assert_eq!((answer.status, answer.error_code()), (503, Some("not_ready")));
    assert_eq!(answer.header("retry-after"), Some("1"));
}

#[test]
fn check_compares_the_version_step_with_the_signature() {
    let folder = temporary_folder();
    let pack = |version| Misbehave { version, ..Misbehave::default() }.pack(folder.path());
    let check = |old: &Path, new: &Path| {
        let (old, new) = (old.to_string_lossy(), new.to_string_lossy());
        let output = run_host(&["check", "--json", &old, &new]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.success(), report["fits"].as_bool().unwrap(), "{report}");
        (report["promised"].clone(), report["needed"].clone(), report["fits"].clone())
    };
    let (old, patch, major) = (pack("1.0.0"), pack("1.0.1"), pack("2.0.0"));
    assert_eq!(check(&old, &patch), ("patch".into(), "patch".into(), true.into()));
    assert_eq!(check(&old, &major), ("major".into(), "patch".into(), true.into()));
    assert_eq!(check(&patch, &old), (().into(), "patch".into(), false.into()));
    // The length of its text: 1 to 100 at first, then 1 to 999, then 2 to 100.
    replace_bytes(&patch, r#""maximum":100"#, r#""maximum":999"#);
    assert_eq!(check(&old, &patch), ("patch".into(), "minor".into(), false.into()));
    replace_bytes(&major, r#""minimum":1,"#, r#""minimum":2,"#);
    assert_eq!(check(&old, &major), ("major".into(), "major".into(), true.into()));
    let refused = refusal(&["check", &old.to_string_lossy(), &patch.to_string_lossy()]);
    assert!(
        refused.contains("1.0.1 after 1.0.0 is a patch step, but it takes a minor one"),
        "{refused}"
    );
    // A snapshot of the signature gives the same result.
    let snapshot = folder.path().join("old.json");
    let signature = run_host(&["inspect", "--signature", &old.to_string_lossy()]).stdout;
    std::fs::write(&snapshot, &signature).unwrap();
    assert_eq!(check(&snapshot, &patch), ("patch".into(), "minor".into(), false.into()));
    std::fs::write(&snapshot, &signature[1..]).unwrap();
    let refused = refusal(&["check", &snapshot.to_string_lossy(), &patch.to_string_lossy()]);
    assert!(refused.contains("no signature snapshot"), "{refused}");
    let other = toxicity("1.0.0");
    let refused = refusal(&["check", &old.to_string_lossy(), &other.to_string_lossy()]);
    assert!(refused.contains("misbehave") && refused.contains("toxicity"), "{refused}");
}

#[test]
fn inspect_shows_metadata_assets_and_signature() {
    let output = run_host(&["inspect", "--json", &toxicity("1.0.0").to_string_lossy()]);
    assert!(output.status.success());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["model"], &report["version"]), (&"toxicity".into(), &"1.0.0".into()));
    assert_eq!(report["metadata"]["licenses"], "MIT");
    assert_eq!(report["parameters"]["threshold"], "0.5");
    assert_eq!(report["signature"]["inputs"][0]["name"], "text");
    assert_eq!(report["signature"]["outputs"][1]["datatype"], "FP32");
    let assets: Vec<_> =
        report["assets"].as_array().unwrap().iter().map(|asset| &asset["name"]).collect();
    assert_eq!(assets, ["model.onnx", "vocabulary.tsv"]);
    assert!(report["assets"][0]["size_bytes"].as_u64().unwrap() > 300_000);
    assert!(report["golden_examples"].as_array().unwrap().len() >= 20);
    let has = |list: &str, name: &str| {
        let names = report[list].as_array().unwrap().iter().map(|item| item.as_str().unwrap());
        names.filter(|item| item.starts_with(name)).count() == 1
    };
    assert!(has("imports", "guesthouse:model/assets@0.2."));
    assert!(has("exports", "guesthouse:model/predict@0.2."));
    let people = run_host(&["inspect", &toxicity("1.0.0").to_string_lossy()]);
    let people = String::from_utf8(people.stdout).unwrap();
    for word in ["toxicity", "1.0.0", "text BYTES[rows]", "vocabulary.tsv", "golden examples (24)"]
    {
        assert!(people.contains(word), "{word} is missing in {people}");
    }
}
