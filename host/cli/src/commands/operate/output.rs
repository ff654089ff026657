//! Output of the commands: the result on standard output, progress and details of errors on standard
//! error. Text of the server is escaped before it reaches a terminal.

use std::io::{self, Write as _};

use guesthouse_model::terminal::{printable, printable_json};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::client::ServerResponse;
use super::error::{OperateError, ServerError};

/// Print a response, as JSON or for people. An error of the server becomes the command's.
pub(super) fn show<T: DeserializeOwned>(
    response: &ServerResponse,
    json: bool,
    text: impl FnOnce(&T) -> Vec<String>,
) -> Result<(), OperateError> {
    if json {
        print_json(&response.body)?;
    }
    if let Some(error) = response.error() {
        return Err(rejected(error, json));
    }
    if json {
        // Programs check the fields that they use.
        return response.parse::<Value>().map(drop);
    }
    print_lines(response, &text(&response.parse()?))
}

/// Print the details of a server's error, a line each, and return the command's error.
pub(super) fn rejected(error: ServerError, json: bool) -> OperateError {
    if !json {
        error.details().for_each(|detail| print_note(&detail));
    }
    error.into()
}

/// Print a result for people.
pub(super) fn print_lines(response: &ServerResponse, lines: &[String]) -> Result<(), OperateError> {
    if response.is_replayed {
        print_note("note: this was done before with the same idempotency key");
    }
    let lines: String = lines.iter().map(|line| format!("{}\n", printable(line))).collect();
    print(&lines)
}

/// Print a line that does not come from a server.
pub(super) fn print_line(line: &str) -> Result<(), OperateError> {
    print(&format!("{line}\n"))
}

/// Print a JSON body. Null, which stands for a body that is not JSON, is left out.
pub(super) fn print_json(body: &Value) -> Result<(), OperateError> {
    match body {
        Value::Null => Ok(()),
        body => print(&format!("{}\n", printable_json(&format!("{body:#}")))),
    }
}

/// Print a line to standard error.
pub(super) fn print_note(line: &str) {
    // Standard error may be closed.
    let _ = writeln!(io::stderr(), "{}", printable(line));
}

fn print(text: &str) -> Result<(), OperateError> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        // A reader such as `head` closes the pipe when it has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(OperateError::Output),
    }
}
