//! Rows of messages on their way to a version, and its outputs on their way back.

use std::time::Instant;

use crate::edge::body::Form;
use crate::edge::call::Call;
use crate::edge::error::{ApiError, Detail, ErrorCode};
use crate::edge::observe::Account;
use crate::edge::passage::Passage;
use crate::typed::{self, DecodeError, MessageTooLarge, ModelService};
use guesthouse_control::shadow::Comparison;
use guesthouse_model::record::validate_tensors;
use guesthouse_model::{Datatype, Signature, Tensor, bytes_elements};

/// An answer.
pub(super) struct Answered {
    pub(super) message: Vec<u8>,
    /// What is to be compared, once the answer is on its way.
    pub(super) comparison: Option<Comparison>,
}

/// The answer to a message that was complete at that time.
pub(super) async fn answer(
    passage: &mut Passage<'_>,
    service: &ModelService,
    message: &[u8],
    complete: Instant,
    account: &mut Account,
) -> Result<Answered, ApiError> {
    let messages = match passage.form {
        Form::Single => vec![message],
        Form::Batch => typed::decode_batch(message, passage.policy.limits.batch_rows)?,
    };
    if let (Form::Single, true, Some(field)) =
        (passage.form, passage.is_told_by_body(), passage.field())
    {
        passage.tell(sticky_key(field, &service.decode_request(message)?)?.as_deref());
    }
    let entered = passage.enter(complete, account)?;
    let inputs = inputs(service, entered.route.version.signature(), &messages)?;
    account.rows = messages.len();
    passage.count(&entered.route);
    let mut call = Call::new(passage, &entered, account.timer());
    let outputs = call.run_tensors(inputs, messages.len()).await?;
    let mut called = call.over();
    let begin = Instant::now();
    let version = &entered.route.version.id().version;
    let mut rows = service.encode_rows(version, &outputs);
    let message = match passage.form {
        Form::Single => rows.next().transpose()?.unwrap_or_default(),
        Form::Batch => typed::encode_batch(rows)?,
    };
    called.encoded(&entered.route, begin);
    let request_id = account.request_id.as_str();
    let comparison = called.comparison(&entered.route, passage.policy, request_id);
    Ok(Answered { message, comparison })
}

/// The tensors of all rows. What one leaves out is filled by the version that answers.
fn inputs(
    service: &ModelService,
    signature: &Signature,
    messages: &[&[u8]],
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

/// What tells the caller from others, if an input of its row does.
fn sticky_key(field: &str, row: &[Tensor]) -> Result<Option<Vec<u8>>, ApiError> {
    let Some(tensor) = row.iter().find(|tensor| tensor.name == field) else { return Ok(None) };
    let is_one = tensor.shape.len() == 1;
    let data = tensor.data.as_slice();
    let key = match tensor.datatype {
        Datatype::Bytes => bytes_elements(data).next().map(<[u8]>::to_vec),
        Datatype::Uint8 => of_number(data, u8::from_le_bytes),
        Datatype::Uint16 => of_number(data, u16::from_le_bytes),
        Datatype::Uint32 => of_number(data, u32::from_le_bytes),
        Datatype::Uint64 => of_number(data, u64::from_le_bytes),
        Datatype::Int8 => of_number(data, i8::from_le_bytes),
        Datatype::Int16 => of_number(data, i16::from_le_bytes),
        Datatype::Int32 => of_number(data, i32::from_le_bytes),
        Datatype::Int64 => of_number(data, i64::from_le_bytes),
        Datatype::Bool | Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 => None,
    };
    match key.filter(|_| is_one) {
        Some(key) => Ok(Some(key).filter(|key| !key.is_empty())),
        None => {
            let message = format!("`{field}` must be a string or an integer");
            Err(ApiError::malformed(message))
        }
    }
}

fn of_number<const N: usize, T: ToString>(data: &[u8], read: fn([u8; N]) -> T) -> Option<Vec<u8>> {
    data.first_chunk().map(|bytes| read(*bytes).to_string().into_bytes())
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
