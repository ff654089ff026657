//! Runs child processes: with their output shown, captured, or replaced by a line of progress.
//!
//! Every error names the command that failed.

use std::env;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// How many lines of a captured output an error shows.
const TAIL_LINES: usize = 40;

/// The cargo that runs this program, if there is one.
///
/// The variables that `cargo run` sets for this package are removed: build scripts that depend on
/// them would run again whenever a crate is built with and without them.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a command and shows its output.
pub(crate) fn shown(command: &mut Command) -> Result<()> {
    let line = describe(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs a command and returns its standard output; an error contains the end of all output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed ({})\n{}", output.status, tail(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a step and prints its name and its duration.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    eprint!("{what} ... ");
    // Without a newline the text may stay in a buffer. Failing to flush is harmless.
    let _ = io::stderr().flush();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "failed" };
    eprintln!("{outcome} after {:.1} s", start.elapsed().as_secs_f32());
    result
}

/// The command line without the folder of the program.
fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut line = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

fn tail(output: &Output) -> String {
    let text =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_command_and_its_last_output() {
        let error = output(Command::new("sh").args(["-c", "seq 100; echo why >&2; exit 3"]));
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("`sh -c seq 100;"), "{text}");
        assert!(text.ends_with("\n100\nwhy"), "{text}");
        assert!(!text.contains("\n50\n"), "{text}");
    }
}
