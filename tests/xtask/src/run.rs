//! Runs child processes: shown, hidden behind a line of progress, or asked for their output.
//!
//! Every failure names the command that failed. What to run, and in which order, is for the
//! callers to say.

use std::env;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// How much of a hidden command's output its failure shows: enough for a compiler's error.
const TAIL_LINES: usize = 40;

/// Cargo, the one that runs this program, where there is one.
///
/// What `cargo run` tells us about our own package is not passed on: build scripts that watch
/// those variables would run again each time a crate is built by us and then without us.
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

/// Runs a command whose output belongs to the user.
pub(crate) fn shown(command: &mut Command) -> Result<()> {
    let line = describe(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs a command quietly and returns what it printed; its output is shown when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed ({})\n{}", output.status, tail(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Does one long step behind a line that says what it is and how long it took.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    eprint!("{what} ... ");
    // Without a newline the text may sit in a buffer while the step runs. Losing it is harmless.
    let _ = io::stderr().flush();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "failed" };
    eprintln!("{outcome} after {:.1} s", start.elapsed().as_secs_f32());
    result
}

/// The command line as a person would type it, without the program's folder.
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
