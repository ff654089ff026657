//! Requests of the Open Inference Protocol, as its codecs for REST and gRPC share them: named tensors in, the
//! requested outputs out.
//!
//! The protocol:
//! <https://github.com/kserve/open-inference-protocol> and the documentation of Triton's extensions.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;

use super::{FieldValue, Inputs};
use crate::config::Limits;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::target::{Target, target};
use guesthouse_model::record::{TensorInputError, validate_tensors};
use guesthouse_model::{Datatype, Signature, Tensor};
use guesthouse_runtime::inference::QueueOptions;

/// The most parameters of a request, of a tensor and of an output. Each takes a few dozen bytes, and no client
/// sends more than ten.
pub(in crate::edge) const MAX_PARAMETERS: usize = 64;

/// The most classes of a row.
const MAX_CLASSES: u64 = 1000;

/// A parameter of a request, of a tensor or of an output.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::edge) enum Parameter {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
}

pub(in crate::edge) type Parameters = BTreeMap<String, Parameter>;

/// An output that the request names.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RequestedOutput {
    pub(super) name: String,
    pub(super) parameters: Parameters,
}

/// A request; its tensors are in binary form.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct TensorRequest {
    /// Repeated in the response.
    pub(super) id: Option<String>,
    pub(super) parameters: Parameters,
    pub(super) inputs: Vec<Tensor>,
    /// Empty if all outputs are requested.
    pub(super) outputs: Vec<RequestedOutput>,
}

/// Copy tensors that are a small part of the body whose memory they share: while they wait to be
/// compared or captured, they must not keep a large body in memory.
pub(super) fn copy_small_parts(tensors: &mut [Tensor], body_bytes: usize) {
    let bytes: usize = tensors.iter().map(|tensor| tensor.data.len()).sum();
    if bytes < body_bytes / 2 {
        for tensor in tensors {
            tensor.data = Bytes::copy_from_slice(&tensor.data);
        }
    }
}

/// The target of a request. An empty version counts as missing; a single number is a major version.
pub(in crate::edge) fn named(model: &str, version: &str) -> Target {
    target(model, Some(version).filter(|version| !version.is_empty()))
}

/// The error with the message that the protocol's clients look for.
pub(in crate::edge) fn in_protocol_words(mut error: ApiError, model: &str) -> ApiError {
    if error.is_unknown_model {
        let model: String = model.chars().take(64).collect();
        error.message = format!("Request for unknown model: '{model}' is not found");
    }
    error
}

impl TensorRequest {
    /// The value of a parameter of the request.
    pub(super) fn field(&self, name: &str) -> Option<FieldValue> {
        self.parameters.get(name).map(field_value)
    }

    /// The same; the parameter is taken away.
    pub(super) fn take_field(&mut self, name: &str) -> Option<FieldValue> {
        self.parameters.remove(name).as_ref().map(field_value)
    }

    /// The inputs in the order of the signature, and the requested outputs.
    pub(super) fn decode(
        self,
        signature: &Signature,
        limits: &Limits,
    ) -> Result<(Inputs, WantedOutputs), ApiError> {
        let queue_options = queue_options(&self.parameters)?;
        let wanted = WantedOutputs::new(signature, self.outputs)?;
        let tensors = validate_tensors(signature, self.inputs)?;
        let rows = rows_of(&tensors, limits.batch_rows)?;
        Ok((Inputs { tensors, rows, partial: None, queue_options }, wanted))
    }
}

fn field_value(parameter: &Parameter) -> FieldValue {
    match parameter {
        Parameter::Text(text) => FieldValue::Text(text.clone().into_bytes()),
        Parameter::Int(number) => FieldValue::Integer(number.to_string()),
        Parameter::Uint(number) => FieldValue::Integer(number.to_string()),
        Parameter::Bool(_) | Parameter::Double(_) => FieldValue::Other,
    }
}

fn rows_of(inputs: &[Tensor], most: usize) -> Result<usize, ApiError> {
    let rows = inputs.first().map_or(0, Tensor::rows);
    let rows = usize::try_from(rows).ok().filter(|rows| *rows <= most);
    let too_many = || format!("the batch has over {most} rows");
    rows.ok_or_else(|| ApiError::new(ErrorCode::UnacceptableInput, too_many()))
}

/// The parameters of Triton's schedule policy: priority and queue timeout.
fn queue_options(parameters: &Parameters) -> Result<QueueOptions, ApiError> {
    let number = |name: &str| {
        let number = match parameters.get(name) {
            None => return Ok(None),
            Some(Parameter::Uint(number)) => Some(*number),
            Some(Parameter::Int(number)) => u64::try_from(*number).ok(),
            // Some clients have no unsigned type.
            Some(Parameter::Text(text)) => text.parse().ok(),
            Some(Parameter::Bool(_) | Parameter::Double(_)) => None,
        };
        let message = || format!("parameter `{name}` must be a whole number from 0 on");
        number.map(Some).ok_or_else(|| ApiError::malformed(message()))
    };
    for name in ["sequence_id", "sequence_start", "sequence_end"] {
        match parameters.get(name) {
            None | Some(Parameter::Bool(false) | Parameter::Int(0) | Parameter::Uint(0)) => {}
            Some(Parameter::Text(text)) if text.is_empty() => {}
            Some(_) => return Err(ApiError::malformed("sequences are not supported")),
        }
    }
    let priority = number("priority")?.unwrap_or(0);
    let queue_timeout = number("timeout")?.filter(|time| *time > 0).map(Duration::from_micros);
    Ok(QueueOptions { priority, queue_timeout })
}

/// The places of the requested outputs, and the number of classes that each is converted to.
#[derive(Default)]
pub(super) struct WantedOutputs(Vec<(usize, Option<u64>)>);

impl WantedOutputs {
    fn new(signature: &Signature, requested: Vec<RequestedOutput>) -> Result<Self, ApiError> {
        if requested.is_empty() {
            return Ok(Self((0..signature.outputs.len()).map(|index| (index, None)).collect()));
        }
        let mut wanted: Vec<(usize, Option<u64>)> = Vec::with_capacity(requested.len());
        for RequestedOutput { name, parameters } in requested {
            let place = signature.outputs.iter().position(|output| output.name == name);
            let name: String = name.chars().take(64).collect();
            let Some(place) = place else {
                let message = format!("output `{name}` is not an output of this model");
                return Err(ApiError::malformed(message));
            };
            if parameters.keys().any(|key| key.starts_with("shared_memory_")) {
                let message = format!("output `{name}`: shared memory is not supported");
                return Err(ApiError::malformed(message));
            }
            if wanted.iter().any(|(other, _)| *other == place) {
                return Err(ApiError::malformed(format!("output `{name}` is requested twice")));
            }
            wanted.push((place, classes(signature, place, &parameters)?));
        }
        Ok(Self(wanted))
    }

    /// The requested outputs, in their order.
    pub(super) fn take(&self, outputs: Vec<Tensor>) -> Vec<Tensor> {
        let mut outputs: Vec<_> = outputs.into_iter().map(Some).collect();
        let taken = self.0.iter().filter_map(|(place, classes)| {
            let output = outputs.get_mut(*place)?.take()?;
            Some(match classes {
                None => output,
                Some(count) => classify(&output, *count),
            })
        });
        taken.collect()
    }
}

/// The number of classes that an output is converted to, if the request asks for that.
fn classes(
    signature: &Signature,
    place: usize,
    parameters: &Parameters,
) -> Result<Option<u64>, ApiError> {
    let count = match parameters.get("classification") {
        None => return Ok(None),
        Some(Parameter::Int(count)) => u64::try_from(*count).ok(),
        Some(Parameter::Uint(count)) => Some(*count),
        Some(_) => None,
    };
    let output = &signature.outputs[place];
    match count {
        // Clients send 0 if they do not ask for classes.
        Some(0) => Ok(None),
        Some(_) if matches!(output.datatype, Datatype::Bytes | Datatype::Bool) => {
            let message = format!("output `{}` has no numbers to classify by", output.name);
            Err(ApiError::malformed(message))
        }
        Some(count) => Ok(Some(count.min(MAX_CLASSES))),
        None => Err(ApiError::malformed("`classification` must be a whole number from 0 on")),
    }
}

/// The greatest elements of each row, in descending order, each as `value:index`.
fn classify(output: &Tensor, count: u64) -> Tensor {
    let rows = usize::try_from(output.rows()).unwrap_or(usize::MAX).max(1);
    let values: Vec<f64> = output.numbers().collect();
    let per_row = values.len() / rows;
    let count = per_row.min(usize::try_from(count).unwrap_or(usize::MAX));
    let mut data = Vec::new();
    for row in values.chunks(per_row.max(1)).take(rows) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // The sort is stable, so the first of equal elements comes first. NaN comes last.
        let rank =
            |index: &usize| if row[*index].is_nan() { f64::NEG_INFINITY } else { row[*index] };
        order.sort_by(|one, other| rank(other).total_cmp(&rank(one)));
        for index in order.into_iter().take(count) {
            let class = format!("{:.6}:{index}", row[index]);
            // A class is a few dozen bytes.
            data.extend_from_slice(&u32::try_from(class.len()).unwrap_or_default().to_le_bytes());
            data.extend_from_slice(class.as_bytes());
        }
    }
    let (name, shape) = (output.name.clone(), vec![output.rows(), count as u64]);
    Tensor { name, datatype: Datatype::Bytes, shape, data: data.into() }
}

impl From<TensorInputError> for ApiError {
    fn from(error: TensorInputError) -> Self {
        match error {
            TensorInputError::Malformed(message) => Self::malformed(message),
            TensorInputError::Values(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guesthouse_model::bytes_elements;

    #[test]
    fn only_tensors_that_are_most_of_a_body_share_its_memory() {
        let body = Bytes::from(vec![0; 100]);
        for (bytes, shares) in [(90, true), (50, true), (49, false), (0, false)] {
            let data = body.slice(..bytes);
            let (name, shape) = ("x".to_owned(), vec![bytes as u64]);
            let mut tensors = [Tensor { name, datatype: Datatype::Uint8, shape, data }];
            copy_small_parts(&mut tensors, body.len());
            assert_eq!(tensors[0].data, body[..bytes]);
            assert_eq!(tensors[0].data.as_ptr() == body.as_ptr(), shares, "{bytes}");
        }
    }

    #[test]
    fn classes_are_in_descending_order() {
        let values = [0.5_f32, f32::NAN, 2.0, 2.0, -1.0, -1.0, -1.0, 7.25];
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (name, shape) = ("y".to_owned(), vec![2, 4]);
        let output = Tensor { name, datatype: Datatype::Fp32, shape, data };
        let classes = classify(&output, 3);
        assert_eq!((classes.check(), &classes.shape[..]), (Ok(()), &[2, 3][..]));
        let texts: Vec<_> = bytes_elements(&classes.data).map(String::from_utf8_lossy).collect();
        let first = ["2.000000:2", "2.000000:3", "0.500000:0"];
        assert_eq!(texts, [first, ["7.250000:3", "-1.000000:0", "-1.000000:1"]].concat());
        assert_eq!(classify(&output, 100).shape, [2, 4]);
    }

    #[test]
    fn priority_and_timeout_are_integers() {
        let of = |name: &str, value| queue_options(&Parameters::from([(name.to_owned(), value)]));
        let two = of("timeout", Parameter::Int(2000)).unwrap();
        assert_eq!(two.queue_timeout, Some(Duration::from_millis(2)));
        assert_eq!(of("timeout", Parameter::Uint(0)).unwrap(), QueueOptions::default());
        assert_eq!(of("priority", Parameter::Text("3".to_owned())).unwrap().priority, 3);
        assert!(of("priority", Parameter::Int(-1)).is_err());
        assert!(of("timeout", Parameter::Double(1.5)).is_err());
        assert!(of("sequence_id", Parameter::Int(5)).is_err());
        assert!(of("sequence_id", Parameter::Int(0)).is_ok());
    }
}
