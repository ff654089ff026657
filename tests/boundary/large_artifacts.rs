use std::fs::File;
use std::path::{Path, PathBuf};

use guesthouse_tests::artifacts::{
    Misbehave, append_section, replace_bytes, run_host, temporary_folder, toxicity,
};
use guesthouse_tests::entry_points::replace_section;
use guesthouse_tests::{Server, Setup, environment};
use serde_json::{Value, json};

/// The size of the large asset, and by how much the server's memory may grow: a fifth of it, which
/// covers the instances and the allocator.
const ASSET_BYTES: u64 = 250 << 20;
const MAX_MORE_BYTES: u64 = 50 << 20;

fn pack_with_asset(folder: &Path, version: &str) -> PathBuf {
    let asset = File::create(folder.join("asset.bin")).unwrap();
    // A sparse file.
    asset.set_len(ASSET_BYTES).unwrap();
    let golden = folder.join("golden.jsonl");
    std::fs::write(golden, Misbehave::default().golden).unwrap();
    let manifest = folder.join("manifest.toml");
    let text = format!(
        "name = \"misbehave\"\nversion = \"{version}\"\n[parameters]\ninit = \"well\"\n\
         [assets]\nlarge = \"asset.bin\"\n[golden]\nfile = \"golden.jsonl\"\n"
    );
    std::fs::write(&manifest, text).unwrap();
    let output = folder.join(format!("large-{version}.wasm"));
    let component = environment::guests().join("misbehave.wasm");
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let (manifest, component) = (path(&manifest), path(&component));
    let outcome = run_host(&[
        "pack",
        "--manifest",
        &manifest,
        "--component",
        &component,
        "--output",
        &path(&output),
    ]);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    output
}

#[test]
fn a_large_artifact_is_loaded_in_bounded_memory() {
    let folder = temporary_folder();
    let state = Some(folder.path().join("state"));
    let artifacts = vec![toxicity("1.0.0"), Misbehave::default().pack(folder.path())];
    let mut setup = Setup { artifacts, state, ..Setup::default() };
    setup.config = "default_model = \"toxicity\"\n".to_owned();
    let large = pack_with_asset(folder.path(), "2.0.0");
    let server = Server::start(&setup);
    let before = server.peak_memory_bytes();
    let deployed = server.deploy(&large);
    assert_eq!(deployed["state"], "done", "{deployed}");
    let answer =
        server.post("/models/misbehave/versions/2.0.0/predict", &json!({"action": "echo"}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let more = server.peak_memory_bytes() - before;
    assert!(more < MAX_MORE_BYTES, "deploying took {} MiB", more >> 20);
    server.stop();

    // Loaded from the state folder, and found in the repository folder as well.
    setup.artifacts.push(large);
    let server = Server::start(&setup);
    let peak = server.peak_memory_bytes();
    assert!(peak < before + MAX_MORE_BYTES, "{} MiB after {} MiB", peak >> 20, before >> 20);
    server.stop();
}

#[test]
fn artifacts_that_pack_would_not_write_are_rejected() {
    let folder = temporary_folder();
    let altered = |version: &'static str, alter: &dyn Fn(&Path)| {
        let artifact = Misbehave { version, ..Misbehave::default() }.pack(folder.path());
        alter(&artifact);
        artifact
    };
    let name = [&[0, 10, 9][..], b"misbehave"].concat();
    let descriptor = |tolerance: Value| {
        json!({
            "format": 1,
            "parameters": {"init": "well"},
            "assets": {},
            "tolerances": {"score": tolerance},
        })
    };
    let with_tolerance = |tolerance: Value| {
        let descriptor = descriptor(tolerance).to_string();
        move |artifact: &Path| {
            replace_section(artifact, "guesthouse:descriptor", descriptor.as_bytes());
        }
    };
    let good = altered("2.0.0", &with_tolerance(json!(0.5)));
    let bad = [
        altered("3.0.0", &|artifact| append_section(artifact, "version", b"9.9.9")),
        altered("4.0.0", &|artifact| append_section(artifact, "version", b"4.0.0")),
        altered("5.0.0", &|artifact| append_section(artifact, "component-name", &name)),
        altered("6.0.0", &|artifact| {
            append_section(artifact, "description", b"one");
            append_section(artifact, "description", b"two");
        }),
        altered("7.0.0", &with_tolerance(json!(-0.5))),
        altered("8.0.0", &|artifact| {
            replace_bytes(artifact, r#""tolerances":{}"#, r#""tolerances":[]"#);
        }),
    ];
    let mut setup = Setup::misbehave(folder.path(), 5000);
    setup.artifacts.extend(bad.iter().cloned());
    let server = Server::start(&setup);
    for artifact in &bad {
        let file = artifact.file_name().unwrap().to_string_lossy().into_owned();
        let line = server.wait_for(&file, |line| line["file"] == file.as_str());
        assert_eq!((&line["level"], &line["step"]), (&json!("ERROR"), &json!("artifact")));
        let failed = server.deploy(artifact);
        assert_eq!(failed["state"], "failed", "{file}: {failed}");
        assert_eq!(failed["error"]["error_code"], "unacceptable_artifact", "{file}: {failed}");
        let inspected = run_host(&["inspect", &artifact.to_string_lossy()]);
        assert_eq!(inspected.status.code(), Some(1), "{file}");
    }
    assert_eq!(server.deploy(&good)["state"], "done");
}
