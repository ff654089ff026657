//! The latency of each protocol by stage. One caller sends requests to the identity model, so that
//! nearly all of the time is overhead.
//!
//! The stages are means of the server's histograms; the rest of the server's time is reading,
//! decoding, validating and routing. The probe measures the guest call without a server, on an
//! instance that has served before.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Bench;
use crate::bench::Figure;
use crate::bench::load::{self, Latencies, Load};
use crate::bench::rig::BLOCK_WARM_UP_SECONDS;
use crate::bench::server::Server;
use crate::run;

/// The number of blocks of each protocol.
const ROUNDS: u32 = 5;

/// The elements of a request: a small one, and one of 16 KiB.
const SIZES: [usize; 2] = [16, 4096];

/// The model, its input and its output.
const MODEL: &str = "identity_fp32";
const INPUT: &str = "INPUT0";
const OUTPUT: &str = "OUTPUT0";

/// The stages of a request, as in the names of the histograms.
const STAGES: [&str; 4] = ["queue", "instantiate", "predict", "encode"];

/// A way to send the request.
struct Protocol {
    name: &'static str,
    path: String,
    body: Vec<u8>,
    headers: Vec<String>,
    grpc: bool,
}

pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let setup = bench.rig.setup("state-overhead", "", &[&bench.identity.artifact])?;
    let server = run::step("overhead: start", || bench.rig.warm_server(&setup))?;
    let mut figures = Vec::new();
    for size in SIZES {
        let measured =
            run::step(&format!("overhead: {size} numbers"), || sized(bench, &server, size))?;
        figures.extend(measured);
    }
    server.stop()?;
    // The server that used this folder has stopped.
    let probe =
        || bench.rig.probe("isolation", &bench.identity, &bench.rig.folder("state-overhead"));
    let report = run::step("overhead: probe", probe)?;
    let call = report.pointer("/reused/call_us/p50").and_then(serde_json::Value::as_f64);
    let call = call.context("the probe reports no call time")?;
    figures.push(Figure::new("overhead_in_process_call_us", call, "us", None));
    Ok(figures)
}

/// Measures all protocols in turn with requests of this size.
fn sized(bench: &Bench<'_>, server: &Server, size: usize) -> Result<Vec<Figure>> {
    let protocols = protocols(size);
    let mut totals: Vec<Total> = protocols.iter().map(|_| Total::default()).collect();
    for _ in 0..ROUNDS {
        for (protocol, total) in protocols.iter().zip(&mut totals) {
            total.add(bench, server, protocol)?;
        }
    }
    let figures = protocols.iter().zip(&totals);
    Ok(figures.flat_map(|(protocol, total)| total.figures(protocol.name, size)).collect())
}

/// The totals of a protocol.
#[derive(Default)]
struct Total {
    latencies: Latencies,
    stages: [Times; STAGES.len()],
    server: Times,
}

/// The sum and the count of a histogram.
#[derive(Default, Clone, Copy)]
struct Times {
    sum: f64,
    count: f64,
}

impl Times {
    fn mean_us(self) -> f64 {
        self.sum / self.count.max(1.0) * 1e6
    }
}

impl Total {
    fn add(&mut self, bench: &Bench<'_>, server: &Server, protocol: &Protocol) -> Result<()> {
        let before = scrape(server)?;
        let headers: Vec<&str> = protocol.headers.iter().map(String::as_str).collect();
        let address = if protocol.grpc { server.grpc_address() } else { server.address() };
        let load = Load {
            url: &format!("http://{address}{}", protocol.path),
            warm_up_seconds: BLOCK_WARM_UP_SECONDS,
            seconds: bench.rig.seconds / f64::from(ROUNDS),
            body: Some(&protocol.body),
            grpc: protocol.grpc,
            headers: &headers,
            ..Load::default()
        };
        let measured = load::run_without_errors(bench.rig.workspace, &load)?;
        self.latencies.add(&measured.latencies);
        let after = scrape(server)?;
        for (total, stage) in self.stages.iter_mut().zip(STAGES) {
            *total = times(&before, &after, stage, *total)?;
        }
        self.server = times(&before, &after, "request", self.server)?;
        Ok(())
    }

    fn figures(&self, protocol: &str, size: usize) -> Vec<Figure> {
        let figure = |what: &str, value| {
            Figure::new(&format!("overhead_{protocol}_{size}_{what}_us"), value, "us", None)
        };
        let stages = self.stages.map(Times::mean_us);
        let (caller, server) = (self.latencies.mean_us(), self.server.mean_us());
        let mut figures = vec![
            figure("caller", caller),
            figure("way", caller - server),
            figure("decode", server - stages.iter().sum::<f64>()),
        ];
        figures.extend(STAGES.iter().zip(stages).map(|(stage, mean)| figure(stage, mean)));
        figures
    }
}

fn scrape(server: &Server) -> Result<String> {
    let answer = server.client().get("/metrics")?;
    ensure!(answer.is_success(), "no metrics: {}", answer.status);
    Ok(answer.text)
}

/// Adds the increment of a histogram between two scrapes.
fn times(before: &str, after: &str, stage: &str, so_far: Times) -> Result<Times> {
    let added = |part: &str| -> Result<f64> {
        let name = format!("guesthouse_{stage}_duration_seconds_{part}");
        Ok(sum(after, &name)? - sum(before, &name).unwrap_or(0.0))
    };
    Ok(Times { sum: so_far.sum + added("sum")?, count: so_far.count + added("count")? })
}

/// The sum over all series of a metric.
fn sum(metrics: &str, name: &str) -> Result<f64> {
    let series = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = rest.starts_with('{').then(|| rest.rsplit(' ').next())??;
        value.parse::<f64>().ok()
    });
    let series: Vec<f64> = series.collect();
    ensure!(!series.is_empty(), "the metrics have no {name}");
    Ok(series.iter().sum())
}

/// The request with this number of elements in each protocol.
fn protocols(size: usize) -> Vec<Protocol> {
    let numbers: Vec<f32> = (0..size).map(|number| number as f32 / 8.0).collect();
    let raw: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let oip_json = json!({
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [1, size], "data": numbers}],
    });
    let oip_head = json!({
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [1, size],
                    "parameters": {"binary_data_size": raw.len()}}],
        "outputs": [{"name": OUTPUT, "parameters": {"binary_data": true}}],
    })
    .to_string();
    let mut oip_binary = oip_head.clone().into_bytes();
    oip_binary.extend_from_slice(&raw);
    let http = |name, path: &str, body, headers| Protocol {
        name,
        path: path.to_owned(),
        body,
        headers,
        grpc: false,
    };
    let infer = format!("/v2/models/{MODEL}/infer");
    vec![
        http(
            "rest_json",
            &format!("/models/{MODEL}/predict"),
            json!({INPUT: numbers}).to_string().into_bytes(),
            Vec::new(),
        ),
        http("oip_json", &infer, oip_json.to_string().into_bytes(), Vec::new()),
        http(
            "oip_binary",
            &infer,
            oip_binary,
            vec![
                "content-type: application/octet-stream".to_owned(),
                format!("inference-header-content-length: {}", oip_head.len()),
            ],
        ),
        Protocol {
            name: "grpc",
            path: "/inference.GRPCInferenceService/ModelInfer".to_owned(),
            body: model_infer(&raw, size),
            headers: Vec::new(),
            grpc: true,
        },
        Protocol {
            name: "typed_grpc",
            path: "/guesthouse.identity_fp32.v1.IdentityFp32/Predict".to_owned(),
            // The packed floats are field 1, the first of the signature.
            body: field(1, &raw),
            headers: Vec::new(),
            grpc: true,
        },
    ]
}

/// A `ModelInferRequest` with raw contents.
fn model_infer(raw: &[u8], size: usize) -> Vec<u8> {
    let shape = [varint(1), varint(size as u64)].concat();
    let tensor = [field(1, INPUT.as_bytes()), field(2, b"FP32"), field(3, &shape)].concat();
    [field(1, MODEL.as_bytes()), field(5, &tensor), field(7, raw)].concat()
}

/// A length-delimited protobuf field.
pub(in crate::bench) fn field(number: u64, content: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

/// A number as protobuf encodes it.
pub(in crate::bench) fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_increments_are_computed() {
        let before = "guesthouse_queue_duration_seconds_sum{model=\"a\"} 1.5\n\
                      guesthouse_queue_duration_seconds_count{model=\"a\"} 10\n";
        let after = "guesthouse_queue_duration_seconds_sum{model=\"a\"} 2.0\n\
                     guesthouse_queue_duration_seconds_count{model=\"a\"} 20\n";
        let times = times(before, after, "queue", Times::default()).unwrap();
        assert!((times.mean_us() - 50_000.0).abs() < 1e-6);
        assert!(sum(after, "guesthouse_encode_duration_seconds_sum").is_err());
    }

    #[test]
    fn fields_are_encoded_as_protobuf() {
        assert_eq!(field(1, b"ab"), [0x0a, 2, b'a', b'b']);
        assert_eq!(varint(300), [0xac, 2]);
    }
}
