//! Published clients of the Open Inference Protocol, unmodified, against a server of the test
//! models. Each uses all of its functions, and all responses are exact.
//!
//! Clients with incompatible dependencies have separate environments. Their programs are the files
//! beside this one, which print what they check.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::bench::admin::KEY as ADMIN_KEY;
use crate::bench::server::{KEY, START_LIMIT, Server, Setup};
use crate::pack;
use crate::python::Python;
use crate::run;
use crate::workspace::Workspace;

/// Programs that share an environment.
struct Clients {
    environment: &'static str,
    packages: &'static [&'static str],
    programs: &'static [&'static str],
}

const CLIENTS: [Clients; 4] = [
    Clients {
        environment: "triton",
        packages: &["tritonclient[http,grpc]==2.73.0", "numpy==2.4.6", "ml_dtypes==0.5.4"],
        programs: &["triton_http", "triton_grpc"],
    },
    Clients {
        environment: "kserve",
        packages: &["kserve==0.21.0", "numpy==2.4.6"],
        programs: &["kserve_clients"],
    },
    Clients {
        environment: "open-inference",
        packages: &[
            "open-inference-openapi==2.0.0.1",
            "open-inference-grpc==2.0.0",
            "grpc-requests==0.1.21",
            "grpcio==1.85.1",
            "numpy==2.4.6",
        ],
        programs: &["generated", "reflection"],
    },
    Clients {
        environment: "mlserver",
        packages: &["mlserver==1.7.1", "numpy==2.4.6"],
        programs: &["mlserver_infer"],
    },
];

/// Runs all programs, whether others fail or not.
pub(super) fn check(workspace: &Workspace, host: &Path) -> Result<()> {
    let programs = workspace.client_programs();
    let mut failed = Vec::new();
    with_fixtures(workspace, host, |server| {
        let (rest, grpc) = (server.address().to_string(), server.grpc_address().to_string());
        for clients in &CLIENTS {
            let python = Python::install(workspace, clients.environment, clients.packages)?;
            for program in clients.programs {
                let mut ask = python.run("python");
                ask.arg(programs.join(program).with_extension("py")).args([&rest, &grpc]);
                ask.env("KEY", KEY).env("ADMIN_KEY", ADMIN_KEY).env("PYTHONDONTWRITEBYTECODE", "1");
                if let Err(error) = run::shown(&mut ask) {
                    eprintln!("{error:#}");
                    failed.push(*program);
                }
            }
        }
        Ok(())
    })?;
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Starts a server with the test models, runs `check` on it, and stops it.
pub(super) fn with_fixtures(
    workspace: &Workspace,
    host: &Path,
    ask: impl FnOnce(&Server) -> Result<()>,
) -> Result<()> {
    let server = serve(workspace, host)?;
    let outcome = ask(&server);
    let end = server.stop();
    outcome.and(end)
}

fn serve(workspace: &Workspace, host: &Path) -> Result<Server> {
    let state = workspace.output().join("clients");
    // The compiled code is found by the artifacts' digests; the artifacts may have been packed
    // again since.
    super::forget_deployed(&state).context("cannot remove the deployments of the last run")?;
    let setup = Setup {
        config: workspace.fixtures().join("fixtures.toml"),
        repository: pack::pack_fixtures(workspace, host)?,
        state,
        starter: Vec::new(),
        program: host.to_owned(),
        limit: START_LIMIT,
        environment: Vec::new(),
    };
    Server::start(workspace, &setup)
}
