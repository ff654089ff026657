//! Servers as one would write them by hand around tract: axum, and nothing but the prediction.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use cases::{Case, Cases};
use serde_json::Value;
use tokio::net::TcpListener;
use tract_onnx::prelude::*;

use crate::model::{self, Plan};
use crate::toxicity::Toxicity;

/// The largest request body: more than that of any case.
const MAX_BODY_BYTES: usize = 16 << 20;

/// A request that cannot be answered, with the reason.
type Failure = (StatusCode, String);

/// Serves the model of a case at `/predict`: the bytes of the inputs one after the other in, those of
/// the first output out.
pub(crate) fn tensors(models: &Path, case: &str) -> Result<()> {
    let cases = Cases::open(models)?;
    let case = cases.find(case)?.clone();
    let plan = model::load_case(&cases, &case)?;
    let routes = Router::new().route("/predict", post(predict_tensors));
    serve(routes.with_state(Arc::new((plan, case))))
}

/// Serves the toxicity of texts at `/predict`, with the JSON of the server's REST API.
pub(crate) fn toxicity(assets: &Path) -> Result<()> {
    let toxicity = Arc::new(Toxicity::load(assets)?);
    serve(Router::new().route("/predict", post(predict_toxicity)).with_state(toxicity))
}

/// Prints the address and serves until the process is killed.
fn serve(routes: Router) -> Result<()> {
    let routes = routes.route("/health", get(async || "ready"));
    let routes = routes.layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("failed to start")?.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.context("failed to listen")?;
        println!("{}", listener.local_addr().context("failed to listen")?);
        axum::serve(listener, routes).await.context("failed to serve")
    })
}

async fn predict_tensors(
    State(served): State<Arc<(Plan, Case)>>,
    body: Bytes,
) -> Result<Vec<u8>, Failure> {
    // A call takes milliseconds, for which a worker of the runtime must not be blocked.
    let outcome = tokio::task::spawn_blocking(move || run(&served.0, &served.1, &body)).await;
    let outcome = outcome.map_err(|error| failed(&error.into()))?;
    outcome.map_err(|error| failed(&error))
}

fn run(plan: &Plan, case: &Case, mut body: &[u8]) -> Result<Vec<u8>> {
    let mut inputs = TVec::new();
    for input in &case.inputs {
        let size = input.datatype.bytes().context("elements of variable size")?;
        let bytes = input.shape.iter().product::<usize>() * size;
        let (elements, rest) = body.split_at_checked(bytes).context("the body is too short")?;
        inputs.push(model::tensor(input, elements)?.into_tvalue());
        body = rest;
    }
    let outputs = plan.run(inputs)?;
    let output = outputs.first().context("the graph has no output")?;
    let output = output.to_plain_array_view::<f32>()?;
    Ok(output.iter().flat_map(|element| element.to_le_bytes()).collect())
}

async fn predict_toxicity(
    State(toxicity): State<Arc<Toxicity>>,
    Json(request): Json<Value>,
) -> Result<Json<Value>, Failure> {
    // A call takes microseconds, less than handing it to another thread.
    toxicity.predict(&request).map(Json).map_err(|error| failed(&error))
}

fn failed(error: &anyhow::Error) -> Failure {
    (StatusCode::BAD_REQUEST, format!("{error:#}"))
}
