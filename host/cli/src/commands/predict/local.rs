//! Predicts with an artifact in this process.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use guesthouse_model::record::RecordError;
use guesthouse_model::{Constraint, Datatype, Signature};
use guesthouse_runtime::embed::{LoadedModel, RowsError, Runtime, RuntimeOptions};
use guesthouse_runtime::guest::Fault;
use guesthouse_runtime::inference::PredictError;
use serde_json::{Map, Value};
use tempfile::TempDir;

use super::rows::{self, FileInput, Row};
use super::{Predict, PredictArguments, RowError};

/// The code of errors that are about the values of a row, as a server has it.
const UNACCEPTABLE: &str = "unacceptable_input";

/// A loaded artifact.
pub(super) struct Model {
    model: LoadedModel,
    // Dropped after the model, which uses them.
    _runtime: Runtime,
    _temporary: Option<TempDir>,
}

impl Model {
    pub(super) fn open(arguments: &PredictArguments) -> anyhow::Result<Self> {
        let artifact = arguments.artifact.as_deref().context("there is no artifact")?;
        let temporary = match arguments.state {
            Some(_) => None,
            None => Some(tempfile::tempdir().context("cannot create a temporary folder")?),
        };
        let state = arguments.state.as_deref().or(temporary.as_ref().map(TempDir::path));
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut options = RuntimeOptions::for_one_artifact(program);
        options.model.predict_time = arguments.deadline;
        let load = |state: &Path| -> anyhow::Result<_> {
            let runtime = Runtime::open(state, options)?;
            let model = runtime.load(artifact)?;
            Ok((runtime, model))
        };
        let (runtime, model) = load(state.context("there is no state folder")?)
            .with_context(|| format!("failed to load {}", artifact.display()))?;
        Ok(Self { model, _runtime: runtime, _temporary: temporary })
    }
}

impl Predict for Model {
    fn predict(&mut self, row: &Row) -> Result<Value, RowError> {
        let mut values = row.values.clone();
        for file in &row.files {
            let value = value_of(file, self.model.signature())?;
            values.insert(file.input.clone(), value);
        }
        let outputs = self.model.predict(std::slice::from_ref(&values)).map_err(row_error)?;
        Ok(Value::Object(outputs.into_iter().next().unwrap_or_else(Map::new)))
    }
}

/// A file as JSON: a text as it is, other bytes as base64.
fn value_of(file: &FileInput, signature: &Signature) -> Result<Value, RowError> {
    let field = signature.inputs.iter().find(|field| field.name == file.input);
    let takes_bytes = |field: &&guesthouse_model::Field| {
        field.datatype == Datatype::Bytes && field.row_shape.is_empty()
    };
    let field = field.filter(takes_bytes).ok_or_else(|| {
        let input = &file.input;
        RowError::Failed(anyhow!("the model has no input `{input}` of bytes or text for --file"))
    })?;
    let bytes = rows::read(&file.path).map_err(RowError::Failed)?;
    if !field.constraints.contains(&Constraint::Text) {
        return Ok(Value::from(BASE64.encode(bytes)));
    }
    String::from_utf8(bytes).map(Value::from).map_err(|_invalid| {
        rejected(format!("{} is not UTF-8, and `{}` is a text", file.path.display(), file.input))
    })
}

fn rejected(message: String) -> RowError {
    RowError::Rejected { code: Some(UNACCEPTABLE.to_owned()), message }
}

fn row_error(error: RowsError) -> RowError {
    match error {
        RowsError::Rows(error) => {
            let code = match &error {
                RecordError::Malformed(_) => "malformed_request",
                RecordError::Unacceptable(_) => UNACCEPTABLE,
            };
            let issues = error.issues().iter();
            let issues: Vec<_> =
                issues.map(|issue| format!("`{}` {}", issue.field, issue.reason)).collect();
            RowError::Rejected { code: Some(code.to_owned()), message: issues.join("; ") }
        }
        RowsError::Predict(PredictError::Guest(
            Fault::Rejected(rejections) | Fault::NonFiniteInput(rejections),
        )) => {
            let rejections = rejections.iter();
            let reasons: Vec<_> =
                rejections.map(|one| format!("`{}` {}", one.input, one.reason)).collect();
            rejected(reasons.join("; "))
        }
        error => RowError::Failed(error.into()),
    }
}
