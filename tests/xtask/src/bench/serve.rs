//! Measures the server as users run it: the release build, the demonstration models, its own log.
//!
//! The load generator shares the processors with the server, and there is no network between
//! them: the figures compare builds on one machine and promise nothing about another.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::load::{self, Load, Measured};
use super::server::{self, Server};
use super::{Bar, Figure};
use crate::run;
use crate::workspace::Workspace;

/// Where single texts go.
const PREDICT: &str = "/v1/predict";

/// Where batches go.
const BATCH_PREDICT: &str = "/v1/batch_predict";

/// How many starts the median is of. Odd, so that it is one of them.
const STARTS: usize = 5;

/// A low load: requests that arrive one by one, with the server idle in between.
const LOW_LOAD_PER_SECOND: u32 = 100;

/// Enough that no arrival waits for a connection.
const LOW_LOAD_CONNECTIONS: usize = 4;

/// How many texts a batch has.
const BATCH_ROWS: usize = 64;

/// How many connections send batches.
const BATCH_CONNECTIONS: usize = 2;

/// A restart should not be noticed: below a second.
const WARM_START_MS: Bar = Bar::Below(1000.0);

/// A prediction should cost its caller nothing that matters: below five milliseconds.
const SINGLE_PREDICTION_P95_MS: Bar = Bar::Below(5.0);

/// What FastAPI with scikit-learn does on such a machine: a sandbox must not cost more than Python.
/// A figure from elsewhere, which this benchmark does not measure again.
const REQUESTS_PER_SECOND_1_CONNECTION: Bar = Bar::Above(250.0);

/// The same for 8 connections.
const REQUESTS_PER_SECOND_8_CONNECTIONS: Bar = Bar::Above(520.0);

/// Measures everything, with `seconds` for each load.
pub(crate) fn measure(workspace: &Workspace, seconds: u64) -> Result<Vec<Figure>> {
    let texts = texts(workspace)?;
    let (start_ms, server) = warm_start_ms(workspace)?;
    let mut figures = vec![Figure::new("warm_start_ms", start_ms, "ms", Some(WARM_START_MS))];
    figures.extend(single_predictions(workspace, &server, &texts, seconds)?);
    figures.push(batches(workspace, &server, &texts, seconds)?);
    server.stop()?;
    Ok(figures)
}

/// The median of some starts with everything compiled, and the server that started last.
fn warm_start_ms(workspace: &Workspace) -> Result<(f64, Server)> {
    let setup = server::demonstration(workspace);
    let start = || Server::start(workspace, &setup);
    let mut server = run::step("first start, which compiles what is new", start)?;
    let mut times = Vec::with_capacity(STARTS);
    for number in 1..=STARTS {
        // One at a time: two would share the state folder and the processors.
        server.stop()?;
        server = run::step(&format!("warm start {number} of {STARTS}"), start)?;
        times.push(server.start_ms()?);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[STARTS / 2], server))
}

/// Single texts: now and then, by one caller without a pause, and by eight.
fn single_predictions(
    workspace: &Workspace,
    server: &Server,
    texts: &[String],
    seconds: u64,
) -> Result<Vec<Figure>> {
    let bodies: Vec<Value> = texts.iter().map(|text| json!({"text": text})).collect();
    let url = server.url(PREDICT);
    let ask = |connections, rate| {
        let contains = "\"score\":";
        let (bodies, seconds) = (bodies.as_slice(), seconds as f64);
        let load =
            Load { url: &url, connections, rate, seconds, bodies, contains, ..Load::default() };
        measured(workspace, "single texts", &load)
    };
    let low = ask(LOW_LOAD_CONNECTIONS, Some(LOW_LOAD_PER_SECOND))?;
    let one = ask(1, None)?;
    let eight = ask(8, None)?;
    Ok(vec![
        Figure::new("single_prediction_p50_ms", low.latencies.p50_ms(), "ms", None),
        Figure::new(
            "single_prediction_p95_ms",
            low.latencies.p95_ms(),
            "ms",
            Some(SINGLE_PREDICTION_P95_MS),
        ),
        Figure::new("back_to_back_prediction_p50_ms", one.latencies.p50_ms(), "ms", None),
        Figure::new("back_to_back_prediction_p95_ms", one.latencies.p95_ms(), "ms", None),
        Figure::new(
            "requests_per_second_1_connection",
            one.requests_per_second,
            "1/s",
            Some(REQUESTS_PER_SECOND_1_CONNECTION),
        ),
        Figure::new(
            "requests_per_second_8_connections",
            eight.requests_per_second,
            "1/s",
            Some(REQUESTS_PER_SECOND_8_CONNECTIONS),
        ),
    ])
}

/// Batches of texts, by enough callers to keep every processor busy.
fn batches(
    workspace: &Workspace,
    server: &Server,
    texts: &[String],
    seconds: u64,
) -> Result<Figure> {
    let batches = texts.chunks_exact(BATCH_ROWS);
    let bodies: Vec<Value> = batches.map(|texts| json!({"texts": texts})).collect();
    let load = Load {
        url: &server.url(BATCH_PREDICT),
        connections: BATCH_CONNECTIONS,
        seconds: seconds as f64,
        bodies: &bodies,
        contains: "\"results\":",
        ..Load::default()
    };
    let batches_per_second = measured(workspace, "batches", &load)?.requests_per_second;
    let rows_per_second = batches_per_second * BATCH_ROWS as f64;
    Ok(Figure::new("batch_rows_per_second", rows_per_second, "1/s", None))
}

fn measured(workspace: &Workspace, what: &str, load: &Load<'_>) -> Result<Measured> {
    let pace = match load.rate {
        Some(rate) => format!("{rate} a second"),
        None => format!("{} at a time", load.connections),
    };
    run::step(&format!("{what}, {pace}"), || load::make(workspace, load))
}

/// The texts that the model's oracle has scores for: as long and as odd as what people write.
fn texts(workspace: &Workspace) -> Result<Vec<String>> {
    let path = workspace.toxicity_oracle();
    let lines =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut texts = Vec::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line)
            .with_context(|| format!("a line of {} is not JSON", path.display()))?;
        let text = line["text"].as_str();
        let text = text.with_context(|| format!("a line of {} has no text", path.display()))?;
        texts.push(text.to_owned());
    }
    ensure!(texts.len() >= BATCH_ROWS, "{} has fewer than {BATCH_ROWS} texts", path.display());
    Ok(texts)
}
