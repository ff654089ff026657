//! The locations of the programs and files under test, which `cargo xtask test` passes in
//! environment variables.

use std::path::PathBuf;

/// The host program.
pub fn host() -> PathBuf {
    path("GUESTHOUSE_BIN")
}

/// The folder of the compiled guest components.
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

/// The folder of the programs of a Python environment with scikit-learn.
pub fn python() -> PathBuf {
    path("GUESTHOUSE_PYTHON")
}

/// The folder with compiled code that runs of `guesthouse pack --onnx` share. It is on the same file
/// system as the temporary folders.
pub fn cache() -> PathBuf {
    path("GUESTHOUSE_CACHE")
}

/// The parent of temporary folders. It is on the same file system as the artifacts, so that they
/// can be hard-linked.
pub fn scratch() -> PathBuf {
    repository().with_file_name("test-scratch")
}

fn path(variable: &str) -> PathBuf {
    let Some(value) = std::env::var_os(variable) else {
        panic!("{variable} is not set: run the tests by `cargo xtask test`");
    };
    PathBuf::from(value)
}
