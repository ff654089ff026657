//! The servers under comparison: how each is started and asked.
//!
//! All take the same tensors in the form that is natural to them: this server those of the Open
//! Inference Protocol, the others the bytes alone.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::setup::Bench;
use crate::bench::client::Client;
use crate::bench::process::Process;
use crate::bench::protocols::overhead::{field, varint};
use crate::bench::server::{KEY, Server};
use crate::python::Python;

/// The time limit of a start.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The time limit of a stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The interval of asking a starting server.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The largest difference of a server's answer to that of onnxruntime.
const TOLERANCE: f64 = 1e-3;

/// The model `toxicity` is served as JSON, every other one as binary tensors.
pub(super) const JSON_MODEL: &str = "toxicity";

/// A running server.
pub(super) struct Peer {
    /// Its name in figures of the process.
    pub(super) name: &'static str,
    /// How it is asked; the first one has the same name.
    pub(super) requests: Vec<Requests>,
    /// The time from the start of the process to the first correct answer.
    pub(super) start: Duration,
    running: Running,
}

enum Running {
    Guesthouse(Box<Server>),
    Other(Process),
}

/// One way of asking a server.
pub(super) struct Requests {
    /// Its name in figures.
    pub(super) name: &'static str,
    pub(super) url: String,
    pub(super) body: Vec<u8>,
    pub(super) headers: Vec<String>,
    pub(super) grpc: bool,
}

/// The request of a case.
pub(super) struct CaseRequest {
    pub(super) model: String,
    inputs: Vec<Value>,
    contents: Vec<Vec<u8>>,
    /// The elements of the first output.
    expected: Vec<u8>,
}

impl CaseRequest {
    pub(super) fn read(models: &Path, case: &str) -> Result<Self> {
        let text =
            fs::read_to_string(models.join("cases.json")).context("cannot read the cases")?;
        let cases: Value = serde_json::from_str(&text).context("the cases are not JSON")?;
        let mut cases = cases.as_array().into_iter().flatten();
        let case = cases.find(|known| known["case"] == case).context("no such case")?;
        let inputs = case["inputs"].as_array().context("no inputs")?.clone();
        let read = |tensor: &Value| {
            let file = models.join(tensor["file"].as_str().unwrap_or_default());
            fs::read(&file).with_context(|| format!("cannot read {}", file.display()))
        };
        let contents = inputs.iter().map(read).collect::<Result<_>>()?;
        let expected = read(&case["outputs"][0])?;
        let model = case["model"].as_str().context("no model")?.to_owned();
        Ok(Self { model, inputs, contents, expected })
    }

    /// Checks an answer: the elements of the output, which this server puts after its JSON, or the
    /// score in JSON.
    fn check(&self, body: &[u8]) -> Result<()> {
        let wanted = numbers(&self.expected);
        let values = if self.model == JSON_MODEL {
            let body: Value = serde_json::from_slice(body).context("the answer is not JSON")?;
            vec![body["score"].as_f64().context("the answer has no score")?]
        } else {
            let start = body.len().checked_sub(self.expected.len());
            numbers(&body[start.context("the answer is too short")?..])
        };
        let mut pairs = values.iter().zip(&wanted);
        let is_near = pairs.all(|(value, wanted)| (value - wanted).abs() < TOLERANCE);
        ensure!(is_near && values.len() == wanted.len(), "the server gives another answer");
        Ok(())
    }

    /// The bytes of the inputs one after the other, or the JSON of a text.
    fn plain(&self) -> Vec<u8> {
        if self.model == JSON_MODEL { self.text_as_json() } else { self.contents.concat() }
    }

    fn text_as_json(&self) -> Vec<u8> {
        // A byte string follows its length.
        let text = self.contents.first().and_then(|text| text.get(4..)).unwrap_or_default();
        json!({ "text": String::from_utf8_lossy(text) }).to_string().into_bytes()
    }

    /// The body of an Open Inference request with binary tensors, and the length of its JSON.
    fn open_inference(&self) -> (Vec<u8>, usize) {
        let inputs = self.inputs.iter().zip(&self.contents).map(|(input, bytes)| {
            json!({"name": input["name"], "datatype": datatype(input), "shape": input["shape"],
                   "parameters": {"binary_data_size": bytes.len()}})
        });
        let head = json!({
            "inputs": inputs.collect::<Vec<_>>(),
            "parameters": {"binary_data_output": true},
        });
        let head = head.to_string().into_bytes();
        let length = head.len();
        ([head, self.contents.concat()].concat(), length)
    }

    /// A `ModelInferRequest` with raw contents.
    fn model_infer(&self) -> Vec<u8> {
        let mut message = field(1, self.model.as_bytes());
        for input in &self.inputs {
            let shape = input["shape"].as_array().into_iter().flatten();
            let shape: Vec<u8> = shape.filter_map(Value::as_u64).flat_map(varint).collect();
            let name = input["name"].as_str().unwrap_or_default();
            let parts =
                [field(1, name.as_bytes()), field(2, datatype(input).as_bytes()), field(3, &shape)];
            message.extend(field(5, &parts.concat()));
        }
        message.extend(self.contents.iter().flat_map(|bytes| field(7, bytes)));
        message
    }
}

fn numbers(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
}

fn datatype(input: &Value) -> String {
    input["datatype"].as_str().unwrap_or_default().to_uppercase()
}

impl Peer {
    /// This server, with the model's artifact compiled before.
    pub(super) fn guesthouse(bench: &Bench<'_>, case: &CaseRequest) -> Result<Self> {
        let artifact = bench.artifacts.join(format!("{}-1.0.0.wasm", case.model));
        // One tensor model has more weights than the default memory of an instance holds.
        let config = "[limits]\ninstance_memory_mib = 1024\n";
        let setup = bench.rig.setup(&format!("state-{}", case.model), config, &[&artifact])?;
        bench.rig.warm_server(&setup)?.stop()?;
        let began = Instant::now();
        let server = Server::start(bench.rig.workspace, &setup)?;
        let requests = if case.model == JSON_MODEL {
            let url = server.url(&format!("/models/{JSON_MODEL}/predict"));
            vec![http("guesthouse", url, case.plain(), Vec::new())]
        } else {
            let (body, length) = case.open_inference();
            let headers = vec![
                "content-type: application/octet-stream".to_owned(),
                format!("inference-header-content-length: {length}"),
            ];
            let url = server.url(&format!("/v2/models/{}/infer", case.model));
            let address = server.grpc_address();
            let grpc = Requests {
                name: "guesthouse_grpc",
                url: format!("http://{address}/inference.GRPCInferenceService/ModelInfer"),
                body: case.model_infer(),
                headers: Vec::new(),
                grpc: true,
            };
            vec![http("guesthouse", url, body, headers), grpc]
        };
        wait_for_answer(&requests[0], case, began)?;
        let start = began.elapsed();
        let running = Running::Guesthouse(Box::new(server));
        Ok(Self { name: "guesthouse", requests, start, running })
    }

    /// axum and tract, written by hand.
    pub(super) fn axum(bench: &Bench<'_>, case: &str, request: &CaseRequest) -> Result<Self> {
        let mut command = bench.rig.owned(bench.rig.workspace.native_binary());
        if request.model == JSON_MODEL {
            command.arg("toxicity").arg("--assets").arg(bench.toxicity());
        } else {
            command.arg("serve").arg("--models").arg(&bench.models).args(["--case", case]);
        }
        let began = Instant::now();
        let mut process =
            Process::start("axum server", command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let (_requests, output) = process.pipes()?;
        let mut address = String::new();
        BufReader::new(output).read_line(&mut address).context("the server prints no address")?;
        let url = format!("http://{}/predict", address.trim());
        Self::other("axum", process, url, request, began)
    }

    /// FastAPI and onnxruntime.
    pub(super) fn fastapi(
        bench: &Bench<'_>,
        python: &Python,
        (case, request): (&str, &CaseRequest),
        workers: usize,
    ) -> Result<Self> {
        let port = free_port()?;
        let mut command = bench.rig.owned(python.program("uvicorn"));
        command.arg("fastapi_server:app").args(["--log-level", "warning", "--no-access-log"]);
        command.args(["--port", &port.to_string(), "--workers", &workers.to_string()]);
        command.current_dir(bench.rig.workspace.performance());
        command.env("MODELS", &bench.models).env("CASE", case).env("ASSETS", bench.toxicity());
        let began = Instant::now();
        let process = Process::start("FastAPI server", &mut command)?;
        let name = if workers == 1 { "fastapi_1" } else { "fastapi_2" };
        Self::other(name, process, format!("http://127.0.0.1:{port}/predict"), request, began)
    }

    /// mosec and onnxruntime, with two workers.
    pub(super) fn mosec(
        bench: &Bench<'_>,
        python: &Python,
        (case, request): (&str, &CaseRequest),
    ) -> Result<Self> {
        let port = free_port()?;
        let mut command = bench.rig.owned(python.program("python"));
        command.arg(bench.rig.workspace.performance().join("mosec_server.py"));
        command.args(["--port", &port.to_string(), "--log-level", "warning"]);
        command.env("MODELS", &bench.models).env("CASE", case).env("WORKERS", "2");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let began = Instant::now();
        let process = Process::start("mosec server", &mut command)?;
        let url = format!("http://127.0.0.1:{port}/inference");
        Self::other("mosec_2", process, url, request, began)
    }

    fn other(
        name: &'static str,
        process: Process,
        url: String,
        request: &CaseRequest,
        began: Instant,
    ) -> Result<Self> {
        let content = if request.model == JSON_MODEL { "json" } else { "octet-stream" };
        let headers = vec![format!("content-type: application/{content}")];
        let requests = vec![http(name, url, request.plain(), headers)];
        wait_for_answer(&requests[0], request, began)?;
        let start = began.elapsed();
        Ok(Self { name, requests, start, running: Running::Other(process) })
    }

    /// The memory of the server and its children in MiB, with shared pages in equal parts.
    pub(super) fn memory_mib(&self) -> Result<f64> {
        let id = match &self.running {
            Running::Guesthouse(server) => server.process.id(),
            Running::Other(process) => process.id(),
        };
        tree_memory_kib(id).map(|kib| kib as f64 / 1024.0)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Killed at once, a server would leave its workers. A failure leaves the kill.
        if let Running::Other(process) = &mut self.running {
            let _ = process.signal(Signal::TERM).and_then(|()| process.wait(STOP_LIMIT));
        }
    }
}

fn http(name: &'static str, url: String, body: Vec<u8>, headers: Vec<String>) -> Requests {
    Requests { name, url, body, headers, grpc: false }
}

/// Asks until there is a successful answer, and checks it.
fn wait_for_answer(requests: &Requests, case: &CaseRequest, began: Instant) -> Result<()> {
    let rest = requests.url.strip_prefix("http://").context("not a URL")?;
    let (address, path) = rest.split_at(rest.find('/').context("no path")?);
    let client = Client::new(address.parse().context("no address")?, KEY);
    let headers = requests.headers.iter().filter_map(|header| header.split_once(": "));
    let headers: Vec<_> = headers.collect();
    loop {
        match client.post_for_bytes(path, &headers, requests.body.clone()) {
            Ok((200, body)) => return case.check(&body),
            answer if began.elapsed() > START_LIMIT => {
                let (status, _body) = answer.context("the server does not answer")?;
                bail!("the server answers with {status}");
            }
            _ => thread::sleep(POLL_INTERVAL),
        }
    }
}

/// A port that was free a moment ago, for servers that do not say which they chose.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr().context("no free port")?.port())
}

/// The proportional memory of a process and its descendants.
fn tree_memory_kib(id: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup"));
    let rollup = rollup.context("the server has exited")?;
    let own = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let own = own.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let mut sum = own.context("/proc has no proportional memory")?;
    let tasks = fs::read_dir(format!("/proc/{id}/task")).context("the server has exited")?;
    for task in tasks {
        let path = task.context("the server has exited")?.path().join("children");
        // A thread may end in between.
        let children = fs::read_to_string(path).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            sum += tree_memory_kib(child).unwrap_or(0);
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn memory_of_a_process_and_its_children_is_summed() {
        let mut command = Command::new("sh");
        let process =
            Process::start("shell", command.args(["-c", "sleep 60 & sleep 60; wait"])).unwrap();
        let deadline = Instant::now() + START_LIMIT;
        let children = format!("/proc/{0}/task/{0}/children", process.id());
        while fs::read_to_string(&children).unwrap().split_whitespace().count() < 2 {
            assert!(Instant::now() < deadline, "the shell starts no children");
            thread::yield_now();
        }
        assert!(tree_memory_kib(process.id()).unwrap() > 0);
        // The children outlive a killed shell otherwise.
        for child in fs::read_to_string(&children).unwrap().split_whitespace() {
            Command::new("kill").arg(child).status().unwrap();
        }
    }
}
