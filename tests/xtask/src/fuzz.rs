//! Runs the fuzzer on each target: every function of the host that parses bytes from outside.
//!
//! The fuzzer is libFuzzer on the stable compiler. Only this repository's crates are instrumented,
//! by a rustc wrapper (`tests/fuzz/instrument.sh`); dependencies are those of the test build. The
//! corpus in the repository is the starting point and is kept small by hand; new inputs are stored
//! in the target folder. The properties of the targets are in the host (`guesthouse_server::fuzzing`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::run;
use crate::workspace::Workspace;

/// The longest input in bytes, which is enough for several elements of everything that is parsed.
const MAX_INPUT_BYTES: u32 = 4096;

/// The time limit of an input; most take microseconds.
const MAX_INPUT_SECONDS: u32 = 10;

/// The environment variable that selects the target.
const TARGET_VARIABLE: &str = "GUESTHOUSE_FUZZ_TARGET";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The duration of each target in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Fuzz only this target.
    #[arg(long)]
    only: Option<String>,
}

/// Builds the fuzzer and runs all targets, or the one in `options`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let fuzzer = build(workspace)?;
    let targets = targets(workspace)?;
    let wanted = |target: &&String| options.only.as_ref().is_none_or(|only| only == *target);
    let wanted: Vec<_> = targets.iter().filter(wanted).collect();
    ensure!(!wanted.is_empty(), "the targets are {}", targets.join(", "));
    let mut failed = Vec::new();
    for target in wanted {
        let fuzz = Fuzz { fuzzer: &fuzzer, workspace, target };
        println!(
            "{}",
            fuzz.run(options.seconds).unwrap_or_else(|error| {
                failed.push(target.as_str());
                format!("{target}: {error:#}")
            })
        );
    }
    ensure!(failed.is_empty(), "failing inputs were found: {}", failed.join(", "));
    Ok(())
}

/// The packages that `cargo test` builds, and the fuzzer, so that both builds select the same
/// features of all dependencies.
pub(crate) fn packages(workspace: &Workspace) -> Vec<String> {
    let packages = workspace.default_packages.iter().map(String::as_str).chain(["fuzz"]);
    packages.flat_map(|package| ["--package".to_owned(), package.to_owned()]).collect()
}

/// Builds the fuzzer; returns its path.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let mut build = run::cargo();
    build
        .args(["test", "--locked", "--no-run", "--test", "fuzz"])
        .args(packages(workspace))
        .env("RUSTC_WORKSPACE_WRAPPER", workspace.fuzz().join("instrument.sh"));
    run::shown(&mut build)?;
    // The same command again builds nothing and prints the path.
    let messages = run::output(build.arg("--message-format=json"))?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let path = messages
        .filter(|message| message["target"]["name"] == "fuzz")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    path.context("cargo does not print the path of the fuzzer")
}

/// The names of the targets are the folders of the corpus; a test of the host compares both.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(workspace.fuzz().join("corpus"))? {
        targets.push(entry?.file_name().to_string_lossy().into_owned());
    }
    targets.sort();
    Ok(targets)
}

/// A run of one target.
struct Fuzz<'a> {
    fuzzer: &'a Path,
    workspace: &'a Workspace,
    target: &'a str,
}

impl Fuzz<'_> {
    /// The inputs in the repository.
    fn kept(&self) -> PathBuf {
        self.workspace.fuzz().join("corpus").join(self.target)
    }

    /// The inputs that increased the coverage.
    fn found(&self) -> PathBuf {
        self.workspace.fuzz_output().join("corpus").join(self.target)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.fuzzer);
        command.env(TARGET_VARIABLE, self.target).stdin(Stdio::null());
        command.arg(format!("-max_len={MAX_INPUT_BYTES}"));
        command.arg(format!("-timeout={MAX_INPUT_SECONDS}"));
        command
    }

    /// Runs the fuzzer; returns a line about its coverage.
    fn run(&self, seconds: u32) -> Result<String> {
        let (found, failures) = (self.found(), self.workspace.fuzz_output().join("failures"));
        for folder in [&found, &failures] {
            fs::create_dir_all(folder)?;
        }
        let prefix = failures.join(format!("{}-", self.target));
        let mut command = self.command();
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg("-print_final_stats=1")
            .arg("-use_value_profile=1")
            .arg(format!("-artifact_prefix={}", prefix.display()))
            .args([found, self.kept()]);
        let output = command.output().context("cannot start the fuzzer")?;
        let log = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(60)..];
            bail!("{}\nthe input is in {}*", last.join("\n"), prefix.display());
        }
        let done = log.lines().rev().find(|line| line.contains("DONE")).unwrap_or_default();
        let coverage = done.split("exec/s").next().unwrap_or_default();
        Ok(format!("{:>10}: {}", self.target, coverage.trim()))
    }
}
