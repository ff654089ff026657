use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The folders of the host's crates.
fn crates() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("host")).unwrap().map(|entry| entry.unwrap().path());
    let mut crates: Vec<_> = entries.filter(|path| path.join("Cargo.toml").exists()).collect();
    crates.sort();
    assert!(crates.len() >= 6, "{crates:?}");
    crates
}

/// The sources of the host, each with its top-level module: `guest` for `guest.rs` and `guest/fault.rs`.
fn host_sources() -> Vec<(PathBuf, String, String)> {
    let mut found = Vec::new();
    for one in crates() {
        let folder = one.join("src");
        for (path, text) in sources(&folder) {
            let first = path.strip_prefix(&folder).unwrap().iter().next().unwrap();
            let module = first.to_string_lossy().trim_end_matches(".rs").to_owned();
            found.push((path, module, text));
        }
    }
    found
}

#[test]
fn only_some_modules_know_wasmtime_and_axum() {
    for (path, module, text) in host_sources() {
        for (library, allowed) in [
            ("wasmtime", &["guest", "preinit"][..]),
            ("axum", &["edge", "admin"]),
            ("tonic", &["edge"]),
            ("tonic_health", &["edge"]),
            ("tonic_reflection", &["edge"]),
            ("tonic_types", &["edge"]),
            ("prost_reflect", &["edge", "typed"]),
            ("hyper", &["edge"]),
            ("hyper_util", &["edge"]),
            ("tower_http", &["edge"]),
            ("multer", &["edge"]),
            ("rustls", &["edge", "commands"]),
            ("tokio_rustls", &["edge"]),
            ("opentelemetry", &["observe"]),
            ("opentelemetry_otlp", &["observe"]),
            ("opentelemetry_sdk", &["observe"]),
            ("prometheus_client", &["edge"]),
            ("ureq", &["commands"]),
            ("clap", &["main", "commands", "preinit", "observe"]),
        ] {
            let uses =
                [format!("use {library}::"), format!(" {library}::"), format!("({library}::")];
            let used = uses.iter().any(|pattern| text.contains(pattern.as_str()));
            assert!(
                !used || allowed.contains(&module.as_str()),
                "{} uses {library}",
                path.display()
            );
        }
    }
}

#[test]
fn every_module_says_what_it_is_for_and_stays_readable() {
    let others =
        ["plugins", "tests/fuzz", "tests/harness", "tests/load", "tests/probe", "tests/xtask/src"];
    let others = others.map(|folder| root().join(folder));
    let folders = crates().into_iter().map(|folder| folder.join("src")).chain(others);
    for folder in folders {
        if !folder.exists() {
            continue;
        }
        for (path, text) in sources(&folder) {
            assert!(text.starts_with("//!"), "{} begins without a word", path.display());
            let lines = text.lines().count();
            assert!(lines <= 600, "{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn every_error_code_is_documented() {
    let source = fs::read_to_string(root().join("host/server/src/api/error.rs")).unwrap();
    let page = fs::read_to_string(root().join("host/docs/src/reference/errors.md")).unwrap();
    let (_, function) = source.split_once("fn as_str(self)").unwrap();
    let (function, _) = function.split_once("\n    }\n").unwrap();
    let codes: Vec<_> = function.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(codes.len() >= 13, "{codes:?}");
    for code in codes {
        assert!(page.contains(&format!("| `{code}` |")), "{code} is not in the book");
    }
}
