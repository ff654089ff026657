//! The folders that `guesthouse new` writes: each is built by its language's tools, passes its own
//! tests, is packed, verified and served, and gives its golden outputs over HTTP.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bench::server::{KEY, START_LIMIT, Server, Setup};
use crate::python::Python;
use crate::run;
use crate::toolchain::TARGET;
use crate::workspace::Workspace;

/// How a folder is built.
#[derive(Clone, Copy)]
enum Tools {
    Cargo,
    Python,
    Node,
}

/// The templates. What of them is compiled is small: none contains tract.
const TEMPLATES: [(&str, Tools); 5] = [
    ("text", Tools::Cargo),
    ("image", Tools::Cargo),
    ("tabular", Tools::Cargo),
    ("python", Tools::Python),
    ("javascript", Tools::Node),
];

/// How far numbers may be from the golden ones, which have seven digits.
const TOLERANCE: f64 = 1e-5;

pub(super) fn check(workspace: &Workspace, host: &Path) -> Result<()> {
    let folder = workspace.output().join("templates");
    let repository = folder.join("repository");
    let _ = fs::remove_dir_all(&repository);
    fs::create_dir_all(&repository).context("cannot make the repository")?;
    for (template, tools) in TEMPLATES {
        make(workspace, host, &folder, template, tools)?;
    }
    let state = folder.join("state");
    super::forget_deployed(&state).context("cannot remove the deployments of the last run")?;
    let config = folder.join("config.toml");
    fs::write(&config, "default_model = \"a-text\"\n").context("cannot write a configuration")?;
    let server = Server::start(
        workspace,
        &Setup {
            config,
            repository,
            state,
            starter: Vec::new(),
            program: host.to_owned(),
            limit: START_LIMIT,
            environment: Vec::new(),
        },
    )?;
    let outcome =
        TEMPLATES.iter().try_for_each(|(template, _)| ask(host, &server, &folder, template));
    let end = server.stop();
    outcome.and(end)
}

/// Write, test, build, pack and verify a folder.
fn make(
    workspace: &Workspace,
    host: &Path,
    folder: &Path,
    template: &str,
    tools: Tools,
) -> Result<()> {
    let (name, path) = (format!("a-{template}"), folder.join(template));
    let _ = fs::remove_dir_all(&path);
    let mut new = Command::new(host);
    run::shown(new.args(["new", &name, "--template", template, "--output"]).arg(&path))?;
    let component = match tools {
        Tools::Cargo => by_cargo(&path, &folder.join("target"))?,
        Tools::Python => by_python(workspace, &path)?,
        Tools::Node => by_node(&path)?,
    };
    let artifact = folder.join("repository").join(format!("{name}-1.0.0.wasm"));
    let mut pack = Command::new(host);
    pack.arg("pack").arg("--manifest").arg(path.join("manifest.toml"));
    run::shown(pack.arg("--component").arg(component).arg("--output").arg(&artifact))?;
    run::shown(Command::new(host).arg("verify").arg(&artifact))
}

fn by_cargo(path: &Path, target: &Path) -> Result<PathBuf> {
    let cargo = |arguments: &[&str]| {
        run::shown(run::cargo().args(arguments).env("CARGO_TARGET_DIR", target).current_dir(path))
    };
    cargo(&["test"])?;
    cargo(&["build", "--release", "--target", TARGET])?;
    Ok(target.join(TARGET).join("release/guest.wasm"))
}

fn by_python(workspace: &Workspace, path: &Path) -> Result<PathBuf> {
    let wanted = fs::read_to_string(path.join("requirements.txt"))?;
    let python = Python::install(workspace, "template", &wanted.lines().collect::<Vec<_>>())?;
    run::shown(python.run("python").args(["-m", "unittest"]).current_dir(path))?;
    let mut folders = vec![python.program("")];
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut build = Command::new("sh");
    run::shown(
        build.arg("build.sh").env("PATH", std::env::join_paths(folders)?).current_dir(path),
    )?;
    Ok(path.join("guest.wasm"))
}

fn by_node(path: &Path) -> Result<PathBuf> {
    for arguments in [&["install", "--no-audit", "--no-fund"][..], &["test"], &["run", "build"]] {
        run::shown(Command::new("npm").args(arguments).current_dir(path))?;
    }
    Ok(path.join("guest.wasm"))
}

/// Predict for the golden inputs at the server and compare.
fn ask(host: &Path, server: &Server, folder: &Path, template: &str) -> Result<()> {
    let golden = fs::read_to_string(folder.join(template).join("golden.jsonl"))?;
    let golden: Vec<Value> = golden.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let rows: Vec<_> = golden.iter().map(|example| example["inputs"].to_string()).collect();
    let (url, name) = (server.url(""), format!("a-{template}"));
    let mut predict = Command::new(host);
    predict.env("GUESTHOUSE_KEY", KEY).args(["predict", "--model", &name, "--version", "^1"]);
    let printed = run::output(predict.args(["--server", &url, "--json", &rows.join("\n")]))?;
    let answers: Vec<Value> =
        printed.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(answers.len() == golden.len() && !golden.is_empty(), "{template}: {printed}");
    for (example, answer) in golden.iter().zip(&answers) {
        for (output, wanted) in example["outputs"].as_object().into_iter().flatten() {
            let is = &answer[output];
            let near = wanted.as_f64().zip(is.as_f64()).is_some_and(|(wanted, is)| {
                (wanted - is).abs() <= TOLERANCE * wanted.abs().max(1.0)
            });
            ensure!(near || wanted == is, "{template}: `{output}` is {is}, not {wanted}");
        }
    }
    println!("{name}: {} predictions are the golden ones", answers.len());
    Ok(())
}
