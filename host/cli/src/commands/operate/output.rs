//! What the commands print: the answer on standard output, what happens meanwhile and what is wrong
//! in particular on standard error. Nothing of the server reaches a terminal as it is.

use std::io::{self, Write as _};

use guesthouse_model::terminal::{printable, printable_json};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::client::Answer;
use super::failure::{OperateError, Refusal};

/// Print an answer, for a program or for people; the server's error becomes the command's.
pub(super) fn show<T: DeserializeOwned>(
    answer: &Answer,
    json: bool,
    text: impl FnOnce(&T) -> Vec<String>,
) -> Result<(), OperateError> {
    if json {
        print_json(&answer.body)?;
    }
    if let Some(refusal) = answer.refusal() {
        return Err(refused(refusal, json));
    }
    if json {
        // Programs know for themselves what they look for.
        return answer.parse::<Value>().map(drop);
    }
    print_lines(answer, &text(&answer.parse()?))
}

/// The server's error as the command's; its details are lines of their own before it.
pub(super) fn refused(refusal: Refusal, json: bool) -> OperateError {
    if !json {
        refusal.details().for_each(|detail| tell(&detail));
    }
    refusal.into()
}

/// Print what came of it, for people.
pub(super) fn print_lines(answer: &Answer, lines: &[String]) -> Result<(), OperateError> {
    if answer.replayed {
        tell("note: this was done before with the same idempotency key");
    }
    let lines: String = lines.iter().map(|line| format!("{}\n", printable(line))).collect();
    print(&lines)
}

/// Print something that this command has made itself.
pub(super) fn print_line(line: &str) -> Result<(), OperateError> {
    print(&format!("{line}\n"))
}

/// Print an answer as it is. What is not JSON is null and left out.
pub(super) fn print_json(body: &Value) -> Result<(), OperateError> {
    match body {
        Value::Null => Ok(()),
        body => print(&format!("{}\n", printable_json(&format!("{body:#}")))),
    }
}

/// Tell whoever is watching.
pub(super) fn tell(line: &str) {
    // Perhaps nobody is.
    let _ = writeln!(io::stderr(), "{}", printable(line));
}

fn print(text: &str) -> Result<(), OperateError> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        // `head` has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(OperateError::Output),
    }
}
