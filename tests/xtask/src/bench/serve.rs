//! Measures the server as users run it: the release build with the demo models and its normal log.
//!
//! The load generator shares the processors with the server, and there is no network: the figures
//! compare builds on one machine.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::load::{self, Load, Measured};
use super::server::{self, Server};
use super::{Bar, Figure, Subject};
use crate::run;
use crate::workspace::Workspace;

/// The path for single texts.
const PREDICT: &str = "/v1/predict";

/// The path for batches.
const BATCH_PREDICT: &str = "/v1/batch_predict";

/// The number of starts. Odd, so that the median is a measured value.
const STARTS: usize = 5;

/// A low load: single requests, with an idle server in between.
const LOW_LOAD_PER_SECOND: u32 = 100;

/// Enough connections that no request waits for one.
const LOW_LOAD_CONNECTIONS: usize = 4;

/// The number of texts in a batch.
const BATCH_ROWS: usize = 64;

/// The number of connections that send batches.
const BATCH_CONNECTIONS: usize = 2;

/// A restart should not be noticeable.
const WARM_START_MS: Bar = Bar::Below(1000.0);

/// The overhead of a prediction should not matter to its caller.
const SINGLE_PREDICTION_P95_MS: Bar = Bar::Below(5.0);

/// The throughput of FastAPI with scikit-learn on such a machine, which this benchmark does not
/// measure: a sandbox must not cost more than Python.
const REQUESTS_PER_SECOND_1_CONNECTION: Bar = Bar::Above(250.0);

/// The same with 8 connections.
const REQUESTS_PER_SECOND_8_CONNECTIONS: Bar = Bar::Above(520.0);

/// Measures everything, with `seconds` for each load.
pub(super) fn measure(subject: &Subject<'_>) -> Result<Vec<Figure>> {
    let Subject { workspace, seconds, .. } = subject.clone();
    let texts = texts(workspace)?;
    let (start_ms, server) = warm_start_ms(subject)?;
    let mut figures = vec![Figure::new("warm_start_ms", start_ms, "ms", Some(WARM_START_MS))];
    figures.extend(single_predictions(workspace, &server, &texts, seconds)?);
    figures.push(batches(workspace, &server, &texts, seconds)?);
    server.stop()?;
    Ok(figures)
}

/// The median of several starts with everything compiled, and the last server.
fn warm_start_ms(subject: &Subject<'_>) -> Result<(f64, Server)> {
    let mut setup = server::demonstration(subject.workspace);
    setup.program.clone_from(&subject.program);
    if !subject.folder_suffix.is_empty() {
        setup.state = subject.workspace.output().join(format!("state{}", subject.folder_suffix));
    }
    let start = || Server::start(subject.workspace, &setup);
    let mut server = run::step("first start, which compiles", start)?;
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

/// Single texts: at a low rate, by one caller without a pause, and by eight.
fn single_predictions(
    workspace: &Workspace,
    server: &Server,
    texts: &[String],
    seconds: f64,
) -> Result<Vec<Figure>> {
    let bodies: Vec<Value> = texts.iter().map(|text| json!({"text": text})).collect();
    let url = server.url(PREDICT);
    let ask = |connections, rate| {
        let contains = "\"score\":";
        let bodies = bodies.as_slice();
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

/// Batches from enough callers to keep every processor busy.
fn batches(
    workspace: &Workspace,
    server: &Server,
    texts: &[String],
    seconds: f64,
) -> Result<Figure> {
    let batches = texts.chunks_exact(BATCH_ROWS);
    let bodies: Vec<Value> = batches.map(|texts| json!({"texts": texts})).collect();
    let load = Load {
        url: &server.url(BATCH_PREDICT),
        connections: BATCH_CONNECTIONS,
        seconds,
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
    run::step(&format!("{what}, {pace}"), || load::run_without_errors(workspace, load))
}

/// The texts of the model's oracle, which are as long and as odd as what people write.
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
