use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use guesthouse_tests::artifacts::{run_host, temporary_folder};

const TEMPLATES: [&str; 5] = ["text", "image", "tabular", "python", "javascript"];

fn new(name: &str, template: &str, output: &Path, more: &[&str]) -> Output {
    let output = output.to_string_lossy();
    let arguments = ["new", name, "--template", template, "--output", &output];
    run_host(&[&arguments, more].concat())
}

/// The files below a folder, by their paths in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path.strip_prefix(folder).unwrap().to_owned()),
            }
        }
    }
    found
}

#[test]
fn every_template_is_complete_and_filled_in() {
    let folder = temporary_folder();
    for template in TEMPLATES {
        let path = folder.path().join(template);
        let made = new("some-model", template, &path, &[]);
        assert!(made.status.success(), "{made:?}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        for file in files(&path) {
            let text = fs::read_to_string(path.join(&file)).unwrap();
            let own = !file.starts_with("guesthouse");
            assert!(!own || !text.contains("{{"), "{template}: {} has a gap", file.display());
        }
        let read = |file: &str| fs::read_to_string(path.join(file)).unwrap();
        assert!(read("manifest.toml").starts_with("name = \"some-model\"\nversion = \"1.0.0\"\n"));
        assert!(read("README.md").contains("some-model-1.0.0.wasm"), "{template}");
        assert!(!read(".gitignore").is_empty() && read("golden.jsonl").lines().count() >= 3);
        let cargo = path.join("Cargo.toml").exists();
        let wit = if cargo { "guesthouse/wit/model.wit" } else { "wit/model.wit" };
        assert!(read(wit).contains("world basic"), "{template}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), TEMPLATES.len(), "something is left");
}

#[test]
fn guest_refers_to_the_sdk_of_a_clone() {
    let folder = temporary_folder();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_string_lossy();
    let path = folder.path().join("tab");
    let made = new("tab", "tabular", &path, &["--sdk", &root]);
    assert!(made.status.success(), "{made:?}");
    let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap();
    assert!(manifest.contains(&format!("path = \"{root}/plugins/sdk\"")), "{manifest}");
    assert!(!path.join("guesthouse").exists());
}

#[test]
fn rejected_folder_leaves_nothing_behind() {
    let folder = temporary_folder();
    let there = folder.path().join("there");
    fs::create_dir(&there).unwrap();
    let (good, absent) = (folder.path().join("good"), folder.path().join("absent/inner"));
    let here = folder.path().to_string_lossy();
    for (name, template, output, more, expected) in [
        ("m", "text", &there, &[][..], "it is there already"),
        ("M", "text", &good, &[], "a model's name"),
        ("a/b", "text", &good, &[], "a model's name"),
        ("", "text", &good, &[], "a model's name"),
        ("m", "perl", &good, &[], "javascript"),
        ("m", "text", &absent, &[], "cannot write"),
        ("m", "text", &good, &["--sdk", &here], "no plugins/sdk"),
        ("m", "python", &good, &["--sdk", &here], "only for guests in Rust"),
    ] {
        let rejected = new(name, template, output, more);
        let error = String::from_utf8_lossy(&rejected.stderr);
        assert!(!rejected.status.success(), "{name} {template}: {rejected:?}");
        assert!(error.contains(expected), "{name} {template}: {error}");
    }
    assert_eq!(files(folder.path()), Vec::<PathBuf>::new());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
