//! Runs the fuzzer, target by target: everything of the host that reads bytes from outside.
//!
//! The fuzzer is libFuzzer, on the stable compiler. Only our own crates are instrumented, by a wrapper
//! around rustc that cargo calls for them alone (`tests/fuzz/instrument.sh`); everything below them is
//! what the tests have built already. The inputs in the repository are where it begins, and are
//! kept few by hand; what it finds on the way stays in the target folder, for the next time. What the
//! targets promise stands in the host (`guesthouse_server::fuzzing`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::run;
use crate::workspace::Workspace;

/// The longest input, in bytes: several of everything that a reader tells apart.
const MAX_INPUT_BYTES: u32 = 4096;

/// An input that takes longer is a failure; most take microseconds.
const MAX_INPUT_SECONDS: u32 = 10;

/// Names the target to the fuzzer.
const TARGET_VARIABLE: &str = "GUESTHOUSE_FUZZ_TARGET";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long each target is fuzzed.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// This target alone.
    #[arg(long)]
    only: Option<String>,
}

/// Builds the fuzzer and runs every target, or the one that is named.
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
    ensure!(failed.is_empty(), "inputs were found that fail: {}", failed.join(", "));
    Ok(())
}

/// The packages that `cargo test` builds, and the fuzzer: so that all agree on the features of every
/// dependency.
pub(crate) fn packages(workspace: &Workspace) -> Vec<String> {
    let packages = workspace.default_packages.iter().map(String::as_str).chain(["fuzz"]);
    packages.flat_map(|package| ["--package".to_owned(), package.to_owned()]).collect()
}

/// The fuzzer, built.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let mut build = run::cargo();
    build
        .args(["test", "--locked", "--no-run", "--test", "fuzz"])
        .args(packages(workspace))
        .env("RUSTC_WORKSPACE_WRAPPER", workspace.fuzz().join("instrument.sh"));
    run::shown(&mut build)?;
    // Once more for where it is: all of it is there, so that this builds nothing.
    let messages = run::output(build.arg("--message-format=json"))?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let path = messages
        .filter(|message| message["target"]["name"] == "fuzz")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    path.context("cargo does not say where the fuzzer is")
}

/// The names of the targets: the folders of the corpus, which a test of the host compares with them.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(workspace.fuzz().join("corpus"))? {
        targets.push(entry?.file_name().to_string_lossy().into_owned());
    }
    targets.sort();
    Ok(targets)
}

/// One target's run.
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

    /// All inputs that were found to do something new.
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

    /// One line about what was done.
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
            bail!("{}\nthe input is in {}…", last.join("\n"), prefix.display());
        }
        let done = log.lines().rev().find(|line| line.contains("DONE")).unwrap_or_default();
        let coverage = done.split("exec/s").next().unwrap_or_default();
        Ok(format!("{:>10}: {}", self.target, coverage.trim()))
    }
}
