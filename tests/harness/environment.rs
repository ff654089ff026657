//! Where the things under test are.

use std::path::PathBuf;

/// The host program.
pub fn host() -> PathBuf {
    path("GUESTHOUSE_BIN")
}

/// The folder of the guests' components.
pub fn guests() -> PathBuf {
    path("GUESTHOUSE_GUESTS")
}

/// The folder of the models' sources.
pub fn models() -> PathBuf {
    path("GUESTHOUSE_MODELS")
}

/// The folder of the packed artifacts.
pub fn repository() -> PathBuf {
    path("GUESTHOUSE_REPOSITORY")
}

/// A folder for what tests write, on the same disk as the rest, so that files can be linked.
pub fn scratch() -> PathBuf {
    repository().with_file_name("test-scratch")
}

fn path(variable: &str) -> PathBuf {
    let Some(value) = std::env::var_os(variable) else {
        panic!("{variable} is not set: run the tests by `cargo xtask test`");
    };
    PathBuf::from(value)
}
