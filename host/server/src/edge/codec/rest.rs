//! REST: a row is a JSON object, a form or the bytes of one input; a batch is a list of rows.
//!
//! With `?partial=true`, the caller of a batch accepts that some of its rows fail: each of them has its
//! error in its place among the results. Everything else that goes wrong is about the whole request, as
//! it is without this.

mod form;
pub(in crate::edge) mod record;

use std::collections::BTreeMap;

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub(crate) use self::record::BodyRow;
use self::record::{Media, ParsedBody};
use super::{Codec, Encoded, FieldValue, Inputs, Multiplicity, Outputs, PartialRows};
use crate::config::Limits;
use crate::edge::body::RequestBody;
use crate::edge::error::ApiError;
use crate::edge::query;
use crate::edge::request_id::RequestId;
use guesthouse_model::Signature;
use guesthouse_model::record::{ValidRows, decode, decode_valid_rows, encode};
use guesthouse_runtime::inference::QueueOptions;
use guesthouse_runtime::version::ServableVersion;

/// The query of a batch.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchQuery {
    #[serde(default)]
    partial: bool,
}

/// The query of a single prediction, which has no parameters.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SingleQuery {}

/// A prediction over REST.
pub(in crate::edge) struct RestCodec {
    multiplicity: Multiplicity,
    media: Media,
    /// Whether the caller accepts that some rows fail.
    is_partial: bool,
    /// Query and content type, as they came.
    context: String,
    /// None before it is parsed, and after it is decoded.
    record: Option<ParsedBody>,
}

impl RestCodec {
    /// By the head of a request.
    pub(in crate::edge) fn new(
        parts: &Parts,
        multiplicity: Multiplicity,
    ) -> Result<Self, ApiError> {
        let query = parts.uri.query();
        let is_partial = match multiplicity {
            Multiplicity::Single => query::parse::<SingleQuery>(query).map(|_| false),
            Multiplicity::Batch => query::parse::<BatchQuery>(query).map(|query| query.partial),
        }?;
        let media = record::media(&parts.headers)?;
        let content_type =
            parts.headers.get(CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
        let context = format!(
            "REST {multiplicity:?} ?{} {}",
            query.unwrap_or_default(),
            content_type.escape_ascii()
        );
        Ok(Self { multiplicity, media, is_partial, context, record: None })
    }
}

impl Codec for RestCodec {
    fn is_batch(&self) -> bool {
        self.multiplicity == Multiplicity::Batch
    }

    fn context(&self) -> String {
        self.context.clone()
    }

    fn parse(
        &mut self,
        body: &RequestBody,
        limits: &Limits,
        request_id: &mut RequestId,
    ) -> Result<(), ApiError> {
        let Self { multiplicity, media, .. } = &*self;
        let record = record::parse(&body.bytes, media, *multiplicity, limits, request_id)?;
        self.record = Some(record);
        Ok(())
    }

    fn field(&self, name: &str) -> Option<FieldValue> {
        self.record.as_ref()?.get(name).map(|value| field_value(&value))
    }

    fn take_field(&mut self, name: &str, signature: &Signature) -> Option<FieldValue> {
        let record = self.record.as_mut()?;
        let value = record::take_beside_inputs(record, name, self.multiplicity, signature);
        value.map(|value| field_value(&value))
    }

    fn decode(&mut self, signature: &Signature, limits: &Limits) -> Result<Inputs, ApiError> {
        let record = self.record.take().ok_or_else(ApiError::internal)?;
        let rows = record::rows(record, self.multiplicity, signature, limits.batch_rows)?;
        if self.is_partial {
            return decode_partial(signature, &rows);
        }
        rows.iter().try_for_each(BodyRow::check)?;
        let (tensors, queue_options) = (decode(signature, &rows)?, QueueOptions::default());
        Ok(Inputs { tensors, rows: rows.len(), partial: None, queue_options })
    }

    fn encode(
        self,
        version: &ServableVersion,
        outputs: Outputs,
        request_id: &str,
    ) -> Result<Encoded, ApiError> {
        let mut records = Vec::new();
        for call in &outputs.calls {
            records.extend(encode(version.signature(), call)?);
        }
        let mut status = StatusCode::OK;
        if let Some(PartialRows { places, failed }) = outputs.partial {
            if !failed.is_empty() {
                status = StatusCode::MULTI_STATUS;
            }
            let answered: BTreeMap<usize, _> = places.into_iter().zip(records).collect();
            let failed = failed.iter().map(|(place, error)| (*place, failed_row(error)));
            records = answered
                .into_iter()
                .chain(failed)
                .collect::<BTreeMap<_, _>>()
                .into_values()
                .collect();
        }
        let mut answer = match self.multiplicity {
            Multiplicity::Single => records.pop().unwrap_or_default(),
            Multiplicity::Batch => Map::from_iter([("results".to_owned(), json!(records))]),
        };
        let id = version.id();
        answer.insert("model".to_owned(), json!(id.name.as_str()));
        answer.insert("model_version".to_owned(), json!(id.version.to_string()));
        answer.insert("request_id".to_owned(), json!(request_id));
        let (content_type, json_length) = ("application/json", None);
        let body = Value::Object(answer).to_string().into();
        Ok(Encoded { status, content_type, json_length, body })
    }
}

pub(in crate::edge) fn field_value(value: &Value) -> FieldValue {
    match value {
        Value::Null => FieldValue::Null,
        Value::String(text) => FieldValue::Text(text.clone().into_bytes()),
        Value::Number(number) if !number.is_f64() => FieldValue::Integer(number.to_string()),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => FieldValue::Other,
    }
}

/// The rows that fit the signature; an error if there is none.
fn decode_partial(signature: &Signature, rows: &[BodyRow]) -> Result<Inputs, ApiError> {
    let mut failed = BTreeMap::new();
    let mut objects = Vec::with_capacity(rows.len());
    for (place, row) in rows.iter().enumerate() {
        match row.check() {
            Ok(()) => objects.push((place, row)),
            Err(error) => _ = failed.insert(place, error),
        }
    }
    let ValidRows { inputs, rows: places, invalid } = decode_valid_rows(signature, objects);
    failed.extend(invalid.into_iter().map(|(place, error)| (place, ApiError::from(error))));
    if places.is_empty() {
        return Err(ApiError::all_rows_failed(&failed));
    }
    let (partial, queue_options) = (Some(PartialRows { places, failed }), QueueOptions::default());
    Ok(Inputs { tensors: inputs, rows: rows.len(), partial, queue_options })
}

/// What stands in the place of a row that has failed.
fn failed_row(error: &ApiError) -> Map<String, Value> {
    Map::from_iter([("error".to_owned(), json!(error.row_body()))])
}
