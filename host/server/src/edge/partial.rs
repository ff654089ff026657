//! Batches of which the caller takes what there is: `?partial=true`.
//!
//! A row that is wrong by itself, or that the guest rejects, has its error in its place among the
//! results and costs the others nothing: they are asked for again without it. Everything else that
//! goes wrong is about the whole request, as it is without this.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::{StatusCode, Uri};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::body::{BodyRow, Form};
use super::call::Call;
use super::error::{ApiError, Detail, ErrorCode};
use super::query;
use guesthouse_model::record::{self, ValidRows};
use guesthouse_model::{Signature, Tensor};

/// How often the rest of a batch is asked for again. Guests say of all rows at once what is wrong, so
/// once is enough for any that means well.
const ATTEMPTS: usize = 4;

/// The most details of a request that is refused as a whole.
const MAX_DETAILS: usize = 20;

/// The query of a batch.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchQuery {
    #[serde(default)]
    partial: bool,
}

/// The query of a single prediction: nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SingleQuery {}

/// Whether the caller takes a part of the rows.
pub(super) fn is_wanted(address: &Uri, form: Form) -> Result<bool, ApiError> {
    let text = address.query();
    match form {
        Form::Single => query::parse::<SingleQuery>(text).map(|_| false),
        Form::Batch => query::parse::<BatchQuery>(text).map(|query| query.partial),
    }
}

/// Validated inputs of all rows, or of those that can be answered.
pub(super) enum Inputs {
    Whole(Vec<Tensor>),
    Partial(Partial),
}

impl Inputs {
    /// The rows are let go: they are many times as large as the tensors that wait from now on.
    pub(super) fn of(
        signature: &Signature,
        rows: Vec<BodyRow>,
        is_partial: bool,
    ) -> Result<Self, ApiError> {
        if is_partial {
            return Partial::of(signature, &rows).map(Self::Partial);
        }
        rows.iter().try_for_each(BodyRow::check)?;
        let inputs = record::decode(signature, &rows)?;
        Ok(Self::Whole(inputs))
    }

    pub(super) async fn run(self, call: &mut Call<'_>, rows: usize) -> Result<Results, ApiError> {
        match self {
            Self::Whole(inputs) => {
                let records = call.run(inputs, rows).await?;
                Ok(Results { records, has_failed: false })
            }
            Self::Partial(partial) => {
                let most = call.route.version.max_batch_size();
                partial.run(call, most).await
            }
        }
    }
}

/// Rows on their way, and those that have failed.
pub(super) struct Partial {
    /// Of those that are left, one for each input.
    inputs: Vec<Tensor>,
    /// Which rows of the request those are.
    places: Vec<usize>,
    rows: usize,
    failed: BTreeMap<usize, ApiError>,
}

/// What became of the rows, in their order.
pub(super) struct Results {
    pub(super) records: Vec<Map<String, Value>>,
    /// Whether some of them are errors.
    pub(super) has_failed: bool,
}

impl Results {
    pub(super) fn status(&self) -> StatusCode {
        if self.has_failed { StatusCode::MULTI_STATUS } else { StatusCode::OK }
    }
}

impl Partial {
    /// The rows that fit the signature; an error if there is none.
    pub(super) fn of(signature: &Signature, rows: &[BodyRow]) -> Result<Self, ApiError> {
        let mut failed = BTreeMap::new();
        let mut objects = Vec::with_capacity(rows.len());
        for (place, row) in rows.iter().enumerate() {
            match row.check() {
                Ok(()) => objects.push((place, row)),
                Err(error) => _ = failed.insert(place, error),
            }
        }
        let ValidRows { inputs, rows: places, invalid } =
            record::decode_valid_rows(signature, objects);
        let refused = invalid.into_iter().map(|(place, error)| (place, ApiError::from(error)));
        failed.extend(refused);
        let partial = Self { inputs, places, rows: rows.len(), failed };
        if partial.places.is_empty() { Err(partial.all_failed()) } else { Ok(partial) }
    }

    /// Run what is left, in batches of at most that many rows, as often as it takes.
    pub(super) async fn run(
        mut self,
        call: &mut Call<'_>,
        most: usize,
    ) -> Result<Results, ApiError> {
        let mut answers = BTreeMap::new();
        let inputs = std::mem::take(&mut self.inputs);
        let places = std::mem::take(&mut self.places);
        for start in (0..places.len()).step_by(most) {
            let count = most.min(places.len() - start);
            let batch = inputs.iter().map(|input| input.slice_rows(start, count)).collect();
            let places = places[start..start + count].to_vec();
            answers.extend(self.run_batch(call, batch, places).await?);
        }
        if answers.is_empty() {
            return Err(self.all_failed());
        }
        let has_failed = !self.failed.is_empty();
        answers.extend(self.failed.into_iter().map(|(place, error)| (place, failed_row(&error))));
        debug_assert_eq!(answers.len(), self.rows, "each row has an answer or an error");
        Ok(Results { records: answers.into_values().collect(), has_failed })
    }

    /// The answers of one batch by their places. Rows that the guest rejects fail, and the others are
    /// asked for again.
    async fn run_batch(
        &mut self,
        call: &mut Call<'_>,
        inputs: Vec<Tensor>,
        mut places: Vec<usize>,
    ) -> Result<Vec<(usize, Map<String, Value>)>, ApiError> {
        let mut inputs = Arc::new(inputs);
        for _ in 0..ATTEMPTS {
            let error = match call.run_batch(Arc::clone(&inputs)).await {
                Ok(records) => return Ok(places.into_iter().zip(records).collect()),
                Err(error) => error,
            };
            // The one error of a call that is about rows.
            if error.code != ErrorCode::UnacceptableInput || error.details.is_empty() {
                return Err(error);
            }
            let mut rejected: BTreeMap<usize, Vec<Detail>> = BTreeMap::new();
            for detail in error.details {
                rejected.entry(detail.row).or_default().push(detail);
            }
            let left: Vec<usize> =
                (0..places.len()).filter(|row| !rejected.contains_key(row)).collect();
            for (row, mut details) in rejected {
                let Some(place) = places.get(row).copied() else { continue };
                details.iter_mut().for_each(|detail| detail.row = place);
                let error = ApiError::with_details(ErrorCode::UnacceptableInput, details);
                self.failed.insert(place, error);
            }
            if left.is_empty() {
                return Ok(Vec::new());
            }
            inputs = Arc::new(inputs.iter().map(|input| input.select_rows(&left)).collect());
            places = left.into_iter().map(|row| places[row]).collect();
        }
        let message = "the model rejects other rows each time it is asked";
        let error = ApiError::new(ErrorCode::ModelFailure, message);
        self.failed.extend(places.into_iter().map(|place| (place, error.clone())));
        Ok(Vec::new())
    }

    /// What the whole request is answered, of which no row is left.
    fn all_failed(&self) -> ApiError {
        let all = |code| self.failed.values().all(|error| error.code == code);
        let code = [ErrorCode::MalformedRequest, ErrorCode::ModelFailure]
            .into_iter()
            .find(|code| all(*code))
            .unwrap_or(ErrorCode::UnacceptableInput);
        let details = self.failed.values().flat_map(|error| error.details.iter().cloned());
        let details: Vec<Detail> = details.take(MAX_DETAILS).collect();
        match (details.is_empty(), self.failed.values().next()) {
            (true, Some(first)) => ApiError::new(code, first.message.clone()),
            _ => ApiError::with_details(code, details),
        }
    }
}

/// What stands in the place of a row that has failed.
fn failed_row(error: &ApiError) -> Map<String, Value> {
    let mut body = json!({"error_code": error.code.as_str(), "message": error.message});
    if !error.details.is_empty() {
        body["details"] = json!(error.details);
    }
    Map::from_iter([("error".to_owned(), body)])
}
