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

/// No check is left out; two are told more of what is right. A request that keeps to its schema may get
/// a 422: a schema cannot say that bytes are a picture, which the model finds out, nor that a key of
/// idempotency has not been used. Who gives the server a millisecond is told that this was too short, with
/// a 504; whether the server hangs is seen by [`SLOWEST_SECONDS`].
const SETTINGS: &str = r#"
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "422", "429", "5xx"]

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"#;

/// How long any answer may take: less than the server gives predictions by itself.
const SLOWEST_SECONDS: &str = "10";

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
    std::fs::write(folder.join("schemathesis.toml"), SETTINGS)?;
    with_server(workspace, |server| {
        let mut run = python.run("schemathesis");
        run.current_dir(&folder)
            .args(["run", &server.url("/openapi.json"), "--no-color"])
            .args(["--header", &format!("X-API-Key: {KEY}")])
            .args(["--phases", "examples,coverage,fuzzing,stateful", "--checks", "all"])
            .args(["--max-examples", EXAMPLES, "--seed", SEED, "--continue-on-failure"])
            .args(["--max-response-time", SLOWEST_SECONDS])
            .arg("--generation-database")
            .arg(Path::new("hypothesis"));
        // What the elements of a tensor are, another of its fields says; schemas have no words for that.
        run.args(["--exclude-path-regex", "^/v2/.*/infer$"]);
        // It would send a key that it makes up beside the right one, and two different ones are refused.
        run.args(["--generation-with-security-parameters", "false"]);
        run::shown(&mut run)
    })
}
