//! Writes to the host's log, in which lines carry the model and the version. Do not log callers'
//! inputs.

use crate::bindings::guesthouse::model::log::{Level, write};

/// Log information for debugging the guest.
pub fn debug(message: &str) {
    write(Level::Debug, message);
}

/// Log information about normal operation.
pub fn info(message: &str) {
    write(Level::Info, message);
}

/// Log something unexpected that does not fail the call.
pub fn warn(message: &str) {
    write(Level::Warn, message);
}

/// Log why the call fails.
pub fn error(message: &str) {
    write(Level::Error, message);
}
