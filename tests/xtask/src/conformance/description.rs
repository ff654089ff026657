//! The server's documents are valid OpenAPI, and its responses conform to them for requests that
//! schemathesis generates.

use std::path::Path;

use anyhow::Result;

use super::python::Python;
use super::with_server;
use crate::bench::server::KEY;
use crate::run;
use crate::workspace::Workspace;

const VALIDATOR: [&str; 1] = ["openapi-spec-validator==0.9.0"];
const SCHEMATHESIS: [&str; 1] = ["schemathesis==4.32.5"];

/// The number of generated requests for each operation and phase: enough to vary every field, and
/// few enough to take minutes.
const EXAMPLES: &str = "40";

/// A fixed seed makes failures reproducible.
const SEED: &str = "1";

/// All checks are enabled; two accept additional statuses. A valid request may get 422, because a
/// schema cannot express that bytes are a picture or that an idempotency key is unused. A request
/// with a timeout of a millisecond gets 504; [`SLOWEST_SECONDS`] detects a server that hangs.
const SETTINGS: &str = r#"
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "422", "429", "5xx"]

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"#;

/// The time limit of a response, which is longer than the default deadline of a prediction.
const SLOWEST_SECONDS: &str = "10";

/// Checks that every document of the server is valid OpenAPI 3.1.
pub(super) fn check_documents(workspace: &Workspace, _host: &Path) -> Result<()> {
    let python = Python::install(workspace, "openapi", &VALIDATOR)?;
    with_server(workspace, |server| {
        let mut check = python.run("python");
        check.args(["-c", include_str!("documents.py"), &server.url("")]).env("KEY", KEY);
        print!("{}", run::output(&mut check)?);
        Ok(())
    })
}

/// Checks that every response conforms to the server's document.
pub(super) fn check_answers(workspace: &Workspace, _host: &Path) -> Result<()> {
    let python = Python::install(workspace, "schemathesis", &SCHEMATHESIS)?;
    // The tool writes its results into the current folder.
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
        // The elements of a tensor depend on its datatype, which JSON Schema cannot express.
        run.args(["--exclude-path-regex", "^/v2/.*/infer$"]);
        // It would send a generated key beside the valid one, and two different keys are rejected.
        run.args(["--generation-with-security-parameters", "false"]);
        run::shown(&mut run)
    })
}
