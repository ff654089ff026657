//! `load`: the command line of the load generator. What it does is in the library.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program that prints its result"
)]

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
use load::{Expectation, Load, Target};

/// The largest file of bodies: they are kept in memory.
const MAX_BODIES_BYTES: u64 = 256 << 20;

/// Makes a bounded HTTP load on a server on this machine and measures the answers.
#[derive(Parser)]
#[command(name = "load")]
struct Arguments {
    #[command(subcommand)]
    shape: Shape,
}

#[derive(Subcommand)]
enum Shape {
    /// Each connection sends its next request when the last one is answered.
    Closed(LoadArguments),
    /// Requests are due at a fixed rate, and latency counts from when they are due.
    Open {
        /// Requests per second.
        #[arg(long)]
        rate: u32,
        #[command(flatten)]
        load: LoadArguments,
    },
}

#[derive(Args)]
struct LoadArguments {
    /// The endpoint, as http://ADDRESS:PORT/PATH with a loopback address.
    url: String,
    /// How many connections there are.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How long to make the load before measuring, in seconds.
    #[arg(long, default_value_t = 1.0)]
    warm_up_seconds: f64,
    /// How many requests to send at most; without it, as many as there is time for.
    #[arg(long)]
    requests: Option<usize>,
    /// How long a request may take, in seconds.
    #[arg(long, default_value_t = 10.0)]
    request_seconds: f64,
    /// A file with a body in each line, which are sent in turn with POST.
    #[arg(long)]
    bodies: Option<PathBuf>,
    /// A file that is the body of each request, which is sent with POST.
    #[arg(long, conflicts_with = "bodies")]
    body: Option<PathBuf>,
    /// Make the requests calls of gRPC: the path is that of a method, the body its message.
    #[arg(long)]
    grpc: bool,
    /// A header of each request, as NAME:VALUE. Can be given again for more.
    #[arg(long, value_parser = parse_header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// The status of a success.
    #[arg(long, default_value = "200")]
    status: StatusCode,
    /// A status that is wanted as well, and counted by itself. Can be given again for more.
    #[arg(long)]
    also_status: Vec<StatusCode>,
    /// What the body of a success contains.
    #[arg(long)]
    contains: Option<String>,
    /// Where to write the result as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where to write a line about each request: when it was sent and answered in nanoseconds of
    /// CLOCK_MONOTONIC, how it ended, and the version that answered, from X-Model-Version.
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
    // One thread: this program must leave the other cores to the server it measures.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start")?;
    let (rate, arguments) = match shape {
        Shape::Closed(arguments) => (None, arguments),
        Shape::Open { rate, load } => (Some(rate), load),
    };
    let load = arguments.load()?;
    let report = match rate {
        None => runtime.block_on(load::closed_loop(&load)),
        Some(rate) => runtime.block_on(load::open_loop(&load, rate)),
    };
    let report = report.context("failed to make a load")?;
    print!("{report}");
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(path, json + "\n")
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
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
            also: self.also_status.clone(),
        });
        if self.grpc {
            target = target.by_grpc()?;
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
        .with_context(|| format!("failed to use {seconds} s as a time"))
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':').context("there is no `:`")?;
    Ok((name.trim().parse()?, value.trim().parse()?))
}

fn read(path: &Path) -> Result<Bytes> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large.
    File::open(path)?.take(MAX_BODIES_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MAX_BODIES_BYTES, "it is over {MAX_BODIES_BYTES} bytes");
    Ok(bytes.into())
}

/// The lines of a file that have something in them.
fn read_bodies(path: &Path) -> Result<Vec<Bytes>> {
    let bytes = read(path)?;
    let text = str::from_utf8(&bytes).context("it is not UTF-8")?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let bodies: Vec<Bytes> = lines.map(|line| Bytes::copy_from_slice(line.as_bytes())).collect();
    ensure!(!bodies.is_empty(), "there is no body in it");
    Ok(bodies)
}
