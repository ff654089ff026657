use std::fs;
use std::path::{Path, PathBuf};

/// The length that test names must stay below.
const MAX_NAME_LENGTH: usize = 60;

/// The folders whose tests are checked.
const FOLDERS: [&str; 3] = ["host", "plugins", "tests"];

/// Calls that wait for a fixed time.
const SLEEPS: [&str; 3] = ["thread::sleep(", "time::sleep(", "park_timeout("];

/// Tests that wait for a fixed time or compare elapsed time, each with its reason.
const EXCEPTIONS: [(&str, &str); 3] = [
    ("tests/harness/eventually.rs", "the one place that polls"),
    ("tests/load/src/tests.rs", "the server of this test stalls for a time that is measured"),
    ("tests/boundary/house_style.rs", "it names what it looks for"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// All Rust sources below a folder, relative to the root.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let path = folder.join(entry.unwrap().file_name());
        if root().join(&path).is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(root().join(&path)).unwrap();
            found.push((path, text));
        }
    }
    found
}

fn all_sources() -> Vec<(PathBuf, String)> {
    FOLDERS.iter().flat_map(|folder| sources(Path::new(folder))).collect()
}

/// The names of the tests in a source: of the function after each attribute.
fn test_names(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
            names.extend(rest.split('(').next());
            is_test = false;
        }
    }
    names
}

/// The part of a source that belongs to tests: all of a test module, or what follows `#[cfg(test)]`.
fn test_code<'a>(path: &Path, text: &'a str, test_modules: &[PathBuf]) -> &'a str {
    let is_test_module = path.starts_with("tests/boundary")
        || path.starts_with("tests/harness")
        || test_modules.iter().any(|module| {
            path == module.with_extension("rs").as_path() || path.starts_with(module)
        });
    if is_test_module {
        return text;
    }
    text.split_once("#[cfg(test)]\nmod tests {").map_or("", |(_, tests)| tests)
}

/// The modules that are declared as `#[cfg(test)] mod name;`, without their extension.
fn test_modules(sources: &[(PathBuf, String)]) -> Vec<PathBuf> {
    let mut modules = Vec::new();
    for (path, text) in sources {
        let is_root = ["lib.rs", "main.rs"].iter().any(|name| path.ends_with(name));
        let folder =
            if is_root { path.parent().unwrap().to_owned() } else { path.with_extension("") };
        for declaration in text.split("#[cfg(test)]\nmod ").skip(1) {
            let name = declaration.split([';', ' ']).next().unwrap();
            if declaration[name.len()..].starts_with(';') {
                modules.push(folder.join(name));
            }
        }
    }
    modules
}

#[test]
fn test_names_are_shorter_than_the_limit() {
    let mut count = 0;
    for (path, text) in all_sources() {
        for name in test_names(&text) {
            count += 1;
            let length = name.len();
            assert!(length < MAX_NAME_LENGTH, "{}: {name} has {length} letters", path.display());
        }
    }
    assert!(count > 500, "only {count} tests were found");
}

/// A test waits for a condition with the harness's `eventually`; benchmarks measure time.
#[test]
fn tests_neither_sleep_nor_limit_elapsed_time() {
    let sources = all_sources();
    let modules = test_modules(&sources);
    for (path, text) in &sources {
        if EXCEPTIONS.iter().any(|(exception, _)| path == Path::new(exception)) {
            continue;
        }
        for line in test_code(path, text, &modules).lines() {
            let sleep = SLEEPS.iter().find(|sleep| line.contains(**sleep));
            assert!(sleep.is_none(), "{}: {}", path.display(), line.trim());
            let is_limit = line.contains("assert") && line.contains("elapsed() <");
            assert!(!is_limit, "{}: {}", path.display(), line.trim());
        }
    }
}
