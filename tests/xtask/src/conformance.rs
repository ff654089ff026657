//! `cargo xtask conformance`: checks the server and its packaging with tools of others.
//!
//! Each step installs fixed versions of its tools into the target folder and leaves nothing
//! elsewhere. Steps that need a server start one with the demo models, in the same build as the
//! tests.

mod clients;
mod description;
mod metrics;
mod packaging;
mod page;
mod perf_analyzer;
mod templates;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, ensure};

use crate::bench::server::{Server, demonstration};
use crate::python_package;
use crate::workspace::{Profile, Workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only this step.
    #[arg(long)]
    only: Option<String>,
}

/// A step: its name, what it shows, and its check.
struct Step {
    name: &'static str,
    about: &'static str,
    check: fn(&Workspace, &Path) -> Result<()>,
}

const STEPS: [Step; 10] = [
    Step {
        name: "openapi",
        about: "the documents are OpenAPI",
        check: description::check_documents,
    },
    Step {
        name: "schemathesis",
        about: "the server does what its document says",
        check: description::check_answers,
    },
    Step {
        name: "schemathesis-admin",
        about: "the admin API does what its document says",
        check: description::check_admin_answers,
    },
    Step { name: "docs", about: "the page works in a browser", check: page::check },
    Step {
        name: "metrics",
        about: "Prometheus understands what is measured",
        check: metrics::check,
    },
    Step {
        name: "packaging",
        about: "operators' files are what they claim",
        check: packaging::check,
    },
    Step {
        name: "clients",
        about: "published clients do what they do elsewhere",
        check: clients::check,
    },
    Step {
        name: "python",
        about: "models of Python's frameworks answer as themselves",
        check: python_package::check,
    },
    Step {
        name: "perf_analyzer",
        about: "Triton's load generator measures the server",
        check: perf_analyzer::check,
    },
    Step {
        name: "templates",
        about: "what `guesthouse new` writes is built, tested, packed and served",
        check: templates::check,
    },
];

/// Runs all steps, or the one in `options`. A step that fails does not prevent the others.
pub(crate) fn check(workspace: &Workspace, host: &Path, options: &Options) -> Result<()> {
    let wanted = |step: &&Step| options.only.as_ref().is_none_or(|only| only == step.name);
    let steps: Vec<_> = STEPS.iter().filter(wanted).collect();
    ensure!(!steps.is_empty(), "the steps are {:?}", STEPS.map(|step| step.name));
    let mut results = Vec::new();
    for step in steps {
        println!("== {}: {}", step.name, step.about);
        let start = Instant::now();
        let outcome = (step.check)(workspace, host);
        if let Err(error) = &outcome {
            eprintln!("{error:#}");
        }
        results.push((step, outcome, start.elapsed()));
    }
    print(&results);
    let failed: Vec<_> = results.iter().filter(|(_, outcome, _)| outcome.is_err()).collect();
    let names: Vec<_> = failed.iter().map(|(step, ..)| step.name).collect();
    ensure!(names.is_empty(), "failed: {}", names.join(", "));
    Ok(())
}

fn print(results: &[(&Step, Result<(), Error>, Duration)]) {
    println!();
    for (step, outcome, took) in results {
        let verdict = if outcome.is_ok() { "passed" } else { "FAILED" };
        let seconds = took.as_secs_f32();
        println!("{:<14} {verdict:<9} {seconds:>7.1} s  {}", step.name, step.about);
    }
}

/// Removes all deployments from a state folder and keeps the compiled code.
fn forget_deployed(state: &Path) -> std::io::Result<()> {
    let ignore_absent = |outcome: std::io::Result<()>| match outcome {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    ignore_absent(fs::remove_file(state.join("ledger.redb")))?;
    ignore_absent(fs::remove_file(state.join("ledger.head")))?;
    ignore_absent(fs::remove_dir_all(state.join("artifacts")))
}

/// Starts a server with the demo models, runs `check` on it, and stops it.
fn with_server(workspace: &Workspace, ask: impl FnOnce(&Server) -> Result<()>) -> Result<()> {
    let mut setup = demonstration(workspace);
    setup.program = workspace.host_binary(Profile::Dev);
    setup.state = workspace.output().join("conformance");
    // The compiled code is kept. Deployments are not: a model that was packed again has another
    // digest and would conflict with the deployed version.
    forget_deployed(&setup.state).context("cannot remove the deployments of the last server")?;
    let server = Server::start(workspace, &setup)?;
    let outcome = ask(&server);
    let end = server.stop();
    outcome.and(end)
}
