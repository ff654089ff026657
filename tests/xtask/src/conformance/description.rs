//! What the server says that it does, in the eyes of others: its documents are OpenAPI, and it answers
//! as they say, whatever schemathesis makes up.

use std::path::Path;

use anyhow::Result;

use super::python::Python;
use super::with_server;
use crate::bench::server::KEY;
use crate::run;
use crate::workspace::Workspace;

const VALIDATOR: [&str; 1] = ["openapi-spec-validator==0.9.0"];
const SCHEMATHESIS: [&str; 1] = ["schemathesis==4.32.5"];

/// How many requests schemathesis makes up for each operation and phase: enough that every field of
/// every operation is bent a few times, and few enough for some minutes.
const EXAMPLES: &str = "40";

/// Where the same requests start from each time, so that what failed fails again.
const SEED: &str = "1";

/// Checks that are left out.
const EXCLUDED: [(&str, &str); 0] = [];

/// Every document of the server is OpenAPI 3.1.
pub(super) fn check_documents(workspace: &Workspace, _host: &Path) -> Result<()> {
    let python = Python::install(workspace, "openapi", &VALIDATOR)?;
    with_server(workspace, |server| {
        let mut check = python.run("python");
        check.args(["-c", include_str!("documents.py"), &server.url("")]).env("KEY", KEY);
        print!("{}", run::output(&mut check)?);
        Ok(())
    })
}

/// Every answer is one that the server's document allows.
pub(super) fn check_answers(workspace: &Workspace, _host: &Path) -> Result<()> {
    let python = Python::install(workspace, "schemathesis", &SCHEMATHESIS)?;
    // The tool leaves what it has found in the folder that it runs in.
    let folder = workspace.output().join("schemathesis");
    std::fs::create_dir_all(&folder)?;
    let excluded: Vec<_> = EXCLUDED.iter().map(|(check, _)| *check).collect();
    for (check, reason) in EXCLUDED {
        println!("without {check}: {reason}");
    }
    with_server(workspace, |server| {
        let mut run = python.run("schemathesis");
        run.current_dir(&folder)
            .args(["run", &server.url("/openapi.json"), "--no-color"])
            .args(["--header", &format!("X-API-Key: {KEY}")])
            .args(["--phases", "examples,coverage,fuzzing,stateful", "--checks", "all"])
            .args(["--max-examples", EXAMPLES, "--seed", SEED, "--continue-on-failure"])
            .arg("--generation-database")
            .arg(Path::new("hypothesis"));
        if !excluded.is_empty() {
            run.args(["--exclude-checks", &excluded.join(",")]);
        }
        run::shown(&mut run)
    })
}
