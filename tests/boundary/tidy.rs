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

/// The module of the host that a file belongs to: `guest` for `guest.rs` and `guest/fault.rs`.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("host/src")).unwrap();
    inside.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned()
}

#[test]
fn only_some_modules_know_wasmtime_and_axum() {
    for (path, text) in sources(&root().join("host/src")) {
        let module = module(&path);
        for (library, allowed) in [
            ("wasmtime", &["guest", "preinit"][..]),
            ("wasmtime_wizer", &["preinit"]),
            ("axum", &["edge", "server"]),
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
fn dependencies_between_modules_point_one_way() {
    // A module may use those before it.
    let order = [
        "terminal",
        "model",
        "observe",
        "artifact",
        "guest",
        "preinit",
        "store",
        "record",
        "pool",
        "version",
        "inference",
        "router",
        "registry",
        "edge",
        "config",
        "server",
        "commands",
        "main",
    ];
    // The pairs that name each other's types, each with its reason.
    let mutual = [
        // Limits of the edge are settled in the configuration; key hashes are made there.
        ("edge", "config"),
        // A route is a function of a snapshot, and a snapshot holds splits.
        ("router", "registry"),
        // What `init` may read is the artifact.
        ("guest", "preinit"),
        // Golden examples are compared within the artifact's tolerances.
        ("observe", "model"),
    ];
    let place = |name: &str| order.iter().position(|module| *module == name);
    for (path, text) in sources(&root().join("host/src")) {
        let from = module(&path);
        if from == "lib" {
            continue;
        }
        let at = place(&from).unwrap_or_else(|| panic!("{from} is not in the order"));
        for part in text.split("use crate::").skip(1) {
            let to: String = part.chars().take_while(|letter| letter.is_alphanumeric()).collect();
            let Some(used) = place(&to) else { continue };
            let known = mutual.contains(&(from.as_str(), to.as_str()))
                || mutual.contains(&(to.as_str(), from.as_str()));
            assert!(used <= at || known, "{} uses {to}", path.display());
        }
    }
}

#[test]
fn every_module_says_what_it_is_for_and_stays_readable() {
    for folder in ["host/src", "plugins", "tests/harness", "tests/load", "tests/xtask/src"] {
        let folder = root().join(folder);
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
    let text = fs::read_to_string(root().join("host/src/edge/error.rs")).unwrap();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let codes: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix("//! | `")?.split('`').next()).collect();
    assert!(codes.len() >= 13);
    for code in codes {
        assert!(readme.contains(&format!("`{code}`")), "{code} is not in the README");
    }
}
