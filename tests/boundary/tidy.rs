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

/// The modules of the host in the order of the architecture's table: each may use those before it.
fn order() -> Vec<String> {
    let map = fs::read_to_string(root().join("host/ARCHITECTURE.md")).unwrap();
    let (_, table) = map.split_once("| module | what it owns |").unwrap();
    let rows = table.lines().skip(2).map_while(|row| row.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned()).collect()
}

/// The modules that a file names: `crate::x`, and `crate::{x, y}`.
fn used_modules(text: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
    };
    let mut used = Vec::new();
    for part in text.split("crate::").skip(1) {
        match part.strip_prefix('{') {
            None => used.push(word(part)),
            Some(list) => used
                .extend(list.split('}').next().unwrap().split(',').map(|item| word(item.trim()))),
        }
    }
    used
}

#[test]
fn dependencies_between_modules_point_one_way() {
    let order = order();
    assert!(order.len() >= 15, "{order:?}");
    // Pairs that name each other's types, each with its reason.
    let mutual = [
        // A route is a function of a snapshot, and a snapshot holds splits.
        ("router", "registry"),
    ];
    let place = |name: &str| order.iter().position(|module| module == name);
    for (path, text) in sources(&root().join("host/src")) {
        let from = module(&path);
        if ["lib", "main", "commands"].contains(&from.as_str()) {
            continue;
        }
        let at =
            place(&from).unwrap_or_else(|| panic!("{from} is not in the architecture's table"));
        for to in used_modules(&text) {
            let Some(used) = place(&to) else { continue };
            let (from, to) = (from.as_str(), to.as_str());
            let known = mutual.contains(&(from, to)) || mutual.contains(&(to, from));
            assert!(used <= at || known, "{} uses {to}", path.display());
        }
    }
}

#[test]
fn every_module_says_what_it_is_for_and_stays_readable() {
    for folder in [
        "host/src",
        "plugins",
        "tests/fuzz",
        "tests/harness",
        "tests/load",
        "tests/probe",
        "tests/xtask/src",
    ] {
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
    let source = fs::read_to_string(root().join("host/src/edge/error.rs")).unwrap();
    let page = fs::read_to_string(root().join("host/docs/src/reference/errors.md")).unwrap();
    let (_, function) = source.split_once("fn as_str(self)").unwrap();
    let (function, _) = function.split_once("fn status(self)").unwrap();
    let codes: Vec<_> = function.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(codes.len() >= 13, "{codes:?}");
    for code in codes {
        assert!(
            source.contains(&format!("//! | `{code}` |")),
            "{code} is not in its module's table"
        );
        assert!(page.contains(&format!("| `{code}` |")), "{code} is not in the book");
    }
}
