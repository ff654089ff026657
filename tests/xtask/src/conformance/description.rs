//! The server's documents are valid OpenAPI, and its responses conform to them for requests that
//! schemathesis generates.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::with_server;
use crate::bench::server::{KEY, Server};
use crate::python::Python;
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

/// The same for the admin API, where a valid request gets 503 if too many deployments are in progress.
/// Integers written with a decimal point are rejected, because a share of 1.0 could mean all requests;
/// JSON Schema does not distinguish them from other integers.
const ADMIN_SETTINGS: &str = r#"
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "404", "409", "422", "503"]

[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", "503"]

[[operations]]
include-path-regex = "/(canary|shadow|keys)$"

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404", "409", "422", "503"]
"#;

/// The key of the demonstration for the admin API.
const ADMIN_KEY: &str = "local-demo-admin-key";

/// The time limit of a response, which is longer than the default deadline of a prediction.
const SLOWEST_SECONDS: &str = "10";

/// Checks that every document of the server is valid OpenAPI 3.1.
pub(super) fn check_documents(workspace: &Workspace, _host: &Path) -> Result<()> {
    let python = Python::install(workspace, "openapi", &VALIDATOR)?;
    with_server(workspace, |server| {
        let mut check = python.run("python");
        check.args(["-c", include_str!("documents.py"), &server.url("")]).env("KEY", KEY);
        print!("{}", run::output(&mut check)?);
        let mut check = python.run("python");
        let arguments = ["-c", include_str!("documents.py"), &server.admin_url(""), "admin"];
        check.args(arguments).env("KEY", ADMIN_KEY);
        print!("{}", run::output(&mut check)?);
        Ok(())
    })
}

/// Checks that every response conforms to the server's document.
pub(super) fn check_answers(workspace: &Workspace, _host: &Path) -> Result<()> {
    check_responses(workspace, "schemathesis", SETTINGS, |server, run| {
        run.args(["run", &server.url("/openapi.json")])
            .args(["--header", &format!("X-API-Key: {KEY}")])
            // The elements of a tensor depend on its datatype, which JSON Schema cannot express.
            .args(["--exclude-path-regex", "^/v2/.*/infer$"]);
    })
}

/// Checks that every response of the admin API conforms to its document.
pub(super) fn check_admin_answers(workspace: &Workspace, _host: &Path) -> Result<()> {
    check_responses(workspace, "schemathesis-admin", ADMIN_SETTINGS, |server, run| {
        run.args(["run", &server.admin_url("/openapi.json")])
            .args(["--header", &format!("X-API-Key: {ADMIN_KEY}")]);
    })
}

fn check_responses(
    workspace: &Workspace,
    folder: &str,
    settings: &str,
    configure: impl FnOnce(&Server, &mut Command),
) -> Result<()> {
    let python = Python::install(workspace, "schemathesis", &SCHEMATHESIS)?;
    // The tool writes its results into the current folder.
    let folder = workspace.output().join(folder);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("schemathesis.toml"), settings)?;
    with_server(workspace, |server| {
        let mut run = python.run("schemathesis");
        run.current_dir(&folder);
        configure(server, &mut run);
        run.arg("--no-color")
            .args(["--phases", "examples,coverage,fuzzing,stateful", "--checks", "all"])
            .args(["--max-examples", EXAMPLES, "--seed", SEED, "--continue-on-failure"])
            .args(["--max-response-time", SLOWEST_SECONDS])
            .arg("--generation-database")
            .arg(Path::new("hypothesis"));
        // It would send a generated key beside the valid one, and two different keys are rejected.
        run.args(["--generation-with-security-parameters", "false"]);
        run::shown(&mut run)
    })
}
