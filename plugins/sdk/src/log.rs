//! Lines in the host's log, tagged there with the model and the version. Never a caller's input.

use crate::bindings::guesthouse::model::log::{Level, write};

/// For the guest's author.
pub fn debug(message: &str) {
    write(Level::Debug, message);
}

/// For the record.
pub fn info(message: &str) {
    write(Level::Info, message);
}

/// Somebody should look at it one day.
pub fn warn(message: &str) {
    write(Level::Warn, message);
}

/// The call it belongs to is going to fail.
pub fn error(message: &str) {
    write(Level::Error, message);
}
