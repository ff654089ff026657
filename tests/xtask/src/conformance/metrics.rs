//! The metrics as Prometheus sees them: promtool accepts their names, Prometheus scrapes the
//! server, every query of the dashboard has a result, and every alert is valid.
//!
//! Prometheus is installed on the machine, or unpacked from Debian's package into the target
//! folder.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use ureq::Agent;

use crate::run;
use crate::workspace::Workspace;

/// The time limit for each awaited log line, which includes compiling.
const START_LIMIT: Duration = Duration::from_secs(300);

/// The time limit for a query without a result: twice the window of its rates.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The values of the dashboard's variables.
const VARIABLES: [(&str, &str); 4] =
    [("$__rate_interval", "10s"), ("$model", ".*"), ("$version", ".*"), ("$job", ".*")];

/// Parts of queries that may have no result because nothing failed.
const MAY_BE_EMPTY: [&str; 3] =
    ["guesthouse_faults_total", "guesthouse_shadow_differences_total", "5.."];

/// Runs all checks against a server of this program.
pub(crate) fn check(workspace: &Workspace, host: &Path) -> Result<()> {
    let tools = Tools::find(workspace)?;
    let packaging = Path::new("host/packaging");
    run::output(
        tools.promtool().arg("check").arg("rules").arg(packaging.join("prometheus/rules.yml")),
    )?;
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let server = Server::start(workspace, host, folder.path())?;
    let agent = agent();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| load(&agent, &server, &over));
        let outcome = (|| {
            server.change(workspace, &agent)?;
            let page = page(&agent, &server.url("/metrics"))?;
            check_page(&tools, &page)?;
            let prometheus = Prometheus::start(&tools, folder.path(), server.address)?;
            check_dashboard(&agent, &prometheus, &packaging.join("grafana/guesthouse.json"))
        })();
        over.store(true, Ordering::Relaxed);
        load.join().expect("the load does not panic").and(outcome)
    })
}

/// The programs of Prometheus.
struct Tools {
    folder: Option<PathBuf>,
}

impl Tools {
    fn find(workspace: &Workspace) -> Result<Self> {
        if run::output(Command::new("promtool").arg("--version")).is_ok() {
            return Ok(Self { folder: None });
        }
        let place = workspace.tools().join("prometheus");
        let folder = place.join("usr/bin");
        if !folder.join("promtool").is_file() {
            run::step("conformance: downloading Prometheus from Debian", || {
                fs::create_dir_all(&place).context("cannot create a folder for tools")?;
                let mut download = Command::new("apt-get");
                run::output(download.current_dir(&place).args(["download", "prometheus"]))?;
                let packages = fs::read_dir(&place).context("cannot list the download")?;
                let mut packages = packages.filter_map(|entry| Some(entry.ok()?.path()));
                let package = packages
                    .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
                let package = package.context("apt-get downloaded no package")?;
                run::output(Command::new("dpkg-deb").arg("-x").arg(package).arg(&place))
            })?;
        }
        Ok(Self { folder: Some(folder) })
    }

    fn command(&self, program: &str) -> Command {
        Command::new(
            self.folder.as_ref().map_or(PathBuf::from(program), |folder| folder.join(program)),
        )
    }

    fn promtool(&self) -> Command {
        self.command("promtool")
    }
}

/// A process that is killed when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both have no effect if it has exited.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server whose metrics are checked.
struct Server {
    _process: Running,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Server {
    fn start(workspace: &Workspace, host: &Path, folder: &Path) -> Result<Self> {
        let demo = fs::read_to_string(workspace.models().join("demo.toml"));
        let demo = demo.context("cannot read the demonstration's configuration")?;
        let config = folder.join("guesthouse.toml");
        // Nothing listens there: failed exports are a metric too.
        let tracing = "\n[tracing]\nendpoint = \"http://127.0.0.1:9\"\nsample = 1.0\n";
        fs::write(&config, demo + tracing).context("cannot write a configuration")?;
        let mut command = Command::new(host);
        command.args(["--log-format", "json", "serve", "--demo"]);
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        command.arg("--config").arg(config).arg("--repository").arg(workspace.repository());
        command.arg("--state").arg(workspace.output().join("conformance-state"));
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut process = Running(command.spawn().context("cannot start the server")?);
        let log = process.0.stderr.take().context("the server has no log")?;
        let mut lines = BufReader::new(log).lines();
        let started = Instant::now();
        let mut wait_for = |message: &str| -> Result<Value> {
            while started.elapsed() < START_LIMIT {
                let line = lines.next().context("the server has exited")??;
                let line: Value = serde_json::from_str(&line).unwrap_or_default();
                if line["message"] == message {
                    return Ok(line);
                }
            }
            bail!("the server has not logged `{message}`")
        };
        let address = |line: Value| {
            let address = line["address"].as_str().and_then(|address| address.parse().ok());
            address.context("the log has no address")
        };
        let admin = address(wait_for("admin listening")?)?;
        let public = address(wait_for("listening")?)?;
        wait_for("repository folder read")?;
        // The log is read until the end, so that no line is dropped.
        thread::spawn(move || lines.count());
        Ok(Self { _process: process, address: public, admin })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Deploys a version and makes it the shadow.
    fn change(&self, workspace: &Workspace, agent: &Agent) -> Result<()> {
        let post = |path: &str, body: &[u8]| -> Result<()> {
            let request = agent.post(format!("http://{}/admin/v1/{path}", self.admin));
            let response = request.header("X-API-Key", "local-demo-admin-key").send(body)?;
            ensure!(response.status().is_success(), "{path}: {}", response.status());
            Ok(())
        };
        let artifact = workspace.repository().join("toxicity-2.0.0.wasm");
        post("deploy", &fs::read(artifact).context("cannot read an artifact")?)?;
        post("models/toxicity/shadow", br#"{"version": "2.0.0"}"#)
    }
}

fn agent() -> Agent {
    let configuration = Agent::config_builder().http_status_as_error(false).proxy(None);
    configuration.timeout_global(Some(Duration::from_secs(60))).build().into()
}

/// Sends requests of each kind continuously.
fn load(agent: &Agent, server: &Server, over: &AtomicBool) -> Result<()> {
    let good = json!({"text": "You are nice"}).to_string();
    while !over.load(Ordering::Relaxed) {
        for (path, key, body) in [
            ("/predict", "local-demo-key", good.as_str()),
            ("/v1/predict", "local-demo-key", &good),
            ("/v2/predict", "local-demo-key", &good),
            ("/v1/predict", "local-demo-key", "{\"text\": \"\"}"),
            ("/v1/predict", "wrong", &good),
        ] {
            let request = agent.post(server.url(path)).header("X-API-Key", key);
            request.header("Content-Type", "application/json").send(body)?;
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn page(agent: &Agent, url: &str) -> Result<String> {
    let mut response = agent.get(url).call()?;
    ensure!(response.status().is_success(), "{url}: {}", response.status());
    Ok(response.body_mut().read_to_string()?)
}

/// Checks names, types and units with promtool.
fn check_page(tools: &Tools, page: &str) -> Result<()> {
    let mut check = tools.promtool();
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut check = check.stderr(Stdio::piped()).spawn().context("cannot start promtool")?;
    check.stdin.take().context("promtool has no standard input")?.write_all(page.as_bytes())?;
    let output = check.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
    Ok(())
}

/// A Prometheus that scrapes the server once a second.
struct Prometheus {
    _process: Running,
    address: SocketAddr,
}

impl Prometheus {
    fn start(tools: &Tools, folder: &Path, server: SocketAddr) -> Result<Self> {
        // The port is free now and is not taken in the next moment.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = folder.join("prometheus.yml");
        let rules = fs::canonicalize("host/packaging/prometheus/rules.yml")?;
        let text = format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files: [\"{}\"]\n\
             scrape_configs:\n  - job_name: guesthouse\n    static_configs:\n      - targets: [\"{server}\"]\n",
            rules.display()
        );
        fs::write(&config, text).context("cannot write a configuration")?;
        let mut command = tools.command("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Running(command.spawn().context("cannot start Prometheus")?);
        Ok(Self { _process: process, address })
    }

    /// The current values of a query; empty if there is no result.
    fn query(&self, agent: &Agent, query: &str) -> Result<Vec<f64>> {
        let url = format!("http://{}/api/v1/query", self.address);
        // It may not listen yet.
        let Ok(mut response) = agent.post(url).send_form([("query", query)]) else {
            return Ok(Vec::new());
        };
        let text = response.body_mut().read_to_string()?;
        let Ok(answer) = serde_json::from_str::<Value>(&text) else { return Ok(Vec::new()) };
        ensure!(answer["status"] == "success", "{query}: {text}");
        let series = answer["data"]["result"].as_array().into_iter().flatten();
        let values = series.filter_map(|series| series["value"][1].as_str()?.parse::<f64>().ok());
        Ok(values.filter(|value| !value.is_nan()).collect())
    }
}

fn check_dashboard(agent: &Agent, prometheus: &Prometheus, dashboard: &Path) -> Result<()> {
    let text = fs::read_to_string(dashboard).context("cannot read the dashboard")?;
    let dashboard: Value = serde_json::from_str(&text).context("the dashboard is not JSON")?;
    let documented = documented(&fs::read_to_string("host/docs/src/reference/metrics.md")?);
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut queries = 0;
    for query in targets.filter_map(|target| target["expr"].as_str()) {
        queries += 1;
        for name in names(query) {
            ensure!(documented.contains(&name), "there is no {name}: {query}");
        }
        let may_be_empty = MAY_BE_EMPTY.iter().any(|word| query.contains(word));
        let filled = VARIABLES
            .iter()
            .fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
        let begun = Instant::now();
        while prometheus.query(agent, &filled)?.is_empty() && !may_be_empty {
            ensure!(begun.elapsed() < ANSWER_LIMIT, "no result for {filled}");
            thread::sleep(Duration::from_millis(200));
        }
    }
    ensure!(queries > 30, "the dashboard has {queries} queries");
    let up = prometheus.query(agent, "min_over_time(up{job=\"guesthouse\"}[1m])")?;
    ensure!(up == [1.0], "a scrape failed: {up:?}");
    println!("metrics: {queries} queries of the dashboard have results");
    Ok(())
}

/// The names of metrics in the table of the book's page.
fn documented(page: &str) -> BTreeSet<String> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let names = rows.filter(|name| name.starts_with("guesthouse_") || name.starts_with("process_"));
    names.map(str::to_owned).collect()
}

/// The metric families that a query reads.
fn names(query: &str) -> BTreeSet<String> {
    let words = query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let names =
        words.filter(|word| word.starts_with("guesthouse_") || word.starts_with("process_"));
    let families = names.map(|name| {
        let parts = ["_bucket", "_sum", "_count"];
        parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name).to_owned()
    });
    families.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_are_extracted_from_queries() {
        let query = "sum(rate(guesthouse_a_seconds_bucket{b=\"c\"}[1m])) / process_d_total";
        let wanted = ["guesthouse_a_seconds", "process_d_total"].map(str::to_owned);
        assert_eq!(names(query), BTreeSet::from(wanted));
    }
}
