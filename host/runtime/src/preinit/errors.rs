//! From errors of the engine and of files to those of a pre-initialisation, in one line each.

use guesthouse_model::terminal;

use super::PreinitError;
use crate::guest::EngineError;

/// The component cannot be compiled or linked.
pub(super) fn unusable(error: wasmtime::Error) -> PreinitError {
    PreinitError::Component(one_line(&error))
}

/// The engine cannot be set up.
pub(super) fn host_error(error: EngineError) -> PreinitError {
    PreinitError::Host(error.to_string())
}

/// A file cannot be read or written.
pub(super) fn file_error(what: &str, error: &std::io::Error) -> PreinitError {
    PreinitError::Host(format!("{what}: {error}"))
}

/// The chain of causes of an error in one line, without the backtrace.
pub(super) fn one_line(error: &wasmtime::Error) -> String {
    let causes: Vec<_> = error
        .chain()
        .map(ToString::to_string)
        .filter(|cause| !cause.starts_with("error while executing at wasm backtrace"))
        .collect();
    shorten(&causes.join(": "))
}

/// Truncate and escape a text of the guest for logs and reports.
pub(super) fn shorten(text: &str) -> String {
    let line: String = text.chars().take(500).collect();
    terminal::printable(&line.lines().map(str::trim).collect::<Vec<_>>().join(" "))
}
