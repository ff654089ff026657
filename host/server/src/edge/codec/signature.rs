//! The gRPC services made from signatures: a message is a row, or a list of rows.

use std::sync::Arc;

use axum::body::Bytes;

use super::{Codec, Encoded, FieldValue, Inputs, Multiplicity, Outputs};
use crate::config::Limits;
use crate::edge::body::RequestBody;
use crate::edge::error::{ApiError, Detail, ErrorCode};
use crate::edge::model_services::RoutedService;
use crate::edge::request_id::RequestId;
use crate::typed::{self, DecodeError, MessageTooLarge, ModelService};
use guesthouse_model::record::validate_tensors;
use guesthouse_model::{Datatype, Signature, Tensor, bytes_elements};
use guesthouse_runtime::inference::QueueOptions;
use guesthouse_runtime::version::ServableVersion;

/// A message of `Predict`, `PredictStream` or `BatchPredict`.
pub(in crate::edge) struct SignatureCodec {
    service: Arc<RoutedService>,
    multiplicity: Multiplicity,
    /// The messages of a batch.
    messages: Vec<Bytes>,
    /// The one row of any other request.
    row: Option<Vec<Tensor>>,
}

impl SignatureCodec {
    /// Of a message to this service.
    pub(in crate::edge) fn new(service: Arc<RoutedService>, multiplicity: Multiplicity) -> Self {
        Self { service, multiplicity, messages: Vec::new(), row: None }
    }
}

impl Codec for SignatureCodec {
    fn is_batch(&self) -> bool {
        self.multiplicity == Multiplicity::Batch
    }

    fn context(&self) -> String {
        let service = self.service.service.full_name();
        format!("{service} {:?}", self.multiplicity)
    }

    fn parse(
        &mut self,
        body: &RequestBody,
        limits: &Limits,
        _: &mut RequestId,
    ) -> Result<(), ApiError> {
        match self.multiplicity {
            Multiplicity::Single => {
                self.row = Some(self.service.service.decode_request(&body.bytes)?)
            }
            Multiplicity::Batch => {
                let messages = typed::decode_batch(&body.bytes, limits.batch_rows)?;
                let share = |message: &[u8]| body.bytes.slice_ref(message);
                self.messages = messages.into_iter().map(share).collect();
            }
        }
        Ok(())
    }

    fn field(&self, name: &str) -> Option<FieldValue> {
        self.row.as_ref()?.iter().find(|tensor| tensor.name == name).map(field_value)
    }

    /// Every field of a message is an input.
    fn take_field(&mut self, _: &str, _: &Signature) -> Option<FieldValue> {
        None
    }

    fn decode(&mut self, signature: &Signature, _: &Limits) -> Result<Inputs, ApiError> {
        let (tensors, rows) = match self.row.take() {
            Some(row) => (validate_tensors(signature, row)?, 1),
            None => {
                let messages = std::mem::take(&mut self.messages);
                (batch(&self.service.service, signature, &messages)?, messages.len())
            }
        };
        Ok(Inputs { tensors, rows, partial: None, queue_options: QueueOptions::default() })
    }

    fn encode(
        self,
        version: &ServableVersion,
        outputs: Outputs,
        _request_id: &str,
    ) -> Result<Encoded, ApiError> {
        let outputs = outputs.into_tensors()?;
        let mut rows = self.service.service.encode_rows(&version.id().version, &outputs);
        let message = match self.multiplicity {
            Multiplicity::Single => rows.next().transpose()?.unwrap_or_default(),
            Multiplicity::Batch => typed::encode_batch(rows)?,
        };
        Ok(Encoded::message(message))
    }
}

/// The tensors of all rows. Inputs that a row omits have the defaults of the version that answers.
fn batch(
    service: &ModelService,
    signature: &Signature,
    messages: &[Bytes],
) -> Result<Vec<Tensor>, ApiError> {
    let mut inputs: Vec<Tensor> = Vec::new();
    for (row, message) in messages.iter().enumerate() {
        let read = service.decode_request(message).map_err(ApiError::from);
        let conformed = read.and_then(|tensors| Ok(validate_tensors(signature, tensors)?));
        let tensors = conformed.map_err(|error| error.shift_rows(row))?;
        if inputs.is_empty() {
            inputs = tensors;
            continue;
        }
        for (whole, part) in inputs.iter_mut().zip(&tensors) {
            if !whole.append(part) {
                let reason = "has another shape than the rows before it".to_owned();
                let detail = Detail { row, field: part.name.clone(), reason };
                return Err(ApiError::with_details(ErrorCode::UnacceptableInput, vec![detail]));
            }
        }
    }
    if inputs.is_empty() {
        return Err(ApiError::malformed("there are no rows"));
    }
    Ok(inputs)
}

/// An input of a row that is a string or an integer.
fn field_value(tensor: &Tensor) -> FieldValue {
    if tensor.shape.len() != 1 {
        return FieldValue::Other;
    }
    let data = &tensor.data[..];
    let integer = match tensor.datatype {
        Datatype::Bytes => {
            let text = bytes_elements(data).next().map(|text| FieldValue::Text(text.to_vec()));
            return text.unwrap_or(FieldValue::Other);
        }
        Datatype::Uint8 => integer(data, u8::from_le_bytes),
        Datatype::Uint16 => integer(data, u16::from_le_bytes),
        Datatype::Uint32 => integer(data, u32::from_le_bytes),
        Datatype::Uint64 => integer(data, u64::from_le_bytes),
        Datatype::Int8 => integer(data, i8::from_le_bytes),
        Datatype::Int16 => integer(data, i16::from_le_bytes),
        Datatype::Int32 => integer(data, i32::from_le_bytes),
        Datatype::Int64 => integer(data, i64::from_le_bytes),
        Datatype::Bool | Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 => None,
    };
    integer.map_or(FieldValue::Other, FieldValue::Integer)
}

fn integer<const N: usize, T: ToString>(data: &[u8], read: fn([u8; N]) -> T) -> Option<String> {
    data.first_chunk().map(|bytes| read(*bytes).to_string())
}

impl From<DecodeError> for ApiError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Wire(error) => {
                Self::malformed(format!("the message is malformed: {error}"))
            }
            DecodeError::TooManyRows => Self::new(ErrorCode::UnacceptableInput, error.to_string()),
            DecodeError::Row(error) => error.into(),
        }
    }
}

impl From<MessageTooLarge> for ApiError {
    fn from(_too_large: MessageTooLarge) -> Self {
        Self::new(ErrorCode::ModelFailure, "the model's answer is too large for a message")
    }
}
