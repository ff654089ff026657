//! The command line of the load generator.

#![allow(clippy::print_stderr, reason = "a command-line program that reports its error")]

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use load::{Arrivals, Expectation, Load, Target};

/// The limit of a file of bodies, which is kept in memory.
const MAX_BODIES_BYTES: u64 = 256 << 20;

/// Generates a bounded load on a server on this machine and measures the responses.
#[derive(Parser)]
#[command(name = "load")]
struct Arguments {
    #[command(subcommand)]
    shape: Shape,
}

#[derive(Subcommand)]
enum Shape {
    /// Sends the next request on each connection when the previous one has been answered.
    Closed(LoadArguments),
    /// Sends requests at a rate; latency counts from the scheduled time.
    Open {
        /// Requests per second.
        #[arg(long)]
        rate: u32,
        /// Send at random intervals, as independent callers do, with this seed.
        #[arg(long, value_name = "SEED")]
        poisson: Option<u64>,
        #[command(flatten)]
        load: LoadArguments,
    },
}

#[derive(Args)]
struct LoadArguments {
    /// The endpoint, as http://ADDRESS:PORT/PATH with a loopback address.
    url: String,
    /// The number of connections.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// The duration of the measurement in seconds.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// The duration of the warm-up before the measurement in seconds.
    #[arg(long, default_value_t = 1.0)]
    warm_up_seconds: f64,
    /// The maximum number of requests, including those of the warm-up.
    #[arg(long)]
    requests: Option<usize>,
    /// The timeout of a request in seconds.
    #[arg(long, default_value_t = 10.0)]
    request_seconds: f64,
    /// A file with one body per line; they are sent in turn with POST.
    #[arg(long)]
    bodies: Option<PathBuf>,
    /// A file that is the body of every request, which is sent with POST.
    #[arg(long, conflicts_with = "bodies")]
    body: Option<PathBuf>,
    /// Send gRPC calls: the path names the method, and the body is its message.
    #[arg(long)]
    grpc: bool,
    /// A header of each request, as NAME:VALUE. Can be repeated.
    #[arg(long, value_parser = parse_header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// The status of a success.
    #[arg(long, default_value = "200")]
    status: StatusCode,
    /// A status that is counted separately, neither as a success nor as an error. Can be repeated.
    #[arg(long)]
    tolerated_status: Vec<StatusCode>,
    /// Text that the body of a success contains.
    #[arg(long)]
    contains: Option<String>,
    /// The file for the report, which is JSON.
    #[arg(long)]
    report: PathBuf,
    /// The file for the trace: a line for each request with the times of sending and of the
    /// response in nanoseconds of CLOCK_MONOTONIC, the outcome, and the X-Model-Version of the
    /// response.
    #[arg(long)]
    trace: Option<PathBuf>,
}

fn main() -> ExitCode {
    match perform(Arguments::parse().shape) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(shape: Shape) -> Result<()> {
    // A single thread leaves the other cores to the server under measurement.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start")?;
    let (rate, arguments) = match shape {
        Shape::Closed(arguments) => (None, arguments),
        Shape::Open { rate, poisson, load } => {
            (Some((rate, poisson.map_or(Arrivals::Regular, Arrivals::Poisson))), load)
        }
    };
    let load = arguments.load()?;
    let report = match rate {
        None => runtime.block_on(load::closed_loop(&load)),
        Some((rate, arrivals)) => runtime.block_on(load::open_loop(&load, rate, arrivals)),
    };
    let report = report.context("failed to generate the load")?;
    let path = &arguments.report;
    fs::write(path, serde_json::to_string(&report)? + "\n")
        .with_context(|| format!("failed to write {}", path.display()))
}

impl LoadArguments {
    fn load(&self) -> Result<Load> {
        let bodies = match (&self.bodies, &self.body) {
            (Some(path), _) => {
                read_bodies(path).with_context(|| format!("failed to read {}", path.display()))?
            }
            (None, Some(path)) => {
                vec![read(path).with_context(|| format!("failed to read {}", path.display()))?]
            }
            (None, None) => Vec::new(),
        };
        let mut target = Target::new(&self.url, bodies)?.expecting(Expectation {
            status: self.status,
            contains: self.contains.clone(),
            tolerated: self.tolerated_status.clone(),
        });
        if self.grpc {
            target = target.into_grpc()?;
        }
        for (name, value) in &self.header {
            target = target.with_header(name.clone(), value.clone());
        }
        Ok(Load {
            target,
            connections: self.connections,
            warm_up: duration(self.warm_up_seconds)?,
            duration: duration(self.seconds)?,
            request_time: duration(self.request_seconds)?,
            requests: self.requests,
            trace: self.trace.clone(),
        })
    }
}

fn duration(seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .with_context(|| format!("{seconds} s is not a valid duration"))
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':').context("a header has the form NAME:VALUE")?;
    Ok((name.trim().parse()?, value.trim().parse()?))
}

fn read(path: &Path) -> Result<Bytes> {
    let mut bytes = Vec::new();
    // Reading one byte more than permitted detects a larger file.
    File::open(path)?.take(MAX_BODIES_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() as u64 <= MAX_BODIES_BYTES,
        "the file is larger than {MAX_BODIES_BYTES} bytes"
    );
    Ok(bytes.into())
}

/// The lines of a file that are not blank.
fn read_bodies(path: &Path) -> Result<Vec<Bytes>> {
    let bytes = read(path)?;
    let text = str::from_utf8(&bytes).context("the file is not UTF-8")?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let bodies: Vec<Bytes> = lines.map(|line| Bytes::copy_from_slice(line.as_bytes())).collect();
    ensure!(!bodies.is_empty(), "the file has no bodies");
    Ok(bodies)
}
